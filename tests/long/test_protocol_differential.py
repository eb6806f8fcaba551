"""The same ASGI conversations on this protocol and on uvicorn's `websockets-sansio`, event by event.

A conversation is a list of steps, of the client and of the application. What differs on purpose is left out of the
conversations, or evened out in the logs, and each has a test in `TestKnownDifferences` that shows both sides.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Close as CloseFrame
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.protocol import CLIENT, Protocol
from websockets.streams import StreamReader

from tests.support import client_frames as wire
from tests.support.client_frames import BINARY, CONT, PING, PONG, TEXT, client_frame
from tests.support.in_memory import Session, request, settle
from wsdeco.protocol import WebSocketProtocol
from wsdeco.wire.outgoing import encode_close, encode_message

REQUEST = request("sec-websocket-protocol: a, b", "x-name: caf\xe9", "x-name: two")
Step = tuple[Any, ...]
IMPLEMENTATIONS = (WebSocketProtocol, WebSocketsSansIOProtocol)


@dataclass
class Log:
    """What the application and the client saw."""

    scope: dict[str, Any] = field(default_factory=dict[str, Any])
    events: list[Any] = field(default_factory=list[Any])
    response: Any = None
    messages: list[Any] = field(default_factory=list[Any])
    pongs: list[bytes] = field(default_factory=list[bytes])
    close: int | None = None


class Driver:
    """Runs a conversation step by step on one of the two protocols."""

    def __init__(self, protocol: type[asyncio.Protocol]) -> None:
        self.log = Log()
        self.session = Session(self._app, protocol=protocol)
        self._commands: asyncio.Queue[Any] = asyncio.Queue()
        self._receiving: asyncio.Task[Any] | None = None
        self.state: Literal["connecting", "open", "denying", "closed"] = "connecting"
        self.told = False
        self.client_gone = False

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        offered = {name: value for name, value in scope["extensions"].items() if name != "wsdeco"}
        self.log.scope = scope | {"extensions": offered}
        self._receive, self._send = receive, send
        command = await self._commands.get()
        if isinstance(command, Exception):
            raise command

    async def receive(self) -> bool:
        """Let the application receive; return whether there was something."""
        if self.told:
            return False
        task = self._receiving or asyncio.ensure_future(self._receive())
        await settle()
        self._receiving = None if task.done() else task
        if not task.done():
            return False
        event = dict(task.result())
        self.told = event["type"] == "websocket.disconnect"
        if self.told:
            event = {"type": event["type"], "code": event["code"]}
        self.log.events.append(event)
        return True

    async def drain(self) -> None:
        while await self.receive():
            pass

    async def send(self, event: dict[str, Any]) -> bool:
        try:
            await asyncio.wait_for(self._send(event), 1)
        except (RuntimeError, OSError) as exc:
            # After the application's own end uvicorn raises one or the other, whichever comes first.
            kind = "either" if self.state == "closed" else "OSError" if isinstance(exc, OSError) else "RuntimeError"
            self.log.events.append(kind)
            return False
        finally:
            await settle()
        return True

    async def client(self, data: bytes) -> None:
        if not self.client_gone:
            self.session.transport.feed(data)
            await settle()

    async def run(self, steps: list[Step]) -> Log:
        await self.client(REQUEST)
        for step in steps:
            await getattr(self, "do_" + step[0])(*step[1:])
        await self.drain()
        self._read_wire()
        self._commands.put_nowait(None)
        await settle()
        self.session.transport.stuck = False
        self.session.transport.lose()
        await settle()
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.gather(self._receiving, return_exceptions=True)
        return self.log

    # The application's steps.

    async def do_receive(self) -> None:
        await self.receive()

    async def do_accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        if await self.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers}):
            self.state = "open"

    async def do_send(self, payload: str | bytes) -> None:
        kind = "text" if isinstance(payload, str) else "bytes"
        await self.send({"type": "websocket.send", kind: payload})

    async def do_close(self, code: int, reason: str) -> None:
        if self.told:
            return
        await self.drain()
        if await self.send({"type": "websocket.close", "code": code, "reason": reason}):
            self.state = "closed"

    async def do_deny(self, status: int, parts: list[bytes]) -> None:
        start = {"type": "websocket.http.response.start", "status": status, "headers": [(b"x-why", b"no")]}
        if self.state != "connecting" or not await self.send(start):
            return
        for index, part in enumerate(parts):
            body = {"type": "websocket.http.response.body", "body": part, "more_body": index < len(parts) - 1}
            await self.send(body)
        self.state = "closed"

    # The client's steps.

    async def do_message(self, frames: list[bytes]) -> None:
        if self.state == "open":
            for frame in frames:
                await self.client(frame)

    async def do_ping(self, payload: bytes) -> None:
        if self.state == "open":
            await self.drain()
            await self.client(client_frame(PING, payload))

    async def do_leave(self, frame: bytes) -> None:
        if self.state != "connecting":
            await self.drain()
            await self.client(frame)
            self.client_gone = True
            await self.drain()

    async def do_lose(self) -> None:
        if self.state != "connecting":
            await self.drain()
            self.client_gone = True
            self.session.transport.lose(ConnectionResetError())
            await settle()
            await self.drain()
            if self.log.events and self.log.events[-1] == {"type": "websocket.disconnect", "code": 1005}:
                self.log.events[-1]["code"] = 1006

    # What the client saw.

    def _read_wire(self) -> None:
        data = self.session.transport.take()
        if not data:
            return
        head, _, rest = data.partition(b"\r\n\r\n")
        reader = StreamReader()
        reader.feed_data(head + b"\r\n\r\n" + rest)
        reader.feed_eof()
        parsing = Response.parse(reader.read_line, reader.read_exact, reader.read_to_eof)
        with pytest.raises(StopIteration) as parsed:
            next(parsing)
        response: Response = parsed.value.value
        kept = ("sec-websocket-accept", "sec-websocket-protocol", "x-why", "x-a", "set-cookie", "content-type")
        headers = sorted((k.lower(), v) for k, v in response.headers.raw_items() if k.lower() in kept)
        self.log.response = (response.status_code, headers, bytes(response.body or b""))
        client = Protocol(CLIENT, max_size=None)
        client.receive_data(rest if response.status_code == 101 else b"")
        for frame in client.events_received():
            opcode, payload = frame.opcode, bytes(frame.data)  # type: ignore[union-attr]
            if opcode is Opcode.PONG:
                self.log.pongs.append(payload)
            elif opcode is Opcode.CLOSE:
                self.log.close = int(CloseFrame.parse(payload).code)
            else:
                self.log.messages.append((opcode, payload))


def fragments(opcode: int, payload: bytes) -> list[bytes]:
    middle = len(payload) // 2
    return [client_frame(opcode, payload[:middle], fin=False), client_frame(CONT, payload[middle:])]


texts = st.text(max_size=10)
messages = (
    texts.map(lambda content: [wire.text(content)])
    | st.binary(max_size=10).map(lambda content: [client_frame(BINARY, content)])
    | texts.map(lambda content: fragments(TEXT, content.encode()))
    | st.binary(max_size=10).map(lambda content: fragments(BINARY, content))
    | st.binary(max_size=10).map(lambda content: [client_frame(PONG, content)])
)
codes = st.sampled_from([1000, 1001, 1008, 1011, 3000, 4999])
leaving = st.sampled_from(
    [
        wire.close(),
        wire.close(1000, b"bye"),
        wire.close(4000),
        wire.close(999),
        client_frame(3),
        client_frame(TEXT, b"a", masked=False),
        client_frame(TEXT, b"\xff"),
        client_frame(CONT),
    ]
)
openings = (
    st.tuples(
        st.just("accept"), st.sampled_from([None, "a", "b"]), st.sampled_from([[], [(b"X-A", b"1"), (b"x-a", b"2")]])
    )
    | st.tuples(st.just("close"), codes, texts)
    | st.tuples(
        st.just("deny"), st.sampled_from([200, 401, 503]), st.lists(st.binary(max_size=5), min_size=1, max_size=3)
    )
)
steps = st.one_of(
    st.tuples(st.just("receive")),
    st.tuples(st.just("send"), texts | st.binary(max_size=10)),
    st.tuples(st.just("message"), messages),
    st.tuples(st.just("ping"), st.binary(max_size=10)),
    openings,
    st.tuples(st.just("close"), codes, texts),
    st.tuples(st.just("leave"), leaving),
    st.tuples(st.just("lose")),
)
accepting: st.SearchStrategy[Step] = st.tuples(st.just("accept"), st.just(None), st.just([]))
conversations = st.tuples(st.lists(steps, max_size=3), openings | accepting, st.lists(steps, max_size=12)).map(
    lambda parts: [*parts[0], parts[1], *parts[2]]
)


def run(protocol: type[asyncio.Protocol], conversation: list[Step]) -> Log:
    async def drive() -> Log:
        return await Driver(protocol).run(conversation)

    return asyncio.run(drive())


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(conversations)
def test_same_conversation(conversation: list[Step]) -> None:
    ours, theirs = [run(protocol, conversation) for protocol in IMPLEMENTATIONS]
    assert ours == theirs


class App:
    """An application for one difference: accepts, receives until the end, and keeps the events."""

    def __init__(self, *sends: dict[str, Any], receives: bool = True, error: Exception | None = None) -> None:
        self.sends = sends
        self.receives = receives
        self.error = error
        self.events: list[Any] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for event in self.sends:
            try:
                await send(event)
            except Exception as exc:
                self.events.append(type(exc))
        while self.receives:
            event = await receive()
            if event["type"] == "websocket.disconnect":
                self.events.append(event["code"])
                return
            self.events.append(event["text"])
            await send({"type": "websocket.send", "text": event["text"]})
        if self.error is not None:
            raise self.error


@dataclass
class Difference:
    """One application on both protocols: what it saw, and what the client got behind the handshake's response."""

    ours: tuple[list[Any], bytes]
    theirs: tuple[list[Any], bytes]


async def compare(make_app: Any, *pieces: bytes, lose: bool = False) -> Difference:
    """Return what an application sees when the client sends `pieces`, and then perhaps loses its connection."""
    seen: list[tuple[list[Any], bytes]] = []
    for protocol in IMPLEMENTATIONS:
        app = make_app()
        session = Session(app, protocol=protocol)
        sent = b"".join([await session.feed(piece) for piece in pieces])
        if lose:
            session.transport.lose()
            await settle()
        seen.append((list(app.events), sent.partition(b"\r\n\r\n")[2]))
        session.transport.stuck = False
        session.transport.lose()
        await settle()
        for task in list(session.state.tasks):
            task.cancel()
        await settle()
    return Difference(*seen)


class TestKnownDifferences:
    async def test_a_lost_transport_is_1006(self) -> None:
        """1005 means a close frame without a code (RFC 6455, section 7.1.5)."""
        seen = await compare(App, REQUEST, lose=True)
        assert (seen.ours[0], seen.theirs[0]) == ([1006], [1005])

    async def test_frames_behind_the_request_are_delivered(self) -> None:
        """Where the bytes reach the protocol at all, they are the client's."""
        seen = await compare(App, REQUEST + wire.text("early"))
        assert seen.ours == (["early"], encode_message("early"))

    async def test_good_messages_before_a_bad_frame(self) -> None:
        """A message that arrived whole is delivered and answered, whatever comes behind it."""
        seen = await compare(App, REQUEST, wire.text("a") + client_frame(3))
        assert seen.ours == (["a", 1002], encode_message("a") + encode_close(1002, "reserved opcode"))
        assert seen.theirs[0] == [1002]

    async def test_a_message_before_the_peers_close_is_answered(self) -> None:
        """RFC 6455, section 5.5.1, lets the answer to a close frame wait for a message."""
        seen = await compare(App, REQUEST, wire.text("a") + wire.close(1000))
        assert seen.ours == (["a", 1000], encode_message("a") + encode_close(1000))
        assert seen.theirs == (["a"], encode_close(1000))

    async def test_close_inside_a_fragmented_message(self) -> None:
        """RFC 6455, section 5.4: the peer's code is the reason, not 1002."""
        seen = await compare(App, REQUEST, wire.text("a", fin=False) + wire.close(4000))
        assert (seen.ours[0], seen.theirs[0]) == ([4000], [1002])

    async def test_return_closes_with_1000_and_an_exception_with_1011(self) -> None:
        """Without a close frame the client is told nothing: 1006."""
        seen = await compare(lambda: App(receives=False), REQUEST)
        assert (seen.ours[1], seen.theirs[1]) == (encode_close(1000), b"")
        seen = await compare(lambda: App(receives=False, error=ValueError()), REQUEST)
        assert (seen.ours[1], seen.theirs[1]) == (encode_close(1011), b"")

    async def test_a_code_that_may_not_be_sent(self) -> None:
        """The call fails and the connection lives; uvicorn tells the application that it has been disconnected."""
        seen = await compare(lambda: App({"type": "websocket.close", "code": 999}), REQUEST, wire.text("a"))
        assert seen.ours == ([ValueError, "a"], encode_message("a"))
        assert seen.theirs == ([ProtocolError, 999], b"")

    async def test_a_reason_that_is_too_long(self) -> None:
        """It is cut: a long text must not keep a connection open."""
        seen = await compare(lambda: App({"type": "websocket.close", "reason": "x" * 200}), REQUEST)
        assert seen.ours == ([1000], encode_close(1000, "x" * 123))
        assert seen.theirs[0] == [ProtocolError, 1000]

    async def test_a_send_without_data(self) -> None:
        """ASGI asks for one of the two; a message that is not sent must not pass for sent."""
        seen = await compare(lambda: App({"type": "websocket.send"}), REQUEST, wire.close())
        assert (seen.ours[0], seen.theirs[0]) == ([RuntimeError, 1005], [1005])

    async def test_the_disconnect_comes_once(self) -> None:
        """Uvicorn gives a second one, and then waits for ever, with the task."""

        class Curious(App):
            async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
                await super().__call__(scope, receive, send)
                try:
                    self.events.append(await receive())
                except RuntimeError:
                    self.events.append("once")

        seen = await compare(Curious, REQUEST, wire.close())
        assert seen.ours[0] == [1005, "once"]
        assert seen.theirs[0] == [1005, {"type": "websocket.disconnect", "code": 1005}]

    async def test_a_subprotocol_nobody_offered(self) -> None:
        """The client has to fail the connection (RFC 6455, section 4.1), and the application never learns why."""

        class Presumptuous(App):
            async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
                try:
                    await send({"type": "websocket.accept", "subprotocol": "x"})
                    self.events.append("accepted")
                except ValueError:
                    self.events.append("refused")

        seen = await compare(Presumptuous, REQUEST)
        assert (seen.ours[0], seen.theirs[0]) == (["refused"], ["accepted"])

    async def test_bad_versions_and_missing_hosts(self) -> None:
        """RFC 6455, section 4.4, and RFC 9112, section 3.2."""
        heads: list[bytes] = []
        for protocol in IMPLEMENTATIONS:
            for change in ((b"version: 13", b"version: 8"), (b"host: example.com\r\n", b"")):
                session = Session(App(), protocol=protocol)
                heads.append((await session.feed(REQUEST.replace(*change)))[9:12])
                session.transport.lose()
                await settle()
        assert heads == [b"426", b"400", b"400", b"101"]
