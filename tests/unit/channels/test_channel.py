"""The channel over ASGI: the public checker on every server, and what a server can do to it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from tests.support.stacks import MEMORY, Peer, Stack, soon
from tests.support.wire import Logged, Wire, assert_at_rest, websocket_scope
from wsdeco import Address, App, Close, ConnectionClosed, ConnectionConfig, DisconnectReason, Error, Sink, Unknown
from wsdeco.channels.asgi import AsgiChannel
from wsdeco.channels.base import Channel
from wsdeco.channels.data import check_sendable, payload_estimate
from wsdeco.channels.dialogue import Conversation
from wsdeco.channels.events import disconnect_reason
from wsdeco.testing import ChannelPeer, MakePair, ManualClock, check_channel


class ChannelApp:
    """An ASGI app that makes a channel of each connection, and hands it to the test.

    Attributes:
        channels: The channels.
        told: Code and text of the peer's close frame, for a server that does not pass them on.
    """

    def __init__(self, config: ConnectionConfig, kind: type[AsgiChannel] = AsgiChannel) -> None:
        self.channels: asyncio.Queue[AsgiChannel] = asyncio.Queue()
        self.told: dict[str, object] = {}
        self._config = config
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return

        async def receive_with_told() -> Message:
            message = await receive()
            return {**message, **self.told} if message["type"] == "websocket.disconnect" else message

        channel = self._kind(scope, receive_with_told, send, self._config)
        assert await channel.connect()
        await channel.accept()
        self.channels.put_nowait(channel)
        await channel.read()
        await channel.flushed()
        channel.release()


class TellsClose:
    """A peer that tells code and text of its close frame besides the wire."""

    def __init__(self, peer: Peer, app: ChannelApp) -> None:
        self._app = app
        self.send = peer.send
        self.receive = peer.receive
        self.drop = peer.drop
        self._close = peer.close

    async def close(self, code: int, reason: str) -> None:
        self._app.told = {"code": code, "reason": reason}
        await self._close(code, reason)


def pairs_on(stack: Stack, kind: type[AsgiChannel] = AsgiChannel, *, told: bool = False) -> MakePair:
    @asynccontextmanager
    async def make_pair(config: ConnectionConfig) -> AsyncGenerator[tuple[Channel, ChannelPeer]]:
        app = ChannelApp(config, kind)
        async with stack.serve(app) as server, server.connect("/") as peer:
            yield await soon(app.channels.get()), TellsClose(peer, app) if told else peer

    return make_pair


async def test_check_channel_on_every_server(stack: Stack) -> None:
    told = not (stack.shows_close and stack.shows_close_text)
    await check_channel(pairs_on(stack, told=told), timeout=10)


async def test_check_channel_finds_what_a_server_does_not_tell(stack: Stack) -> None:
    if stack.shows_close and stack.shows_close_text:
        await check_channel(pairs_on(stack), timeout=10)
    else:
        with pytest.raises(AssertionError, match="the peer's close is seen"):
            await check_channel(pairs_on(stack), timeout=10)


async def test_check_channel_on_what_all_channels_share() -> None:
    class Plain(AsgiChannel):
        __slots__ = ()

        @property
        def closed(self) -> bool:
            of_all = Channel.__dict__["closed"]
            return bool(of_all.__get__(self, Channel))

        @property
        def unsent(self) -> int:
            return int(Channel.unsent.__get__(self, Channel))

    await check_channel(pairs_on(MEMORY, Plain))
    channel = Plain(websocket_scope(), Server().receive, Server().send, ConnectionConfig())
    assert (channel.unsent, channel.lost) == (0, False)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"code": 1000, "reason": "done"}, Close(1000, "done", by="client")),
        ({"code": 1000, "reason": None}, Close(1000, "", by="client")),
        ({"code": 1000}, Close(1000, "", by="client")),
        ({"code": 1001, "reason": ""}, Close(1001, "", by="client")),
        ({"code": 4999, "reason": "x"}, Close(4999, "x", by="client")),
        ({"code": 1005, "reason": ""}, Close(1005, "", by="client")),
        ({"code": 1005}, Unknown()),
        ({"code": 1005, "reason": None}, Unknown()),
        ({"code": 1006}, Unknown()),
        ({"code": 1006, "reason": "lost"}, Unknown()),
        ({}, Unknown()),
        ({"code": 1002, "reason": "bad"}, Close(1002, "bad", by="server")),
        ({"code": 1007}, Close(1007, "", by="server")),
        ({"code": 1009, "reason": ""}, Close(1009, "", by="server")),
        ({"code": 1011, "reason": "ping timeout"}, Close(1011, "ping timeout", by="client")),
        ({"code": 1012}, Close(1012, "", by="server")),
        ({"code": 1012, "reason": ""}, Close(1012, "", by="client")),
    ],
    ids=str,
)
def test_disconnect_reason(message: dict[str, object], reason: DisconnectReason) -> None:
    assert disconnect_reason({"type": "websocket.disconnect", **message}) == reason


class Owner:
    conversation: Conversation | None = None

    def __init__(self) -> None:
        self.heard: list[str] = []

    def channel_accepted(self) -> None:
        self.heard.append("channel_accepted")

    def channel_ended(self) -> None:
        self.heard.append("channel_ended")

    async def first_message(self, seconds: float) -> str:
        raise NotImplementedError

    def expire_in(self, seconds: float | None) -> None:
        raise NotImplementedError

    def transport_lost(self) -> None:
        self.heard.append("transport_lost")

    def create_task(self, work: Coroutine[Any, Any, Any], name: str | None) -> "asyncio.Task[Any]":
        raise NotImplementedError


class Server:
    """The `receive` and `send` of a server, as bound methods of something that has a transport."""

    def __init__(self, transport: object = None) -> None:
        self.transport = transport
        self.events: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.receiving = False
        self.failure: BaseException | None = None

    async def receive(self) -> Message:
        self.receiving = True
        try:
            return await self.events.get()
        finally:
            self.receiving = False

    async def send(self, message: Message) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)

    def channel(self, *, accepted: bool = True, **limits: Any) -> AsgiChannel:
        config = ConnectionConfig(**limits)
        return AsgiChannel(websocket_scope(), self.receive, self.send, config, ManualClock(), accepted=accepted)


class Transport:
    aborted = 0

    def abort(self) -> None:
        self.aborted += 1


class NoAbort:
    abort = "not callable"


async def test_a_channel_that_was_accepted_before_has_no_handshake() -> None:
    channel = Server().channel()
    assert await channel.connect()
    await channel.accept()
    assert channel.accepted


async def test_accept_without_a_lifecycle() -> None:
    server = Server()
    channel = server.channel(accepted=False)
    server.events.put_nowait({"type": "websocket.connect"})
    assert await channel.connect()
    await channel.accept()
    await channel.accept()
    assert server.sent == [{"type": "websocket.accept", "subprotocol": None, "headers": []}]
    channel.release()


async def test_accept_after_the_end() -> None:
    channel = Server().channel(accepted=False)
    channel.end(Unknown())
    with pytest.raises(ConnectionClosed):
        await channel.accept()


async def test_abort_drops_the_transport_where_there_is_one() -> None:
    transport = Transport()
    channel = Server(transport).channel()
    channel.abort()
    channel.abort()
    assert transport.aborted == 2
    assert channel.closed
    channel.release()
    for other in (None, NoAbort()):
        channel = Server(other).channel()
        channel.abort()
        assert channel.closed
        channel.release()


async def test_the_first_end_decides() -> None:
    channel = Server().channel()
    owner = Owner()
    channel.owner = owner
    assert channel.end(Unknown())
    assert not channel.end(Close(1000))
    channel.close(1000, "", Close(1000))
    assert channel.reason == Unknown()
    assert await channel.ended() == Unknown()
    assert owner.heard == ["channel_ended"]


async def test_closed_error_before_the_reason_is_known() -> None:
    assert Server().channel().closed_error().reason == Unknown()


@pytest.mark.parametrize("failure", [OSError("gone"), RuntimeError("gone"), WebSocketDisconnect(1006)])
async def test_what_servers_raise_for_a_peer_that_has_gone(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    logged = Logged(caplog)
    server = Server()
    server.failure = failure
    channel = server.channel()
    with pytest.raises(ConnectionClosed) as caught:
        await channel.send("x")
    assert caught.value.__cause__ is failure
    assert channel.closed
    assert channel.reason is None, "the server has yet to say why"
    assert not channel.send_nowait("x")
    with pytest.raises(ConnectionClosed):
        await channel.send("x")
    channel.release()
    assert logged.lines() == []


async def test_a_server_that_never_says_why_is_not_waited_for() -> None:
    server = Server()
    server.failure = OSError("gone")
    channel = server.channel(close_timeout=7)
    with pytest.raises(ConnectionClosed):
        await channel.send("x")
    clock = channel.clock
    assert isinstance(clock, ManualClock)
    await clock.advance(6.9)
    assert channel.reason is None
    await clock.advance(0.1)
    assert channel.reason == Unknown()
    channel.release()
    assert clock.pending == 0


async def test_an_odd_failure_of_send_in_the_background_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    server = Server()
    server.failure = KeyError("odd")
    channel = server.channel()
    assert channel.send_nowait("a")
    assert channel.send_nowait("b")
    await channel.flushed()
    assert channel.closed
    assert logged.lines() == ["ERROR the server's send() failed for 192.0.2.1:4321"]
    channel.release()


async def test_no_close_frame_is_written_while_receive_is_under_way() -> None:
    server = Server()
    receiving: list[bool] = []

    async def send(message: Message) -> None:
        receiving.append(server.receiving)
        await server.send(message)

    channel = AsgiChannel(websocket_scope(), server.receive, send, ConnectionConfig(), accepted=True)
    reading = asyncio.create_task(channel.read())
    await asyncio.sleep(0)
    assert server.receiving
    channel.close(4002, "enough", Close(4002, "enough", by="server"))
    await channel.flushed()
    assert receiving == [False]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert server.receiving, "and then it is read on"
    server.events.put_nowait({"type": "websocket.disconnect", "code": 4002, "reason": "enough"})
    await reading
    assert reading.cancelling() == 0
    assert channel.reason == Close(4002, "enough", by="server")
    channel.release()


@pytest.mark.parametrize("when", ["while it pauses", "with the pause", "after the pause"])
async def test_a_cancellation_of_the_reader_is_not_taken_for_the_pause(when: str) -> None:
    server = Server()
    blocked = asyncio.Event()

    async def send(message: Message) -> None:
        await blocked.wait()

    channel = AsgiChannel(websocket_scope(), server.receive, send, ConnectionConfig(), accepted=True)
    reading = asyncio.create_task(channel.read())
    await asyncio.sleep(0)
    channel.close(4002, "", Close(4002, by="server"))
    if when == "with the pause":
        await asyncio.sleep(0)
        reading.cancel()
    elif when == "while it pauses":
        for _ in range(5):
            await asyncio.sleep(0)
        reading.cancel()
    else:
        blocked.set()
        await channel.flushed()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert reading.cancelling() == 1
    blocked.set()
    await channel.flushed()
    channel.release()


class Immovable(Wire):
    """A server whose `receive()` swallows cancellations."""

    async def receive(self) -> Message:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                return await super().receive()


async def test_a_receive_that_swallows_the_pause_costs_close_timeout_and_no_more() -> None:
    reasons: list[DisconnectReason] = []

    class Handler:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept()
            closing.append(asyncio.create_task(sink.close(4002)))

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            reasons.append(reason)

    closing: list[asyncio.Task[None]] = []
    clock = ManualClock()
    app = App(clock=clock)
    app.add("/ws", Handler, close_timeout=7)
    wire = Immovable(app)
    wire.connect()
    await clock.settle()
    assert reasons == [Close(4002, by="server")]
    await clock.advance(7)
    wire.lose()
    await clock.settle()
    await wire.done()
    await asyncio.gather(*closing)
    assert_at_rest(app, clock)


async def test_a_refusal_ends_the_channel() -> None:
    server = Server()
    channel = server.channel(accepted=False)
    await channel.refuse(418, "short and stout", {"X-Pot": "tea"})
    assert isinstance(channel.reason, Error)
    assert server.sent[0]["status"] == 418
    assert (b"x-pot", b"tea") in server.sent[0]["headers"]
    with pytest.raises(ConnectionClosed):
        await channel.accept()
    channel.release()


async def test_messages_of_a_strange_server() -> None:
    server = Server()
    channel = server.channel()
    for event in (
        {"type": "websocket.receive", "text": "", "bytes": None},
        {"type": "websocket.receive", "text": None, "bytes": b""},
        {"type": "websocket.receive", "text": "a", "bytes": b"b"},
        {"type": "websocket.something", "code": 4001, "reason": "x"},
    ):
        server.events.put_nowait(event)
    await channel.read()
    assert [await channel.receive() for _ in range(4)] == ["", b"", "a", None]
    assert channel.reason == Close(4001, "x", by="client")


async def test_an_inbox_that_is_given_up_lets_the_reader_go_on() -> None:
    server = Server()
    channel = server.channel(max_inbox=1)
    reading = asyncio.create_task(channel.read())
    for _ in range(3):
        server.events.put_nowait({"type": "websocket.receive", "text": "x"})
    server.events.put_nowait({"type": "websocket.disconnect", "code": 1000, "reason": ""})
    for _ in range(5):
        await asyncio.sleep(0)
    assert server.events.qsize() == 3
    channel.discard_inbox()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (server.events.qsize(), channel.undelivered) == (2, 1)
    channel.close(4002, "", Close(4002, by="server"))
    await reading
    assert channel.undelivered == 4 - 1
    channel.release()


async def test_release_and_flushed_of_a_channel_that_did_nothing() -> None:
    channel = Server().channel()
    await channel.flushed()
    channel.release()


@pytest.mark.parametrize("data", ["", "x" * 5000, "é" * 1024, "é" * 5000, "\ud800", b"\xff" * 3000])
def test_the_payload_of_a_message_is_estimated_without_encoding_all_of_it(data: str | bytes) -> None:
    exact = len(data) if isinstance(data, bytes) else len(data.encode(errors="replace"))
    assert payload_estimate(data) == exact


@pytest.mark.parametrize("data", ["", "é", "é" * 40_000, "x" * 40_000 + "時😀", b"\xff" * 40_000])
def test_what_utf8_can_carry_is_sendable(data: str | bytes) -> None:
    check_sendable(data)


@pytest.mark.parametrize("where", [0, 20_000, 39_999])
@pytest.mark.parametrize("start", ["x", "é", "時", "😀"])
def test_a_lone_surrogate_is_found_wherever_it_is(start: str, where: int) -> None:
    text = start * where + "\ud800"
    with pytest.raises(ValueError, match=f"can't encode character '.ud800' in position {where}: "):
        check_sendable(text + "😀" * (40_000 - len(text)))


def test_the_halves_of_a_pair_are_no_character() -> None:
    with pytest.raises(ValueError, match="in position 32767-32768: "):
        check_sendable("x" * 32_767 + "\ud83d\ude00")
