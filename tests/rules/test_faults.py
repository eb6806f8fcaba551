"""Specific faults, on real servers: what clients do to a server, and what hooks do to themselves."""

import asyncio
import gc
import logging
import os
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

import psutil
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support import raw
from tests.support.raw import Opcode, RawPeer, dial, upgraded
from tests.support.recording import Journal, Recorder, admitted, closing, refusal, take_errors
from tests.support.stacks import (
    DIRECT,
    GRANIAN,
    HYPERCORN,
    SANSIO,
    WSPROTO,
    Server,
    Stack,
    skip_unless_it_ends,
    soon,
    until,
    uvicorn_serve,
)
from tests.support.wire import slots_taken
from wsdeco import Address, App, Close, ConnectionClosed, DisconnectReason, Error, Sink, Timeout, Unknown
from wsdeco.testing import ManualClock

pytestmark = pytest.mark.usefixtures("no_errors_logged")

NETWORK: Final = (DIRECT, SANSIO, WSPROTO, HYPERCORN, GRANIAN)
UVICORN: Final = (DIRECT, SANSIO, WSPROTO)

on_network = pytest.mark.parametrize("stack", NETWORK, ids=lambda stack: stack.name)
on_uvicorn = pytest.mark.parametrize("stack", UVICORN, ids=lambda stack: stack.name)


def app_of(
    journal: Journal, handler: type[Recorder] = Recorder, clock: ManualClock | None = None, **limits: Any
) -> App:
    """Return an app that serves `handler` on /ws."""
    app = App(clock=clock)
    app.add("/ws", handler, factory=lambda headers: handler(journal), **limits)
    return app


def server_connections(server: Server) -> list[str]:
    """Return the TCP states of the connections that the server's side of this process holds."""
    connections = psutil.Process().net_connections("tcp")
    ours = [each for each in connections if each.laddr.port == server.port]
    return [each.status for each in ours if each.status != psutil.CONN_LISTEN]


class Echo(Recorder):
    async def on_message(self, message: str | bytes) -> str | bytes | None:
        return message


class Waiting(Recorder):
    """Stays in its hook until it is cancelled."""

    async def on_message(self, message: str | bytes) -> None:
        self.journal.add(message)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.journal.add("cancelled")
            raise


# Clients that vanish.


class Talking(Recorder):
    """Sends for as long as somebody is there."""

    async def on_message(self, message: str | bytes) -> None:
        while True:
            await self.sink.send(message)
            await asyncio.sleep(0)


@on_network
@pytest.mark.parametrize("moment", ["idle", "in a frame", "in a message", "in a hook", "while it is sent to"])
@pytest.mark.parametrize("end", ["RST", "FIN"])
async def test_a_client_that_vanishes(stack: Stack, moment: str, end: str) -> None:
    journal = Journal()
    handler = {"in a hook": Waiting, "while it is sent to": Talking}.get(moment, Recorder)
    app = app_of(journal, handler, max_connections=1, disconnect_grace=0)
    async with stack.serve(app) as server, upgraded(server, "/ws") as peer:
        assert await journal.next() == "connect"
        match moment:
            case "in a frame":
                await peer.write(raw.text("message")[:-1])
            case "in a message":
                await peer.write(raw.frame(Opcode.TEXT, b"begun", fin=False))
            case "in a hook":
                await peer.write(raw.text("x"))
                assert await journal.next() == "x"
            case "while it is sent to":
                await peer.write(raw.text("x"))
                assert await peer.frame() == (Opcode.TEXT, b"x")
            case _:
                pass
        if end == "RST":
            peer.reset()
        else:
            peer.writer.write_eof()
        if moment == "in a hook":
            assert await journal.next() == "cancelled"
        assert await journal.next() == Unknown()
        await until(lambda: slots_taken(app) == 0)
        await peer.at_end()
        if stack is not HYPERCORN:
            # It holds on to the connection for its keep_alive_timeout.
            await until(lambda: server_connections(server) == [])
    assert journal.ended()


@on_uvicorn
async def test_the_reply_to_a_client_that_half_closes(stack: Stack) -> None:
    journal = Journal()
    async with stack.serve(app_of(journal, Echo)) as server, upgraded(server, "/ws") as peer:
        assert await journal.next() == "connect"
        await peer.write(raw.text("request"))
        peer.writer.write_eof()
        assert await peer.frame() == (Opcode.TEXT, b"request")
        assert await peer.frame() is None
        assert await journal.next() == Unknown()
        await until(lambda: server_connections(server) == [])
    assert journal.ended()


class Held(Recorder):
    """Handles no message before the test says so."""

    release: asyncio.Event

    async def on_message(self, message: str | bytes) -> None:
        await self.release.wait()
        self.journal.add(message)


@on_network
@pytest.mark.parametrize("end", ["RST", "FIN", "Close 4001"])
async def test_messages_before_the_end_reach_a_slow_hook(stack: Stack, end: str) -> None:
    journal = Journal()

    class Slow(Held):
        release = asyncio.Event()

    sent = [str(number) for number in range(50)]
    async with stack.serve(app_of(journal, Slow)) as server, upgraded(server, "/ws") as peer:
        assert await journal.next() == "connect"
        await peer.write(b"".join(raw.text(message) for message in sent))
        # Its pong says that what came before has arrived: what an RST finds unread, the system throws away.
        await peer.write(raw.frame(Opcode.PING))
        assert await peer.frame() == (Opcode.PONG, b"")
        match end:
            case "RST":
                peer.reset()
            case "FIN":
                peer.writer.write_eof()
            case _:
                await peer.write(raw.close(4001, "bye"))
        assert journal.ended()
        Slow.release.set()
        assert await journal.take(50) == sent
        assert await journal.next() == (stack.peer_closed(4001, "bye") if end == "Close 4001" else Unknown())
    assert journal.ended()


@on_network
async def test_an_error_in_the_middle_of_a_batch(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()

    class Fails(Recorder):
        async def on_message(self, message: str | bytes) -> str | bytes | None:
            if message == "30":
                raise ZeroDivisionError("secret")
            return message

    async with stack.serve(app_of(journal, Fails)) as server:
        async with upgraded(server, "/ws") as peer:
            await peer.write(b"".join(raw.text(str(number)) for number in range(50)))
            for number in range(30):
                assert await peer.frame() == (Opcode.TEXT, str(number).encode())
            assert await peer.frame() == (Opcode.CLOSE, (1011).to_bytes(2) + b"internal error")
            await peer.write(raw.close(1011))
        assert await journal.next() == "connect"
        assert isinstance(await journal.next(), Error)
    assert journal.ended()
    assert len(take_errors(caplog)) == 1


# Storms.


class Crowd:
    """Clients of bytes."""

    def __init__(self, server: Server, connections: AsyncExitStack) -> None:
        self._server = server
        self._connections = connections
        self.inside: list[RawPeer] = []
        self.statuses: list[int] = []

    async def knock(self) -> None:
        peer = await self._connections.enter_async_context(dial(self._server))
        await peer.write(raw.handshake("/ws"))
        status = await peer.status()
        self.statuses.append(status)
        if status == 101:
            self.inside.append(peer)

    async def rush(self, number: int) -> None:
        await asyncio.gather(*(self.knock() for _ in range(number)))

    async def leave(self, app: App) -> None:
        for index, peer in enumerate(self.inside):
            if index % 2:
                peer.reset()
            else:
                await peer.write(raw.close(1000))
        self.inside.clear()
        await until(lambda: slots_taken(app) == 0)


@on_network
async def test_two_hundred_rush_a_route_of_fifty(stack: Stack) -> None:
    journal = Journal()
    app = app_of(journal, max_connections=50)
    async with stack.serve(app) as server:
        for _ in range(2):
            async with AsyncExitStack() as connections:
                crowd = Crowd(server, connections)
                await crowd.rush(200)
                assert sorted(crowd.statuses) == [101] * 50 + [503] * 150
                await crowd.leave(app)
        entries = await journal.take(200)
    assert entries.count("connect") == 100
    assert journal.ended()


async def die_in_the_header(server: Server) -> None:
    async with dial(server) as peer:
        await peer.write(raw.handshake("/ws")[:40])


async def die_behind_the_header(server: Server) -> None:
    async with dial(server) as peer:
        await peer.write(raw.handshake("/ws"))


async def die_behind_the_upgrade(server: Server) -> None:
    async with dial(server) as peer:
        await peer.write(raw.handshake("/ws"))
        await peer.status()


@on_network
async def test_clients_die_at_every_stage_of_a_storm(stack: Stack) -> None:
    journal = Journal()
    entered: list[None] = []
    doors = asyncio.Event()

    class Doorman(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            entered.append(None)
            await doors.wait()

    clock = ManualClock()
    app = app_of(journal, Doorman, clock, max_connections=50, disconnect_grace=0, connect_timeout=10)
    async with stack.serve(app) as server:
        # Fifty wait in on_connect, more are turned away, and all of them die.
        async with AsyncExitStack() as connections:
            for _ in range(50):
                peer = await connections.enter_async_context(dial(server))
                await peer.write(raw.handshake("/ws"))
            await until(lambda: slots_taken(app) == 50)
            ways = (die_in_the_header, die_behind_the_header, die_behind_the_upgrade)
            await asyncio.gather(*(way(server) for way in ways for _ in range(25)))
            assert (await refusal(server, "/ws")).status == 503
        if not stack.tells_early_loss:
            await clock.advance(10)
        await until(lambda: slots_taken(app) == 0)
        # Where there is room they die as well, and then all of it is there again.
        doors.set()
        await asyncio.gather(*(way(server) for way in ways for _ in range(15)))
        await until(lambda: slots_taken(app) == 0)
        async with AsyncExitStack() as connections:
            crowd = Crowd(server, connections)
            await crowd.rush(60)
            assert sorted(crowd.statuses) == [101] * 50 + [503] * 10
            await crowd.leave(app)
        # Each that entered has left: those in on_connect as well, and once.
        for _ in entered:
            assert not isinstance(await journal.next(), str)
    assert journal.ended()


# Hooks that harm themselves.


@on_network
async def test_a_hook_that_swallows_its_cancellation_once(stack: Stack) -> None:
    journal = Journal()
    clock = ManualClock()

    class Stubborn(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            for attempt in ("first", "second"):
                try:
                    self.journal.add(f"waits for the {attempt}")
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.journal.add(f"the {attempt} cancellation")
                    if attempt == "second":
                        raise

    app = app_of(journal, Stubborn, clock, disconnect_grace=5, max_connections=1)
    async with stack.serve(app) as server:
        async with upgraded(server, "/ws") as peer:
            await peer.write(raw.text("x"))
            assert await journal.take(2) == ["connect", "waits for the first"]
            peer.reset()
        # The clock of the server's side stands still until it has seen the end.
        while journal.ended():
            await clock.advance(5)
        assert await journal.take(2) == ["the first cancellation", "waits for the second"]
        await clock.advance(1)
        assert await journal.take(2) == ["the second cancellation", Unknown()]
        async with admitted(server, "/ws"):
            assert await journal.next() == "connect"
        assert await journal.next() == stack.peer_closed(1000)
    assert journal.ended()


@on_network
@pytest.mark.parametrize("sends_first", [False, True])
async def test_on_connect_fails_when_the_client_has_gone(
    stack: Stack, sends_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()
    gone = asyncio.Event()
    told = sends_first or stack.tells_early_loss

    class Fails(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            if sends_first:
                await sink.send("hello")
            self.journal.add(sink)
            await gone.wait()
            if told:
                await until(lambda: sink.closed)
            raise ZeroDivisionError("secret")

    app = app_of(journal, Fails, max_connections=1)
    async with stack.serve(app) as server:
        async with dial(server) as peer:
            await peer.write(raw.handshake("/ws"))
            sink: Sink = await journal.next()
        gone.set()
        # What ended the connection first is the reason, and the failure is logged all the same.
        reason = await journal.next()
        assert reason == sink.reason
        assert isinstance(reason, Unknown if told else Error)
        await until(lambda: slots_taken(app) == 0)
    assert journal.ended()
    assert len(take_errors(caplog)) == 1


@on_network
async def test_shutdown_while_hooks_sleep_for_ever(stack: Stack) -> None:
    skip_unless_it_ends(stack)
    journal = Journal()
    async with stack.serve(app_of(journal, Waiting, close_timeout=0.2)) as server, AsyncExitStack() as connections:
        for _ in range(10):
            peer = await connections.enter_async_context(upgraded(server, "/ws"))
            await peer.write(raw.text("x"))
        entries = await journal.take(20)
        assert (entries.count("connect"), entries.count("x")) == (10, 10)
        stopping = asyncio.create_task(server.stop())
        # What wsdeco does is over now; uvicorn itself waits for clients that do not answer its close frame.
        entries = await journal.take(20)
        assert entries.count("cancelled") == 10
        reasons = [entry for entry in entries if isinstance(entry, Close)]
        assert {(reason.code, reason.by) for reason in reasons} == {(1012, "server")}
        await connections.aclose()
        await soon(stopping)
    assert journal.ended()


# Peers that do not read.


class Levels:
    """Wraps an app to see how much waits in the transports of uvicorn."""

    def __init__(self, app: ASGIApp) -> None:
        self.highest = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        protocol: Any = getattr(receive, "__self__", None)

        async def watching_send(message: Message) -> None:
            await send(message)
            self.highest = max(self.highest, protocol.transport.get_write_buffer_size())

        # `receive` stays as it is: through it the transport is found that may have to be aborted.
        await self._app(scope, receive, watching_send)


CHUNK: Final = 64 * 1024


@on_uvicorn
async def test_a_broadcast_does_not_wait_for_a_member_that_does_not_read(stack: Stack) -> None:
    journal = Journal()
    clock = ManualClock()
    sinks: list[Sink] = []

    class Member(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sinks.append(sink)
            await super().on_connect(addr, sink)

    app = app_of(journal, Member, clock, max_outbox=4 * CHUNK, close_timeout=10)
    levels = Levels(app)
    async with stack.serve(levels) as server, AsyncExitStack() as connections:
        stalled = await connections.enter_async_context(upgraded(server, "/ws", receive_buffer=4096))
        assert await journal.next() == "connect"
        others = [await connections.enter_async_context(upgraded(server, "/ws")) for _ in range(4)]
        assert await journal.take(4) == ["connect"] * 4
        slow, *healthy = sinks
        rounds = 0
        while not slow.closed:
            chunk = rounds.to_bytes(4) + bytes(CHUNK - 4)
            rounds += 1
            slow.send_nowait(chunk)
            assert all(sink.send_nowait(chunk) for sink in healthy)
            # Each of the others has the whole round before the next one begins, whatever the stalled one does.
            assert [await peer.frame() for peer in others] == [(Opcode.BINARY, chunk)] * 4
        assert await journal.next() == Close(1013, "slow consumer", by="server")
        assert slow.send_nowait(b"x") is False
        # What the system's own buffers hold, the transport's high-water mark and one message, and the outbox.
        assert levels.highest <= 2 * CHUNK + 1024
        assert len(server_connections(server)) == 5
        await clock.advance(10)
        await until(lambda: len(server_connections(server)) == 4)
        del stalled
    assert sorted(map(str, await journal.take(4))) == ["connection lost without a close frame"] * 4
    assert journal.ended()


@on_network
async def test_a_send_to_a_peer_that_does_not_read_is_given_up(stack: Stack) -> None:
    journal = Journal()
    clock = ManualClock()

    class Flood(Recorder):
        async def on_message(self, message: str | bytes) -> str | bytes | None:
            if message != "flood":
                return message
            sent = 0
            try:
                while True:
                    await self.sink.send(bytes(CHUNK))
                    sent += CHUNK
                    self.journal.add(sent)
            finally:
                self.journal.add("over")

    app = app_of(journal, Flood, clock, send_timeout=20, close_timeout=5, max_connections=2)
    async with stack.serve(app) as server:
        async with upgraded(server, "/ws", receive_buffer=4096) as stalled, server.connect("/ws") as other:
            await stalled.write(raw.text("flood"))
            progress = 0
            while progress < 1 << 30:
                # While nothing moves, the others are served; that it does not move is seen by the clock alone.
                for _ in range(10):
                    await other.send("x")
                    assert await other.receive() == "x"
                if journal.ended():
                    break
                while not journal.ended():
                    entry = await journal.next()
                    progress = entry if isinstance(entry, int) else progress
            assert progress < 1 << 30
            await clock.advance(19)
            await other.send("y")
            assert await other.receive() == "y"
            while isinstance(entry := await next_after(journal, clock), int):
                pass
            assert entry == "over"
            assert await journal.next() == Close(1013, "slow consumer", by="server")
            await clock.advance(5)
            await until(lambda: slots_taken(app) == 1)
            if stack.aborts:
                await until(lambda: len(server_connections(server)) == 1)
            await other.close()
        await journal.next()
    assert journal.ended()


async def next_after(journal: Journal, clock: ManualClock) -> Any:
    """Return the next entry; the clock goes on until there is one."""
    async with asyncio.timeout(10):
        while journal.ended():
            await clock.advance(1)
    return await journal.next()


@on_network
async def test_a_peer_that_stops_reading_and_goes_on_misses_nothing(stack: Stack) -> None:
    journal = Journal()

    class Source(Recorder):
        async def on_message(self, message: str | bytes) -> AsyncGenerator[bytes]:  # type: ignore[override]
            for number in range(64):
                yield number.to_bytes(4) + bytes(CHUNK - 4)

    async with stack.serve(app_of(journal, Source)) as server:
        async with upgraded(server, "/ws", receive_buffer=4096) as stopped, upgraded(server, "/ws") as other:
            await stopped.write(raw.text("x"))
            await other.write(raw.text("x"))
            for peer in (other, stopped):
                for number in range(64):
                    assert await peer.frame() == (Opcode.BINARY, number.to_bytes(4) + bytes(CHUNK - 4))
                await peer.write(raw.close(1000))
                await peer.at_end()
        await journal.take(4)
    assert journal.ended()


# Fast producers, slow hooks.


class Backlog:
    """Wraps an app to see how many messages it has taken from the server."""

    def __init__(self, app: ASGIApp) -> None:
        self.taken = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting_receive() -> Message:
            message = await receive()
            self.taken += message["type"] == "websocket.receive"
            return message

        await self._app(scope, counting_receive, send)


@on_network
async def test_the_inbox_is_bounded_whatever_the_client_sends(stack: Stack) -> None:
    journal = Journal()
    number_of_messages = 20_000 if stack is SANSIO else 5_000
    numbers: list[int] = []
    waiting: list[int] = []

    class Slower(Recorder):
        async def on_message(self, message: str | bytes) -> str | bytes | None:
            await asyncio.sleep(0)
            waiting.append(backlog.taken - len(numbers))
            numbers.append(int(message))
            return "done" if len(numbers) == number_of_messages else None

    backlog = Backlog(app_of(journal, Slower, max_inbox=4096))
    async with stack.serve(backlog) as server:
        async with upgraded(server, "/ws") as peer:
            data = b"".join(raw.text(str(number)) for number in range(number_of_messages))
            await asyncio.gather(peer.write(data), expect(peer, "done"))
            assert numbers == list(range(number_of_messages))
            # No `str` takes less than an empty one; one more has arrived before the inbox is found full.
            assert max(waiting) <= 4096 // sys.getsizeof("") + 2
        assert await journal.take(2) == ["connect", Unknown()]
    assert journal.ended()


async def expect(peer: RawPeer, message: str) -> None:
    assert await peer.frame() == (Opcode.TEXT, message.encode())


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
async def test_keepalive_spares_a_healthy_client_of_a_slow_hook(ws: str) -> None:
    journal = Journal()

    class Slow(Recorder):
        async def on_message(self, message: str | bytes) -> str | bytes | None:
            # Five times as long as a client may owe its pong.
            await asyncio.sleep(0.5 if message == "0" else 0)
            return message

    serve = uvicorn_serve(ws, ws_ping_interval=0.1, ws_ping_timeout=0.1)
    async with serve(app_of(journal, Slow)) as server:
        async with server.connect("/ws") as peer:
            for number in range(20):
                await peer.send(str(number))
            assert [await peer.receive() for _ in range(20)] == [str(number) for number in range(20)]
            await peer.close(4001, "bye")
        assert await journal.take(2) == ["connect", Close(4001, "bye", by="client")]
        # One that owes its pong is dropped, or the test above would show nothing.
        async with upgraded(server, "/ws") as silent:
            assert await silent.close_code() == 1011
        assert await journal.take(2) == ["connect", Unknown()]
    assert journal.ended()


# After the end.


def code_at_the_end(reason: DisconnectReason, end: str) -> int:
    """Return the close code that goes with the reason, which has to be that of this end."""
    if isinstance(reason, Timeout):
        assert reason.limit == end
        return 1001
    code = 1013 if end == "slow consumer" else 1012
    assert isinstance(reason, Close)
    assert (reason.code, reason.by) == (code, "server")
    return code


@on_uvicorn
@pytest.mark.parametrize("end", ["idle_timeout", "max_connection_duration", "slow consumer", "shutdown", "app"])
async def test_a_send_after_the_end_raises(stack: Stack, end: str) -> None:
    journal = Journal()
    # On our own protocol the last frame has come at a time of the event loop's clock.
    direct_idle = stack is DIRECT and end == "idle_timeout"
    clock = None if direct_idle else ManualClock()

    class Late(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            self.journal.add(sink)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            with pytest.raises(ConnectionClosed) as caught:
                await self.sink.send("too late")
            assert caught.value.reason == reason
            assert self.sink.send_nowait("too late") is False
            self.journal.add(reason)

    seconds = 60 if clock is not None else 0.05
    limits: dict[str, Any] = {end: seconds} if end in {"idle_timeout", "max_connection_duration"} else {}
    app = app_of(journal, Late, clock, max_outbox=1000, **limits)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        sink: Sink = await journal.next()
        stopping: Awaitable[None] | None = None
        if end == "slow consumer":
            # Nothing is written before the event loop has its turn.
            assert sink.send_nowait(bytes(1000)) is True
            assert sink.send_nowait(bytes(1000)) is False
        elif end == "shutdown":
            stopping = asyncio.create_task(server.stop())
        elif end == "app":
            stopping = asyncio.create_task(app.shut_down())
        elif clock is not None:
            await clock.advance(60)
        reason = await journal.next()
        code = code_at_the_end(reason, end)
        with pytest.raises(ConnectionClosed):
            await sink.send("too late")
        if stack is DIRECT and end == "slow consumer":
            # It is on its way already, and the close frame behind it.
            assert await peer.receive() == bytes(1000)
        seen = await closing(peer)
        assert isinstance(seen, Close)
        assert seen.code == code
        if stopping is not None:
            await soon(stopping)
    assert journal.ended()


# Nothing stays behind.


Way = Callable[[Server], Awaitable[None]]


async def end_by_close(server: Server) -> None:
    async with upgraded(server, "/ws") as peer:
        await peer.write(raw.text("x") + raw.close(1000))
        await peer.at_end()


async def end_by_reset(server: Server) -> None:
    async with upgraded(server, "/ws") as peer:
        await peer.write(raw.text("x"))


async def end_by_fin_in_a_frame(server: Server) -> None:
    async with upgraded(server, "/ws") as peer:
        await peer.write(raw.text("message")[:5])
        peer.writer.write_eof()
        await peer.at_end()


async def end_by_own_close(server: Server) -> None:
    async with upgraded(server, "/ws") as peer:
        await peer.write(raw.text("close"))
        assert await peer.close_code() == 4002
        await peer.write(raw.close(4002))
        await peer.at_end()


async def end_by_failure(server: Server) -> None:
    async with upgraded(server, "/ws") as peer:
        await peer.write(raw.text("fail"))
        assert await peer.close_code() == 1011
        await peer.write(raw.close(1011))
        await peer.at_end()


async def end_in_the_handshake(server: Server) -> None:
    async with dial(server) as peer:
        await peer.write(raw.handshake("/ws"))


WAYS: Final[tuple[Way, ...]] = (
    end_by_close,
    end_by_reset,
    end_by_fin_in_a_frame,
    end_by_own_close,
    end_by_failure,
    end_in_the_handshake,
)


def held() -> tuple[int, int]:
    """Return how many descriptors and tasks there are."""
    return len(os.listdir("/dev/fd")), len(asyncio.all_tasks())  # noqa: PTH208 - the number is all that is asked


@on_network
async def test_nothing_stays_of_connections_that_die(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    # A traceback in a log record would hold the handler.
    caplog.set_level(logging.CRITICAL + 1, "wsdeco")
    app = App()
    handlers: weakref.WeakSet[Recorder] = weakref.WeakSet()
    counts = {"connect": 0, "disconnect": 0}

    @app.handler("/ws", disconnect_grace=0)
    class Counted:
        def __init__(self) -> None:
            handlers.add(self)  # type: ignore[arg-type]

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            counts["connect"] += 1

        async def on_message(self, message: str) -> None:
            if message == "close":
                await self.sink.close(4002)
            elif message == "fail":
                raise ZeroDivisionError

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            counts["disconnect"] += 1

    async with stack.serve(app) as server:
        await end_by_close(server)
        await until(lambda: server_connections(server) == [])
        await ManualClock().settle()
        before = held()
        for _ in range(3):
            for batch in range(0, 500 if stack is SANSIO else 100, 50):
                await asyncio.gather(*(WAYS[number % 6](server) for number in range(batch, batch + 50)))
            await until(lambda: slots_taken(app) == 0 and server_connections(server) == [])
            await until(lambda: held() == before)
            gc.collect()
            assert list(handlers) == []
            assert counts["connect"] == counts["disconnect"]
