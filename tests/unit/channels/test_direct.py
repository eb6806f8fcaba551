"""The direct channel: what is special about having the protocol right below the hooks."""

import asyncio
import json
import weakref
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.support import raw
from tests.support.in_memory import Session
from tests.support.recording import Journal, Recorder, refusal
from tests.support.stacks import DIRECT, WAIT, soon, until, uvicorn_serve
from wsdeco import (
    App,
    Close,
    ConnectionClosed,
    DisconnectReason,
    Error,
    Sink,
    Unknown,
    WebSocketUpgrade,
    handle_upgrade,
)
from wsdeco.channels.data import Address
from wsdeco.channels.direct import DirectChannel
from wsdeco.config import ConnectionConfig
from wsdeco.connection.lifecycle import Lifecycle
from wsdeco.rooms.rooms import Rooms
from wsdeco.testing import ManualClock
from wsdeco.wire.handshake import Request
from wsdeco.wire.outgoing import Encoded


class Slow(Recorder):
    """Echoes when the loop has gone on for a while."""

    async def on_message(self, message: str | bytes) -> str | bytes | None:
        for _ in range(20):
            await asyncio.sleep(0)
        return message


async def frames_of(peer: raw.RawPeer) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while (frame := await peer.frame()) is not None:
        found.append((frame.opcode, frame.payload))
        if frame.opcode == raw.Opcode.CLOSE:
            break
    return found


@pytest.mark.parametrize(
    ("end", "answer", "reason"),
    [
        (raw.close(4001, "bye"), (8, b"\x0f\xa1bye"), Close(4001, "bye")),
        (raw.close(None), (8, b""), Close(1005, "")),
        (raw.frame(3), (8, b"\x03\xeareserved opcode"), Close(1002, "reserved opcode", by="server")),
    ],
    ids=["close", "close without a code", "fault"],
)
async def test_messages_before_the_end_are_answered_in_one_segment(
    end: bytes, answer: tuple[int, bytes], reason: DisconnectReason
) -> None:
    app, journal = App(), Journal()
    app.add("/ws", Slow, factory=lambda headers: Slow(journal))
    async with DIRECT.serve(app) as server, raw.upgraded(server, "/ws") as peer:
        await peer.write(raw.text("a") + raw.text("b") + end)
        assert await frames_of(peer) == [(1, b"a"), (1, b"b"), answer]
        assert [await journal.next(), await journal.next()] == ["connect", reason]


async def test_a_request_before_a_half_close_is_answered() -> None:
    app, journal = App(), Journal()
    app.add("/ws", Slow, factory=lambda headers: Slow(journal))
    async with DIRECT.serve(app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw.handshake("/ws"))
        await soon(reader.readuntil(b"\r\n\r\n"))
        writer.write(raw.text("req"))
        writer.write_eof()
        assert await soon(reader.read()) == b"\x81\x03req"
        writer.close()
        await writer.wait_closed()
        assert [await journal.next(), await journal.next()] == ["connect", Unknown()]


class Watching:
    """Middleware that sees messages, or only the scope."""

    def __init__(self, app: ASGIApp, wrap: bool) -> None:
        self.app = app
        self.wrap = wrap

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            seen.append(message["type"])
            await send(message)

        await self.app(scope, receive, watched if self.wrap else send)


seen: list[str] = []


@pytest.mark.parametrize("wrap", [True, False])
async def test_a_middleware_that_wraps_send_sees_every_message(wrap: bool) -> None:
    seen.clear()
    app, journal = App(middleware=[Middleware(Watching, wrap=wrap)]), Journal()
    app.add("/ws", Slow, factory=lambda headers: Slow(journal))
    async with DIRECT.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("x")
        assert await peer.receive() == "x"
    of_the_socket = [kind for kind in seen if kind.startswith("websocket.")]
    assert of_the_socket[:2] == (["websocket.accept", "websocket.send"] if wrap else [])


@pytest.mark.parametrize("own_close", [True, False])
async def test_a_mounted_app_keeps_its_callers_until_the_end(own_close: bool) -> None:
    app, journal = App(), Journal()
    app.add("/ws", Slow, factory=lambda headers: Slow(journal), max_connections=1)
    returned = asyncio.Event()

    async def around(scope: Scope, receive: Receive, send: Send) -> None:
        await outer(scope, receive, send)
        if scope["type"] == "websocket":
            returned.set()

    outer = Starlette(routes=[Mount("/live", app)])
    async with DIRECT.serve(around) as server:
        async with server.connect("/live/ws") as peer:
            await journal.next()
            await peer.send("x")
            assert await peer.receive() == "x"
            assert not returned.is_set()
            await peer.close(4001, "bye")
        assert await journal.next() == Close(4001, "bye")
        await soon(returned.wait())


class Stuck:
    """A connection of the protocol that a test drives: its peer reads only when it is told to."""

    def __init__(self) -> None:
        self.app_state: dict[str, Any] = {}
        self.closed = False
        self.close_timeout = 0.0
        self.receiver: Any = None
        self.transport: Any = None
        self.end: Close | Unknown | None = None
        self.last_activity = 0.0
        self.reading_paused = False
        self.request: Request | None = None
        self.senders_wait = False
        self.write_paused = False
        self.handshake_pending = True
        self.unsent = 0
        self.round_trip: float | None = None
        self.wire: list[Any] = []
        self.room = asyncio.Event()
        self.takes_turns = False

    def accept(self, subprotocol: str | None = None, headers: Any = (), **options: Any) -> None:
        self.handshake_pending = False
        self.wire.append(("accept", subprotocol))

    def refuse(self, status: int, headers: Any = (), body: bytes = b"") -> None:
        self.handshake_pending = False
        self.closed = True
        self.wire.append(("refuse", status))

    def set_keepalive(self, interval: float | None, timeout: float | None) -> None:
        self.wire.append(("keepalive", interval))

    def send_message(self, message: str | bytes, *, at_once: bool = False) -> bool:
        if self.takes_turns and not at_once:
            return False
        self.wire.append(message)
        self.unsent += len(message)
        return True

    def write_message(self, message: str | bytes) -> bool:
        self.wire.append(("now", message))
        return not self.closed

    def send_encoded(self, message: Encoded, most_unsent: int) -> bool:
        if self.unsent + message.size > most_unsent:
            return False
        self.wire.append(message)
        self.unsent += len(message.frame)
        return True

    def send_to_all(self, connections: list[Any], message: Encoded) -> list[int]:
        raise NotImplementedError

    async def send_in_turn(self, message: str | bytes | None) -> bool:
        await self.room.wait()
        if message is not None and not self.closed:
            self.send_message(message, at_once=True)
        return not self.closed

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed = True
        self.wire.append(("close", code))

    def finish(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True
        self.room.set()
        self.wire.append("abort")


SCOPE: Scope = {"type": "websocket", "headers": [], "path": "/", "client": None, "subprotocols": []}


async def open_channel(**limits: Any) -> tuple[DirectChannel, Stuck, ManualClock]:
    connection, clock = Stuck(), ManualClock()
    channel = DirectChannel(SCOPE, connection, ConnectionConfig(**limits), clock)
    assert await channel.connect()
    return channel, connection, clock


async def test_messages_before_the_upgrade_wait_for_it() -> None:
    channel, connection, _ = await open_channel(max_outbox=10)
    assert channel.send_nowait("12345")
    assert channel.send_nowait("67890")
    assert connection.wire == []
    await channel.send("next")
    await channel.accept()
    assert connection.wire == [("accept", None), "12345", "67890", "next"]


@pytest.mark.parametrize("early", [True, False])
async def test_a_full_outbox_closes_or_drops(early: bool) -> None:
    for policy, wire in (("drop", []), ("close", [("refuse", 503)] if early else [("close", 1013)])):
        channel, connection, _ = await open_channel(max_outbox=10, slow_consumer=policy)
        if not early:
            await channel.accept()
        assert channel.send_nowait("1234567890")
        connection.wire.clear()
        assert not channel.send_nowait("x")
        assert connection.wire == wire
        assert channel.dropped == (policy == "drop")
        assert channel.closed == (policy == "close")
        assert channel.send_nowait("x") is False


async def test_a_send_waits_for_the_peer_and_gives_it_up_after_send_timeout() -> None:
    channel, connection, clock = await open_channel(send_timeout=5)
    connection.write_paused = True
    task = asyncio.create_task(channel.send("x"))
    await clock.advance(4.9)
    assert not task.done()
    await clock.advance(0.1)
    with pytest.raises(ConnectionClosed, match="slow consumer"):
        await task
    assert connection.wire[-2:] == [("close", 1013), "abort"]
    assert clock.pending == 0


@pytest.mark.parametrize("send_timeout", [None, 5])
async def test_a_send_goes_on_when_the_peer_reads(send_timeout: float | None) -> None:
    channel, connection, clock = await open_channel(send_timeout=send_timeout)
    connection.write_paused = True
    task = asyncio.create_task(channel.send("x"))
    await clock.settle()
    connection.room.set()
    await task
    assert clock.pending == 0


async def test_nothing_is_accepted_or_refused_after_the_end() -> None:
    channel, connection, _ = await open_channel()
    channel.input_ended(Unknown())
    with pytest.raises(ConnectionClosed):
        await channel.accept()
    with pytest.raises(ConnectionClosed):
        await channel.send("x")
    await channel.refuse(401, "no")
    await channel.refuse(401, "no")
    channel.close(1000, "", Close(1000, "", by="server"))
    channel.connection_lost()
    assert connection.wire == [("refuse", 401)]
    assert channel.reason == Unknown()


class EndsAtOnce(Stuck):
    """A peer that sends its close frame behind its handshake, in one segment."""

    def accept(self, subprotocol: str | None = None, headers: Any = (), **options: Any) -> None:
        super().accept(subprotocol, headers, **options)
        self.receiver.input_ended(Close(1000))


@pytest.mark.parametrize(("connection", "members"), [(Stuck(), 1), (EndsAtOnce(), 0)])
async def test_a_peer_that_ends_with_its_handshake_enters_no_room(connection: Stuck, members: int) -> None:
    channel = DirectChannel(SCOPE, connection, ConnectionConfig())
    room = Rooms().of_route("/ws")
    channel.route_room = room
    assert await channel.connect()
    await channel.accept()
    assert len(room.channels) == members
    channel.end(Close(1000))
    assert not room.channels


async def test_a_reply_is_written_at_once_where_nothing_is_in_the_way() -> None:
    channel, connection, _ = await open_channel()
    assert not channel.try_send("early")
    await channel.accept()
    connection.wire.clear()
    assert channel.try_send("a")
    channel.messages_received(["waits"])
    assert channel.try_send("b")
    assert channel.take() == "waits"
    connection.senders_wait = True
    assert not channel.try_send("c")
    connection.senders_wait = False
    connection.closed = True
    assert not channel.try_send("d")
    assert connection.wire == [("now", "a"), "b"]


async def test_a_message_that_takes_turns_is_waited_for_unless_nobody_can_wait() -> None:
    channel, connection, _ = await open_channel()
    await channel.accept()
    connection.wire.clear()
    connection.takes_turns = True
    channel.messages_received(["waits"])
    assert not channel.try_send("reply")
    assert channel.send_nowait("at once")
    sending = asyncio.ensure_future(channel.send("in turn"))
    await asyncio.sleep(0)
    assert connection.wire == ["at once"]
    connection.room.set()
    await sending
    assert connection.wire == ["at once", "in turn"]


async def test_a_reply_whose_write_finds_the_transport_closed_is_not_sent() -> None:
    class Failing(Stuck):
        def write_message(self, message: str | bytes) -> bool:
            self.closed = True
            return super().write_message(message)

    channel = DirectChannel(SCOPE, Failing(), ConnectionConfig(), ManualClock())
    await channel.accept()
    assert not channel.try_send("a")


@pytest.mark.parametrize(("closes", "wire"), [(1011, [("refuse", 500)]), (1012, [("refuse", 503)])])
async def test_an_end_before_the_upgrade_is_a_refusal(closes: int, wire: list[Any]) -> None:
    channel, connection, _ = await open_channel()
    reason = Error("failed") if closes == 1011 else Close(1012, "", by="server")
    channel.close(closes, "", reason)
    assert connection.wire == wire
    connection.handshake_pending = False
    again, silent, _ = await open_channel()
    silent.handshake_pending = False
    again.close(closes, "", reason)
    assert silent.wire == []


async def test_a_full_inbox_pauses_reading_and_taking_messages_resumes_it() -> None:
    channel, connection, _ = await open_channel(max_inbox=1000)
    await channel.accept()
    channel.messages_received(["x" * 600, "y" * 600])
    assert connection.reading_paused
    assert await channel.receive() == "x" * 600
    assert connection.reading_paused
    assert await channel.receive() == "y" * 600
    assert not connection.reading_paused
    channel.messages_received(["x" * 2000])
    assert connection.reading_paused
    channel.input_ended(Close(1000, ""))
    channel.messages_received(["late"])
    channel.discard_inbox()
    assert not connection.reading_paused
    assert channel.undelivered == 2
    assert await channel.receive() is None
    assert connection.closed
    channel.release()


async def test_a_peer_that_has_gone_before_is_not_connected() -> None:
    connection = Stuck()
    connection.end = Unknown()
    channel = DirectChannel(SCOPE, connection, ConnectionConfig())
    assert not await channel.connect()
    await channel.read()


async def test_the_last_frame_is_that_of_the_protocol() -> None:
    channel, connection, clock = await open_channel()
    await clock.advance(10)
    connection.last_activity = 7.0
    assert channel.last_frame_at == 7.0


async def test_ten_connections_hold_no_task_of_the_server() -> None:
    app, journal = App(), Journal()
    app.add("/ws", Slow, factory=lambda headers: Slow(journal), max_connections=10)
    async with DIRECT.serve(app) as server, asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        done = asyncio.Event()

        async def idle() -> None:
            async with server.connect("/ws"):
                await done.wait()

        for _ in range(10):
            group.create_task(idle())
        for _ in range(10):
            assert await journal.next() == "connect"
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if "AsgiCycle" in repr(task)]
        done.set()


class Sends:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink

    async def on_message(self, text: str) -> None:
        await self.sink.send("reply")
        assert not self.sink.closed


async def test_the_sink_of_a_peer_that_has_closed_is_open_while_its_messages_are_handled() -> None:
    app = App()
    app.add("/ws", Sends)
    async with DIRECT.serve(app) as server, raw.upgraded(server, "/ws") as peer:
        await peer.write(raw.text("a") + raw.close(1000))
        assert await frames_of(peer) == [(1, b"reply"), (8, b"\x03\xe8")]


async def test_an_app_that_fails_after_it_has_taken_the_connection_does_not_keep_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Starlette()(scope, receive, send)
            return
        assert scope["extensions"]["wsdeco"].yield_connection(receive, send) is not None
        raise ValueError("no")

    async with DIRECT.serve(failing) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw.handshake("/"))
        with suppress(ConnectionError):
            assert await soon(reader.read()) == b""
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    assert "Exception in ASGI application" in caplog.text


class Whence:
    """Says where the connection comes from, by which route, and in which tasks of the server."""

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        scope = sink.request.scope
        await sink.send_json([str(addr), scope["scheme"], scope["path_params"], len(asyncio.all_tasks())])


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [("127.0.0.1", ["203.0.113.7:0", "wss"]), ("10.0.0.1", ["127.0.0.1", "ws"])],
    ids=["trusted", "not trusted"],
)
async def test_the_address_obeys_forwarded_allow_ips(trusted: str, seen: list[str]) -> None:
    app = App()
    app.add("/ws", Whence)
    serve = uvicorn_serve("wsdeco.protocol:WebSocketProtocol", forwarded_allow_ips=trusted)
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    async with serve(app) as server, server.connect("/ws", headers=headers) as peer:
        address, scheme, *_ = json.loads(await peer.receive())
        assert address.startswith(seen[0])
        assert scheme == seen[1]


async def test_a_path_that_looks_like_its_own_pattern_keeps_its_parameters() -> None:
    app = App()
    app.add("/{room}/ws", Whence)
    async with DIRECT.serve(app) as server:
        for _ in range(3):
            async with server.connect("/%7Broom%7D/ws") as peer:
                assert json.loads(await peer.receive())[2] == {"room": "{room}"}


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_parameter_that_cannot_be_converted_is_no_such_path(pieces: int) -> None:
    app = App()
    app.add("/n/{number:int}", Whence)
    async with DIRECT.serve(app) as server:
        for _ in range(3):
            async with raw.dial(server) as peer:
                head = raw.handshake(f"/n/{'9' * 5000}")
                for piece in [head] if pieces == 1 else [head[:1], head[1:]]:
                    await peer.write(piece)
                    await asyncio.sleep(0)
                assert await peer.status() == 404


async def test_a_route_that_fails_is_an_error_of_the_app() -> None:
    class Failing(Mount):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            if scope["path"] == "/fails":
                raise RuntimeError("on purpose")
            return Match.NONE, {}

    app = App()
    app.app.router.routes.append(Failing("/", app=Starlette()))
    app.add("/ws", Whence)
    async with DIRECT.serve(app) as server:
        assert (await refusal(server, "/fails")).status == 500
        async with server.connect("/ws") as peer:
            assert json.loads(await peer.receive())[2] == {}


async def test_forwarded_headers_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("on purpose")

    app = App()
    app.add("/ws", Whence)
    async with DIRECT.serve(app) as server:
        monkeypatch.setattr(ProxyHeadersMiddleware, "__call__", fail)
        assert (await refusal(server, "/ws", headers={"X-Forwarded-For": "203.0.113.7"})).status == 500


async def test_a_connection_that_cannot_begin_keeps_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    app = App()
    app.add("/ws", Whence)
    async with DIRECT.serve(app) as server:
        async with server.connect("/ws"):
            pass
        (route,) = app.app.routes
        endpoint: Any = getattr(route, "app")  # noqa: B009 - a route of Starlette has one
        await until(lambda: endpoint.admission.slots.taken == 0)
        monkeypatch.setattr(Lifecycle, "start", fail)
        connection: Any = Stuck()
        scope: Scope = {"type": "websocket", "path": "/ws", "root_path": "", "headers": [], "scheme": "ws"}
        with pytest.raises(RuntimeError, match="on purpose"):
            app.start_connection(scope, connection)
        assert endpoint.admission.slots.taken == 0


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_takes_one_task(reset: bool) -> None:
    app = App()
    app.add("/ws", Whence)
    app.add("/{room}/ws", Whence)
    serve = uvicorn_serve("wsdeco.protocol:WebSocketProtocol", reset_contextvars=reset)
    numbers: list[int] = []
    async with serve(app) as server:
        for path, params in [("/ws", {}), ("/a/ws", {"room": "a"}), ("/ws", {})]:
            async with server.connect(path) as peer:
                *_, found, number = json.loads(await peer.receive())
                assert found == params
                numbers.append(number)
    # Where each is to have a context of its own, one more task calls the app.
    assert len(set(numbers)) == 1


class Text(str):
    """A text that can be referred to weakly."""

    __slots__ = ("__weakref__",)


async def test_an_idle_connection_keeps_no_message() -> None:
    replies: list[weakref.ref[Text]] = []

    class Copies:
        async def on_message(self, text: str) -> str:
            reply = Text(text)
            replies.append(weakref.ref(reply))
            return reply

    app = App()
    app.add("/ws", Copies)
    async with DIRECT.serve(app) as server, raw.upgraded(server, "/ws") as peer:
        await peer.write(raw.text("a"))
        assert await peer.frame() == raw.Frame(raw.Opcode.TEXT, b"a")
        await peer.write(raw.frame(raw.Opcode.PING))
        assert await peer.frame() == raw.Frame(raw.Opcode.PONG, b"")
        assert [reply() for reply in replies] == [None]


async def test_an_endpoint_that_calls_handle_upgrade_has_it_behind_all_of_starlettes_layers() -> None:
    app = App(max_body_size=1000)

    @app.route("/chat")
    async def chat(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Echo)

    class Echo:
        async def on_message(self, text: str) -> str:
            return text

    session = Session(app)
    await session.open()
    assert type(session.protocol.receiver) is DirectChannel
    await session.end()
