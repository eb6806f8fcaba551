"""One client, or one ordinary line in a hook, takes the service from nobody: who never has to wait takes turns."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.support import raw
from tests.support.client_frames import close, text
from tests.support.in_memory import REQUEST, Session, settle
from tests.support.raw import upgraded
from tests.support.recording import Journal, Recorder
from tests.support.stacks import DIRECT, GRANIAN, HYPERCORN, SANSIO, WSPROTO, Stack, soon, until
from wsdeco import App, Close, DisconnectReason, Sink, Unknown
from wsdeco.transport import outgoing
from wsdeco.transport.protocol import WebSocketProtocol
from wsdeco.wire.incoming import Framing
from wsdeco.wire.outgoing import encode_close

pytestmark = pytest.mark.usefixtures("no_errors_logged")

NETWORK: Final = (DIRECT, SANSIO, WSPROTO, HYPERCORN, GRANIAN)
on_network = pytest.mark.parametrize("stack", NETWORK, ids=lambda stack: stack.name)


class Turns:
    """Counts what is done in each turn of the event loop."""

    def __init__(self) -> None:
        self.done: Counter[int] = Counter()
        self.turn = 0
        self.counting = True

    def note(self) -> None:
        self.done[self.turn] += 1

    def next(self) -> None:
        self.turn += 1
        if self.counting:
            asyncio.get_running_loop().call_soon(self.next)

    @property
    def most(self) -> int:
        return max(self.done.values())


@contextmanager
def counted_turns() -> Generator[Turns]:
    turns = Turns()
    turns.next()
    try:
        yield turns
    finally:
        turns.counting = False


@pytest.mark.parametrize("way", ["send", "yield"])
async def test_a_loop_of_sends_lets_others_be_served_and_ends_with_its_peer(stack: Stack, way: str) -> None:
    app = App()
    journal = Journal()

    class Sending(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            while True:
                await self.sink.send(message)
                turns.note()

    class Yielding:
        async def on_message(self, message: str) -> AsyncGenerator[str]:
            while True:
                yield message
                turns.note()

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            journal.add(reason)

    if way == "send":
        app.add("/ws", Sending, factory=lambda headers: Sending(journal))
    else:
        app.add("/ws", Yielding)

    @app.handler("/echo")
    class Echo:
        async def on_message(self, message: str) -> str:
            return message

    with counted_turns() as turns:
        async with stack.serve(app) as server, server.connect("/echo") as other:
            async with server.connect("/ws") as peer:
                await peer.send("g")
                for number in range(20):
                    assert await peer.receive() == "g"
                    await other.send(str(number))
                    assert await other.receive() == str(number)
                await peer.drop()
            if way == "send":
                assert await journal.next() == "connect"
            assert await journal.next() == Unknown()
            await other.send("still here")
            assert await other.receive() == "still here"
    assert journal.ended()
    assert turns.most <= 2048


@on_network
async def test_sends_of_many_tasks_wait_in_order_and_outside_of_the_outbox(stack: Stack) -> None:
    number, size = 600, 20_000
    journal = Journal()
    sinks: list[Any] = []
    app = App()

    class Crowded(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            sinks.append(self.sink)
            async with asyncio.TaskGroup() as group:
                for each in range(number):
                    group.create_task(self.sink.send(str(each).ljust(size)))
                given_up = group.create_task(self.sink.send("given up"))
                await asyncio.sleep(0)
                given_up.cancel()
            self.journal.add("all sent")

    app.add("/ws", Crowded, factory=lambda headers: Crowded(journal))
    async with stack.serve(app) as server, upgraded(server, "/ws", receive_buffer=4096) as peer:
        await peer.write(raw.text("go"))
        assert await journal.next() == "connect"
        await until(lambda: bool(sinks))
        await asyncio.sleep(0.05)
        assert unsent() < 300_000
        for each in range(number):
            received = await peer.frame()
            assert received is not None
            assert int(received.payload) == each
        assert await journal.next() == "all sent"


@pytest.mark.parametrize("pauses", [True, False])
async def test_messages_that_are_written_at_once_arrive_whole_on_any_python(
    pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "_PAUSES_AFTER_WRITELINES", pauses)
    app = App()

    @app.handler("/ws")
    class Sends:
        sink: Sink

        async def on_message(self, text: str) -> None:
            for each in range(8):
                self.sink.send_nowait(str(each).ljust(30_000))

    async with DIRECT.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("go")
        assert [str(await soon(peer.receive())).rstrip() for _ in range(8)] == list("01234567")


def unsent() -> int:
    """Return the bytes that connections of our own protocol hold for their peers."""
    return sum(each.unsent for each in gc.get_objects() if isinstance(each, WebSocketProtocol) and not each.closed)


def serving(endpoint: Callable[[WebSocket], Awaitable[None]]) -> Starlette:
    return Starlette(routes=[WebSocketRoute("/ws", endpoint)])


async def test_sends_of_many_tasks_of_a_foreign_app_wait_too() -> None:
    number, size = 600, 20_000

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        async with asyncio.TaskGroup() as group:
            for each in range(number):
                group.create_task(websocket.send_text(str(each).ljust(size)))

    async with DIRECT.serve(serving(endpoint)) as server, upgraded(server, "/ws", receive_buffer=4096) as peer:
        await peer.write(raw.text("go"))
        await asyncio.sleep(0.05)
        assert unsent() < 300_000
        for each in range(number):
            received = await peer.frame()
            assert received is not None
            assert int(received.payload) == each


async def test_a_loop_of_sends_of_a_foreign_app_takes_turns() -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        for _ in range(10_000):
            await websocket.send_text("g")
            turns.note()

    with counted_turns() as turns:
        async with DIRECT.serve(serving(endpoint)) as server, upgraded(server, "/ws") as peer:
            await peer.write(raw.text("go"))
            for _ in range(10_000):
                assert await peer.frame() == (raw.Opcode.TEXT, b"g")
    assert turns.most <= 2048


async def test_a_loop_of_receives_of_a_foreign_app_takes_turns() -> None:
    number = 2000

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        for _ in range(number):
            await websocket.receive_text()
            turns.note()
        await websocket.send_text("done")

    with counted_turns() as turns:
        async with DIRECT.serve(serving(endpoint)) as server, upgraded(server, "/ws") as peer:
            await peer.write(raw.text("x") * number)
            assert await peer.frame() == (raw.Opcode.TEXT, b"done")
    assert turns.most <= 64


async def test_two_receivers_of_a_foreign_app_get_each_message_once() -> None:
    received: list[str] = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()

        async def take() -> None:
            while len(received) < 64:
                received.append(await websocket.receive_text())
            await websocket.close()

        first, second = asyncio.ensure_future(take()), asyncio.ensure_future(take())
        await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        second.cancel()
        await asyncio.wait((first, second))

    session = Session(serving(endpoint))
    await session.feed(REQUEST.replace(b"/chat?x=1", b"/ws"), b"".join(text(str(each)) for each in range(64)))
    await settle(200)
    assert received == [str(each) for each in range(64)]
    await session.end()


async def test_a_flood_of_tiny_messages_leaves_turns_to_others(stack: Stack) -> None:
    number = 500
    app = App()

    @app.handler("/ws")
    class Counting:
        def __init__(self) -> None:
            self.number = 0

        async def on_message(self, message: str) -> str | None:
            self.number += 1
            turns.note()
            return "done" if self.number == number else None

    with counted_turns() as turns:
        async with stack.serve(app) as server, server.connect("/ws") as peer:
            await soon(asyncio.gather(*(peer.send("x") for _ in range(number))))
            assert await peer.receive() == "done"
    assert turns.most <= 64


async def test_a_read_of_tiny_messages_does_not_fill_memory_beyond_the_inbox() -> None:
    app = App()
    journal = Journal()

    class Hanging(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            self.journal.add("hangs")
            await asyncio.Event().wait()

    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal), max_inbox=1024, disconnect_grace=0)
    session = Session(app)
    await session.feed(REQUEST.replace(b"/chat?x=1", b"/ws"), text("x") * 50_000)
    assert session.transport.paused
    receiver: Any = session.protocol.receiver
    session.transport.lose()
    await settle(60)
    assert 0 < receiver.undelivered <= 1200
    assert await journal.take(3) == ["connect", "hangs", Unknown()]
    await session.end()


def test_a_read_of_tiny_messages_is_taken_in_parts() -> None:
    framing = Framing(1 << 20)
    stream = b"".join(text(f"{each:04}") for each in range(5000))
    taken: list[Any] = framing.receive(stream)
    parts = [len(taken)]
    while framing.unread:
        framing.notice()
        more = framing.receive(b"")
        parts.append(len(more))
        taken += more
    assert taken == [f"{each:04}" for each in range(5000)]
    assert max(parts) < 1200


def leave(session: Session) -> None:
    session.transport.feed(close(1000, b"bye"))


def leave_and_hang_up(session: Session) -> None:
    session.transport.feed(close(1000, b"bye"))
    session.transport.feed_eof()


def leave_and_be_lost(session: Session) -> None:
    session.transport.feed(close(1000, b"bye"))
    session.transport.lose()


def hang_up(session: Session) -> None:
    session.transport.feed_eof()


def hang_up_and_be_lost(session: Session) -> None:
    session.transport.feed_eof()
    session.transport.lose()


def be_lost(session: Session) -> None:
    session.transport.lose()


def be_shut_down(session: Session) -> None:
    session.protocol.shutdown()


BYE: Final = Close(1000, "bye", by="client")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (leave, BYE),
        (leave_and_hang_up, BYE),
        (leave_and_be_lost, BYE),
        (hang_up, Unknown()),
        (hang_up_and_be_lost, Unknown()),
        (be_lost, Unknown()),
        (be_shut_down, Close(1012, "", by="server")),
    ],
)
async def test_many_connections_that_end_at_once_leave_turns_to_others(
    end: Callable[[Session], None], reason: DisconnectReason
) -> None:
    app = App()
    reasons: list[DisconnectReason] = []

    @app.handler("/chat", max_connections=None)
    class Member:
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            reasons.append(reason)
            turns.note()

    sessions = [Session(app)]
    sessions += [Session(app, state=sessions[0].state) for _ in range(299)]
    for session in sessions:
        session.transport.feed(REQUEST)
    await settle()
    with counted_turns() as turns:
        for session in sessions:
            end(session)
        await settle(60)
    assert turns.most <= 64
    assert reasons == [reason] * 300
    for session in sessions:
        await session.end()


async def test_a_server_closes_for_itself_who_waits_for_the_turn_to_end() -> None:
    """Its shutdown comes between the peer's close frame, or the end of the stream, and what follows on it."""
    app = App()
    app.add("/chat", Recorder, factory=lambda headers: Recorder(Journal()))
    for end in (leave, hang_up):
        sessions = [Session(app)]
        sessions += [Session(app, state=sessions[0].state) for _ in range(99)]
        for session in sessions:
            session.transport.feed(REQUEST)
        await settle()
        for session in sessions:
            session.transport.take()
            end(session)
        last = sessions[-1]
        last.protocol.close(1001)
        await settle(60)
        assert last.transport.take() == encode_close(1001, "")
        assert last.transport.lost
        for session in sessions:
            await session.end()


async def test_an_app_that_shuts_down_leaves_turns_to_others() -> None:
    app = App()

    @app.handler("/chat", max_connections=None)
    class Member:
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            turns.note()

    sessions = [Session(app)]
    sessions += [Session(app, state=sessions[0].state) for _ in range(299)]
    for session in sessions:
        session.transport.feed(REQUEST)
    await settle()
    with counted_turns() as turns:
        shutdown = asyncio.create_task(app.shut_down())
        await settle(60)
    assert turns.most <= 64
    for session in sessions:
        await session.end()
    await shutdown
