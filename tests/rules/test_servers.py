"""Where servers differ: the table of the README, row by row, found out by asking each server."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeAlias

import psutil
import pytest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support import raw
from tests.support.checkout import CHECKOUT
from tests.support.raw import Opcode, dial, upgraded
from tests.support.stacks import GRANIAN, HYPERCORN, SANSIO, WSPROTO, Server, Stack, skip_unless_it_ends, soon, until
from wsdeco import Address, App, Close, ConnectionClosed, DisconnectReason, Sink, Unknown
from wsdeco.testing import HandshakeRefused, ManualClock

Probe: TypeAlias = Callable[[Stack], Awaitable[str]]


class Row(NamedTuple):
    """One difference.

    Attributes:
        subject: What is asked.
        probe: Asks a server; returns its answer.
        answers: What each server answers, in the order of `SERVERS`.
    """

    subject: str
    probe: Probe
    answers: tuple[str, str, str, str]


SERVERS: Final = (SANSIO, WSPROTO, HYPERCORN, GRANIAN)
HEADINGS: Final = ("uvicorn", "uvicorn, `wsproto`", "hypercorn", "granian")


class Journal:
    """What the app has been told, for a probe to wait for."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.events: list[str] = []
        self.ended = asyncio.Event()
        self._reasons: asyncio.Queue[DisconnectReason] = asyncio.Queue()

    def add(self, reason: DisconnectReason) -> None:
        self._reasons.put_nowait(reason)

    async def reason(self) -> DisconnectReason:
        return await soon(self._reasons.get())


@asynccontextmanager
async def served(stack: Stack, **limits: Any) -> AsyncGenerator[tuple[Server, Journal]]:
    """Serve an app that echoes, closes or floods on demand, and tells the journal."""
    app = App()
    journal = Journal()

    @app.handler("/ws", **limits)
    class Probed:  # pyright: ignore[reportUnusedClass]
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            if sink.query_params.get("refuse"):
                raise HTTPException(418, "teapot", headers={"X-Brand": "Utah"})
            await sink.accept(headers={"X-Brand": "Utah"})

        async def on_message(self, message: str | bytes) -> str | bytes | None:
            journal.messages.append(message)
            if message == "close":
                await self.sink.close(4005, "mine")
            elif message == "flood":
                for _ in range(1024):
                    await self.sink.send(bytes(65536))
            elif message == "slow":
                await until(lambda: self.sink.closed)
            else:
                return message
            return None

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            journal.add(reason)

    async with stack.serve(watched(app, journal)) as server:
        yield server, journal


def watched(app: ASGIApp, journal: Journal) -> ASGIApp:
    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        async def watching_receive() -> Message:
            message = await receive()
            journal.events.append(message["type"])
            return message

        if scope["type"] != "websocket":
            await app(scope, receive, send)
            return
        try:
            # `receive` itself is left alone where it is not looked at: its transport is found through it.
            await app(scope, receive if scope["path"] == "/ws" else watching_receive, send)
        finally:
            journal.ended.set()

    return watching


async def refusal(stack: Stack) -> str:
    async with served(stack) as (server, _):
        with pytest.raises(HandshakeRefused) as caught:
            async with server.connect("/ws?refuse=yes"):
                pass
    refused = caught.value
    complete = (refused.status, refused.body, refused.headers.get("x-brand")) == (418, b"teapot", "Utah")
    return "yes" if complete else str(refused.status)


async def accept_headers(stack: Stack) -> str:
    async with served(stack) as (server, _), server.connect("/ws") as peer:
        return "yes" if ("x-brand", "Utah") in peer.headers else "dropped"


async def peer_close(stack: Stack) -> str:
    async with served(stack) as (server, journal):
        async with server.connect("/ws") as peer:
            await peer.close(4001, "bye")
        return shown(await journal.reason())


async def peer_close_without_code(stack: Stack) -> str:
    async with served(stack) as (server, journal), upgraded(server, "/ws") as peer:
        await peer.write(raw.close(None))
        return shown(await journal.reason())


async def lost(stack: Stack) -> str:
    async with served(stack) as (server, journal):
        async with upgraded(server, "/ws") as peer:
            await peer.write(raw.text("x"))
            await peer.frame()
        return shown(await journal.reason())


async def lost_before_the_upgrade(stack: Stack) -> str:
    clock = ManualClock()
    app = App(clock=clock)
    journal = Journal()

    @app.handler("/ws", connect_timeout=10, disconnect_grace=0)
    class Slow:  # pyright: ignore[reportUnusedClass]
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            journal.ended.set()
            await asyncio.Event().wait()

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            journal.add(reason)

    async with stack.serve(app) as server:
        async with dial(server) as peer:
            await peer.write(raw.handshake("/ws"))
            await soon(journal.ended.wait())
        if not stack.tells_early_loss:
            await clock.advance(10)
        await clock.settle()
        reason = await journal.reason()
    return "noticed at once" if reason == Unknown() else "noticed at the upgrade"


async def own_close(stack: Stack) -> str:
    async with served(stack) as (server, _), server.connect("/ws") as peer:
        await peer.send("close")
        with pytest.raises(ConnectionClosed) as caught:
            await peer.receive()
    return shown(caught.value.reason)


async def violation(stack: Stack) -> str:
    async with served(stack) as (server, journal), upgraded(server, "/ws") as peer:
        await peer.write(raw.frame(3))
        code = await peer.close_code()
        return f"{'no close frame' if code is None else code or 'no code'}; {shown(await journal.reason())}"


async def messages_before_a_violation(stack: Stack) -> str:
    async with served(stack) as (server, journal), upgraded(server, "/ws") as peer:
        await peer.write(raw.text("complete") + raw.frame(3))
        await journal.reason()
    return "delivered" if journal.messages else "lost"


async def message_behind_the_handshake(stack: Stack) -> str:
    async with served(stack) as (server, journal), dial(server) as peer:
        await peer.write(raw.handshake("/ws") + raw.text("first"))
        if (status := await peer.status()) != 101:
            return f"refused with {status}"
        await peer.write(raw.text("second") + raw.close(1000))
        await journal.reason()
    return "delivered" if journal.messages == ["first", "second"] else "lost"


async def reply_to_a_half_closed_peer(stack: Stack) -> str:
    async with served(stack) as (server, journal), upgraded(server, "/ws") as peer:
        await peer.write(raw.text("slow"))
        await until(lambda: bool(journal.messages))
        peer.writer.write_eof()
        reason = await journal.reason()
        await peer.at_end()
    return "lost" if reason == Unknown() else "sent"


async def send_to_a_peer_that_does_not_read(stack: Stack) -> str:
    limits = {"send_timeout": 0.2, "close_timeout": 0.1}
    async with served(stack, **limits) as (server, journal), upgraded(server, "/ws", receive_buffer=4096) as peer:
        await peer.write(raw.text("flood") + raw.text("close"))
        reason = await journal.reason()
    # Where every send returns at once, 64 MiB are soon in the memory of the server, and the next message has its turn.
    return "waits" if reason == Close(1013, "slow consumer", by="server") else "returns"


async def abort(stack: Stack) -> str:
    limits = {"send_timeout": 0.1, "close_timeout": 0.1}
    async with served(stack, **limits) as (server, journal), upgraded(server, "/ws", receive_buffer=4096) as peer:
        await peer.write(raw.text("flood"))
        assert isinstance(await journal.reason(), Close)
        await soon(journal.ended.wait())
        # What uvicorn drops is gone at once; the others hold on to it until the peer reads or leaves.
        if stack.aborts:
            await until(lambda: open_connections(server) == 0)
        return "dropped" if open_connections(server) == 0 else "held until it leaves"


def open_connections(server: Server) -> int:
    """Return how many connections the server's side of this process holds."""
    connections = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == server.port for each in connections if each.status != psutil.CONN_LISTEN)


async def shutdown_seen_by_the_client(stack: Stack) -> str:
    async with served(stack, close_timeout=0.1) as (server, _), upgraded(server, "/ws") as peer:
        await peer.write(raw.text("x"))
        await peer.frame()
        stopping = asyncio.create_task(server.stop())
        code = await peer.close_code()
        # Without an answer uvicorn waits for the end of the transport.
        await peer.write(raw.close(1012)) if code is not None else None
        peer.reset()
        await soon(stopping)
    return "no close frame" if code is None else str(code)


async def shutdown_seen_by_hooks(stack: Stack) -> str:
    async with served(stack, close_timeout=0.1) as (server, journal), upgraded(server, "/ws") as peer:
        await peer.write(raw.text("x"))
        await peer.frame()
        stopping = asyncio.create_task(server.stop())
        reason = await journal.reason()
        peer.reset()
        await soon(stopping)
    return shown(reason)


async def pings(stack: Stack) -> str:
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] not in {"websocket.disconnect", "lifespan.shutdown"}:
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
                continue
            events.append(message["type"])
            await send({"type": "websocket.accept"} if len(events) == 1 else {"type": "websocket.send", "text": "x"})
        if message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})

    async with stack.serve(app) as server, upgraded(server, "/") as peer:
        await peer.write(raw.frame(Opcode.PING, b"payload") + raw.text("x"))
        received = {await peer.frame(), await peer.frame()}
        assert received == {(Opcode.PONG, b"payload"), (Opcode.TEXT, b"x")}
        await peer.write(raw.close(1000))
        await peer.at_end()
    return "answered, hidden" if events == ["websocket.connect", "websocket.receive"] else "shown"


def shown(reason: DisconnectReason) -> str:
    """Return a reason as the table writes it."""
    match reason:
        case Close(code, text, by):
            return f'`Close({code}, "{text}", by="{by}")`' if text else f'`Close({code}, by="{by}")`'
        case _:
            return f"`{reason!r}`"


UNKNOWN: Final = "`Unknown()`"
OWN: Final = '`Close(4005, "mine", by="server")`'
RESTART: Final = '`Close(1012, by="server")`'
RESTART_WITH_TEXT: Final = '`Close(1012, "service restart", by="server")`'

TABLE: Final = (
    Row("a refusal with any HTTP status, header fields and body", refusal, ("yes", "yes", "yes", "yes")),
    Row('`sink.accept(headers={"X-Brand": "Utah"})`', accept_headers, ("yes", "yes", "yes", "dropped")),
    Row(
        'the peer closes with `4001, "bye"`',
        peer_close,
        (
            '`Close(4001, "bye", by="client")`',
            '`Close(4001, "bye", by="client")`',
            UNKNOWN,
            '`Close(4001, by="client")`',
        ),
    ),
    Row(
        "the peer closes without a code",
        peer_close_without_code,
        ('`Close(1005, by="client")`', '`Close(1005, by="client")`', UNKNOWN, UNKNOWN),
    ),
    Row("the transport is lost", lost, (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)),
    Row(
        "a client leaves while `on_connect` runs",
        lost_before_the_upgrade,
        ("noticed at once", "noticed at once", "noticed at once", "noticed at the upgrade"),
    ),
    Row('what the peer sees of `sink.close(4005, "mine")`', own_close, (OWN, OWN, OWN, OWN)),
    Row(
        "the peer violates the protocol: the code it sees, and the reason",
        violation,
        (
            '1002; `Close(1002, "invalid opcode", by="server")`',
            'no close frame; `Close(1002, "Invalid opcode 0x3", by="server")`',
            f"no close frame; {UNKNOWN}",
            f"no code; {UNKNOWN}",
        ),
    ),
    Row(
        "a complete message in the same segment, before that",
        messages_before_a_violation,
        ("lost", "delivered", "delivered", "delivered"),
    ),
    Row(
        "a message in the same segment as the handshake",
        message_behind_the_handshake,
        ("lost", "lost", "refused with 400", "delivered"),
    ),
    Row("the reply to a peer that has half-closed", reply_to_a_half_closed_peer, ("lost", "lost", "lost", "lost")),
    Row(
        "`await sink.send(...)` to a peer that does not read",
        send_to_a_peer_that_does_not_read,
        ("waits", "waits", "waits", "waits"),
    ),
    Row(
        "a peer that does not read, after `send_timeout`",
        abort,
        ("dropped", "dropped", "held until it leaves", "held until it leaves"),
    ),
    Row(
        "shutdown of the server: the code clients see",
        shutdown_seen_by_the_client,
        ("1012", "1012", "1012", "no close frame"),
    ),
    Row(
        "shutdown of the server: the reason hooks get",
        shutdown_seen_by_hooks,
        (RESTART, RESTART, RESTART_WITH_TEXT, RESTART_WITH_TEXT),
    ),
    Row(
        "pings of the peer",
        pings,
        ("answered, hidden", "answered, hidden", "answered, hidden", "answered, hidden"),
    ),
)


def markdown() -> str:
    """Return the table as the README shows it."""
    lines = [("", *HEADINGS), ("---",) * (len(HEADINGS) + 1), *((row.subject, *row.answers) for row in TABLE)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


@pytest.mark.parametrize("server", SERVERS, ids=lambda stack: stack.name)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.probe.__name__)
async def test_what_each_server_does(row: Row, server: Stack) -> None:
    if row.probe in (shutdown_seen_by_the_client, shutdown_seen_by_hooks):
        skip_unless_it_ends(server)
    assert await row.probe(server) == row.answers[SERVERS.index(server)]


def answers_to(probe: Probe) -> dict[str, str]:
    answers = next(row.answers for row in TABLE if row.probe is probe)
    return {server.name: answer for server, answer in zip(SERVERS, answers, strict=True)}


@pytest.mark.parametrize("server", SERVERS, ids=lambda stack: stack.name)
def test_the_flags_of_the_other_tests_say_the_same(server: Stack) -> None:
    name = server.name
    assert server.shows_close == (answers_to(peer_close)[name] != UNKNOWN)
    assert server.shows_close_text == ("bye" in answers_to(peer_close)[name])
    assert server.accept_headers == (answers_to(accept_headers)[name] == "yes")
    assert server.tells_early_loss == (answers_to(lost_before_the_upgrade)[name] == "noticed at once")
    assert server.aborts == (answers_to(abort)[name] == "dropped")
    assert server.shuts_down_1012 == (answers_to(shutdown_seen_by_the_client)[name] == "1012")


def test_the_readme_shows_the_table() -> None:
    readme = CHECKOUT / "README.md"
    assert markdown() in readme.read_text("utf-8")
