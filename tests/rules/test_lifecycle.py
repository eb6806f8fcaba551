"""The rules of a connection, one by one, on a server that does what the test says."""

import asyncio
import contextlib
import contextvars
import logging
import random
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar, Final

import anyio
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from tests.support.wire import Logged, Wire, assert_at_rest, slots_taken, websocket_scope
from wsdeco import (
    Address,
    App,
    Close,
    ConnectionClosed,
    DisconnectReason,
    Error,
    HandlerError,
    Sink,
    Unknown,
    WebSocketHandler,
)
from wsdeco.connection.live import LiveConnections
from wsdeco.connection.slots import Slots
from wsdeco.testing import ManualClock

BYE: Final = Close(4001, "bye", by="client")
RESTART: Final = Close(1012, "service restart", by="server")


class Served:
    """An app on a clock of its own, with a handler class on its one route.

    Attributes:
        reasons: What each `on_disconnect` got.
    """

    def __init__(self, handler: type, **limits: Any) -> None:
        self.clock = ManualClock()
        self.app = App(clock=self.clock)
        self.app.add("/ws", handler, **limits)

    def wire(self, scope: Scope | None = None) -> Wire:
        """Return a server with a new connection."""
        wire = Wire(self.app, scope)
        wire.connect()
        return wire

    async def connected(self, *messages: str | bytes) -> Wire:
        """Return a server whose connection has been accepted, and has handled messages."""
        wire = self.wire()
        await self.clock.settle()
        for message in messages:
            wire.message(message)
        await self.clock.settle()
        return wire

    async def over(self, *wires: Wire) -> None:
        """Look whether the connections have ended, and nothing is left."""
        await self.clock.settle()
        for wire in wires:
            assert wire.task.done(), "the connection goes on"
            wire.task.result()
        assert_at_rest(self.app, self.clock)

    async def lose(self, *wires: Wire) -> None:
        """End the connections from outside."""
        for wire in wires:
            wire.lose()
        await self.over(*wires)


class Journal:
    """A base of handlers which keeps what they see, per class and not per instance."""

    sinks: ClassVar[list[Sink]]
    reasons: ClassVar[list[DisconnectReason]]
    gate: ClassVar[asyncio.Event]

    def __init_subclass__(cls) -> None:
        cls.sinks = []
        cls.reasons = []
        cls.gate = asyncio.Event()

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sinks.append(sink)

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.reasons.append(reason)


# Rule 1: slot first.


async def test_rule_1_a_handshake_in_progress_takes_a_slot() -> None:
    class Slow(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await self.gate.wait()

    served = Served(Slow, max_connections=3)
    wires = [served.wire() for _ in range(10)]
    await served.clock.settle()
    assert slots_taken(served.app) == 3
    assert [wire.seen for wire in wires] == [[]] * 3 + [[("http", 503)]] * 7
    assert [dict(wire.sent[0]["headers"])[b"retry-after"] for wire in wires[3:]] == [b"1"] * 7
    Slow.gate.set()
    await served.clock.settle()
    assert [wire.seen for wire in wires[:3]] == [["accepted"]] * 3
    wires[0].lose()
    await served.clock.settle()
    assert slots_taken(served.app) == 2
    again = served.wire()
    await served.clock.settle()
    assert again.seen == ["accepted"]
    await served.lose(*wires[1:3], again)
    assert Slow.reasons == [Unknown()] * 4


def test_rule_1_slots_and_connections_count() -> None:
    slots = Slots(2)
    assert [slots.take() for _ in range(3)] == [True, True, False]
    slots.give_back()
    assert slots.taken == 1
    assert slots.take()
    assert all(Slots(None).take() for _ in range(10))
    assert len(LiveConnections()) == 0


async def test_rule_1_the_slot_is_kept_until_everything_has_ended() -> None:
    class Slow(Journal):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            await self.gate.wait()

    served = Served(Slow, max_connections=1)
    wire = await served.connected()
    wire.lose()
    await served.clock.settle()
    turned_away = served.wire()
    await served.clock.settle()
    assert turned_away.seen == [("http", 503)]
    Slow.gate.set()
    await served.over(wire, turned_away)


def raising(*_args: object) -> Any:
    raise ValueError("no handler today")


@pytest.mark.parametrize("how", ["origin", "no connect", "receive raises", "factory raises", "shut down", "full"])
async def test_rule_1_the_slot_comes_back_from_a_handshake_that_fails(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Quiet(Journal):
        pass

    served = Served(Quiet, max_connections=1, factory=raising if how == "factory raises" else None)
    if how == "shut down":
        await served.app.shut_down()
    origin = [("origin", "https://evil.example")] if how == "origin" else []
    wire = Wire(served.app, websocket_scope(origin))
    match how:
        case "no connect":
            wire.tell({"type": "websocket.disconnect", "code": 1006})
        case "receive raises":
            wire.tell(OSError("no"))
        case "full":
            wire.connect()
            second = served.wire()
            await served.clock.settle()
            assert second.seen == [("http", 503)]
            wire.lose()
            await second.done()
        case _:
            wire.connect()
    await served.clock.settle()
    if how == "receive raises":
        with pytest.raises(OSError, match="no"):
            wire.task.result()
        assert_at_rest(served.app, served.clock)
    else:
        await served.over(wire)
    seen = {"origin": [("http", 403)], "factory raises": [("http", 500)], "shut down": [("http", 503)]}
    assert wire.seen == seen.get(how, ["accepted"] if how == "full" else [])
    caplog.clear()


async def test_rule_1_a_peer_that_leaves_while_it_is_turned_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    class Quiet(Journal):
        pass

    logged = Logged(caplog)
    served = Served(Quiet)
    await served.app.shut_down()
    gone, left = served.wire(), Wire(served.app)
    gone.failure = OSError("gone")
    left.tell({"type": "websocket.disconnect", "code": 1006})
    await served.over(gone, left)
    assert logged.lines() == []
    assert len(logged.lines(logging.INFO)) == 2


# Rule 2: handshake.


class Accepts(Journal):
    """Accepts in the way that its query says, and shows how far it got."""

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sinks.append(sink)
        match sink.query_params["how"]:
            case "send":
                await sink.send("hello")
            case "send_json":
                await sink.send_json({"hello": "w\u00f6rld", "n": [1, None]})
            case "accept":
                await sink.accept()
            case "headers":
                await sink.accept(headers=[("X-One", " 1 "), ("x-one", "2")])
            case "close":
                await sink.close(4002, "not today")
            case _:
                return
        await self.gate.wait()


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ("send", ["accepted", "hello"]),
        ("send_json", ["accepted", '{"hello":"w\u00f6rld","n":[1,null]}']),
        ("accept", ["accepted"]),
        ("headers", ["accepted"]),
        ("return", ["accepted"]),
        ("close", ["accepted", ("close", 4002, "not today")]),
    ],
)
async def test_rule_2_the_upgrade_is_accepted_by(how: str, seen: list[object]) -> None:
    class Handler(Accepts):
        pass

    served = Served(Handler)
    wire = served.wire(websocket_scope(query=f"how={how}"))
    await served.clock.settle()
    assert wire.seen == seen
    headers = [(b"x-one", b"1"), (b"x-one", b"2")] if how == "headers" else []
    assert wire.sent[0] == {"type": "websocket.accept", "subprotocol": None, "headers": headers}
    Handler.gate.set()
    if how != "close":
        wire.lose()
    await served.over(wire)


async def test_rule_2_the_upgrade_waits_for_on_connect() -> None:
    class Slow(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sinks.append(sink)
            await self.gate.wait()

    served = Served(Slow)
    wire = served.wire()
    await served.clock.settle()
    assert wire.sent == []
    assert Slow.sinks[0].subprotocol is None
    Slow.gate.set()
    await served.clock.settle()
    assert wire.seen == ["accepted"]
    await served.lose(wire)


class RefusesInInit(Journal):
    def __init__(self, request: HTTPConnection) -> None:
        raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Basic"})


class RefusesInConnect(Journal):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await asyncio.sleep(0)
        raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Basic"})


def refusing_factory(headers: object) -> Any:
    raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Basic"})


@pytest.mark.parametrize("where", ["__init__", "factory", "on_connect"])
@pytest.mark.parametrize("denial", [True, False])
async def test_rule_2_http_exception_refuses_the_handshake_from(
    where: str, denial: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logged = Logged(caplog)
    handler = RefusesInInit if where == "__init__" else RefusesInConnect
    RefusesInConnect.reasons.clear()
    served = Served(handler, factory=refusing_factory if where == "factory" else None)
    wire = served.wire(websocket_scope(denial=denial))
    await served.over(wire)
    if denial:
        assert wire.sent == [
            {
                "type": "websocket.http.response.start",
                "status": 401,
                "headers": [
                    (b"content-type", b"text/plain; charset=utf-8"),
                    (b"www-authenticate", b"Basic"),
                    (b"content-length", b"12"),
                ],
            },
            {"type": "websocket.http.response.body", "body": b"who are you?"},
        ]
    else:
        assert wire.sent == [{"type": "websocket.close", "code": 1008}]
    assert handler.reasons == [], "a refused handshake has no on_disconnect"
    assert logged.lines(logging.DEBUG) == []


@pytest.mark.parametrize(
    ("exception", "status", "body", "headers"),
    [
        (HTTPException(404), 404, b"Not Found", {}),
        (HTTPException(403, ""), 403, b"", {}),
        (HTTPException(418, "t\u00e9"), 418, "t\u00e9".encode(), {}),
        (
            HTTPException(400, {"why": ["x", 1]}),  # type: ignore[arg-type]
            400,
            b'{"why": ["x", 1]}',
            {b"content-type": b"application/json"},
        ),
        (
            HTTPException(400, ["x"], {"Content-Type": "application/problem+json"}),  # type: ignore[arg-type]
            400,
            b'["x"]',
            {b"content-type": b"application/problem+json"},
        ),
        (HTTPException(400, "x", {"Content-Type": "text/html"}), 400, b"x", {b"content-type": b"text/html"}),
        (HTTPException(400, "x", {"Content-Length": "999"}), 400, b"x", {b"content-length": b"1"}),
    ],
    ids=repr,
)
async def test_rule_2_a_refusal_has_the_status_body_and_headers_of_the_exception(
    exception: HTTPException, status: int, body: bytes, headers: dict[bytes, bytes]
) -> None:
    class Refuses(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            raise exception

    served = Served(Refuses)
    wire = served.wire()
    await served.over(wire)
    start, end = wire.sent
    assert (start["status"], end["body"]) == (status, body)
    assert dict(start["headers"]) == {
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": str(len(body)).encode(),
        **headers,
    }
    exception.__traceback__ = None


@pytest.mark.parametrize(
    "exception",
    [
        HTTPException(401, "x", {"X-Bad": "a\r\nSet-Cookie: b"}),
        HTTPException(401, "x", {"Sec-WebSocket-Accept": "x"}),
        HTTPException(401, "x", {"X-Number": 1}),  # type: ignore[dict-item]
        HTTPException(401, {"not": "json", "at": object()}),  # type: ignore[arg-type]
        HTTPException(401, "\ud800"),
    ],
    ids=["injection", "handshake header", "no str", "no json", "surrogate"],
)
async def test_rule_2_a_refusal_that_cannot_be_sent_is_a_failure(
    exception: HTTPException, caplog: pytest.LogCaptureFixture
) -> None:
    class Refuses(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            raise exception

    logged = Logged(caplog)
    served = Served(Refuses)
    wire = served.wire()
    await served.over(wire)
    assert wire.seen == [("http", 500)]
    assert logged.lines() == ["ERROR Refuses.on_connect failed for 192.0.2.1:4321"]
    assert Refuses.reasons == []
    exception.__traceback__ = None


async def test_rule_2_after_a_refusal_the_sink_is_closed() -> None:
    class Refuses(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sinks.append(sink)
            sink.send_nowait("never sent")
            raise HTTPException(401)

    served = Served(Refuses)
    wire = served.wire()
    wire.writable.clear()
    await served.clock.settle()
    sink = Refuses.sinks[0]
    assert sink.closed
    assert isinstance(sink.reason, Error)
    assert str(sink.reason) == "error: the handshake was refused with HTTP 401"
    for use in (sink.send("x"), sink.accept()):
        with pytest.raises(ConnectionClosed):
            await use
    assert sink.send_nowait("x") is False
    await sink.close()
    assert wire.sent == []
    wire.writable.set()
    await served.over(wire)
    assert wire.seen == [("http", 401)]


async def test_rule_2_a_server_that_never_says_it_is_over_does_not_keep_a_refused_handshake() -> None:
    served = Served(RefusesInConnect)
    wire = served.wire()
    wire.answers = False
    await served.over(wire)
    assert wire.seen == [("http", 401)]


@pytest.mark.parametrize("by", ["disconnect_grace", "close_timeout"])
async def test_rule_2_a_refusal_that_nobody_reads_is_given_up(by: str, caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    served = Served(RefusesInConnect, **{"disconnect_grace": 8, "close_timeout": 8, by: 5})
    wire = served.wire()
    wire.writable.clear()
    await served.clock.advance(4.9)
    assert slots_taken(served.app) == 1
    await served.clock.advance(0.1)
    await served.over(wire)
    assert wire.sent == []
    assert logged.lines(logging.ERROR) == []


async def test_rule_2_a_refusal_of_the_factory_that_nobody_reads_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    served = Served(RefusesInConnect, factory=refusing_factory, disconnect_grace=8)
    wire = served.wire()
    wire.writable.clear()
    await served.clock.advance(8)
    await served.over(wire)
    assert wire.sent == []


async def test_rule_2_any_other_exception_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Journal):
        def __init__(self) -> None:
            raise ValueError("secret")

    logged = Logged(caplog)
    served = Served(Broken)
    wire = served.wire()
    await served.over(wire)
    assert wire.sent[0]["status"] == 500
    assert wire.sent[1]["body"] == b"Internal Server Error"
    assert logged.lines() == ["ERROR Broken failed for 192.0.2.1:4321"]
    assert Broken.reasons == []


def makes_no_handler(headers: object) -> object:
    return object()


async def test_rule_2_what_waits_for_the_upgrade_is_given_up_with_it(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            assert sink.send_nowait("early")
            raise ValueError

    served = Served(Broken)
    wire = served.wire()
    await served.over(wire)
    assert [message["type"].rpartition(".")[2] for message in wire.sent] == ["start", "body"]
    assert wire.seen == [("http", 500)]


async def test_rule_2_a_factory_that_makes_no_handler_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    served = Served(RefusesInConnect, factory=makes_no_handler)
    wire = served.wire()
    await served.over(wire)
    assert wire.seen == [("http", 500)]
    assert isinstance(logged.exceptions()[0], HandlerError)


async def test_rule_2_nothing_is_built_for_a_peer_that_has_gone_already() -> None:
    class Handler(Journal):
        def __init__(self) -> None:
            raise NotImplementedError

    served = Served(Handler)
    wire = served.wire()
    wire.lose()
    await served.over(wire)
    assert wire.sent == []


async def test_rule_2_the_default_on_connect_keeps_addr_and_sink() -> None:
    kept: list[tuple[Address, Sink]] = []

    class Handler(WebSocketHandler):
        async def on_message(self, text: str) -> str:
            kept.append((self.addr, self.sink))
            return str(self.addr)

    served = Served(Handler)
    wire = await served.connected("who am I?")
    assert wire.seen == ["accepted", "192.0.2.1:4321"]
    assert kept[0][0] == Address("192.0.2.1", 4321)
    assert kept[0][1].addr == kept[0][0]
    await served.lose(wire)


# Rule 3: messages.


async def test_rule_3_messages_come_one_at_a_time_and_in_order() -> None:
    class Handler(Journal):
        running: ClassVar[int] = 0
        most: ClassVar[int] = 0

        async def on_message(self, text: str) -> str:
            cls = type(self)
            Handler.running += 1
            Handler.most = max(cls.most, cls.running)
            for _ in range(int(text) % 3):
                await asyncio.sleep(0)
            Handler.running -= 1
            return text

    served = Served(Handler)
    texts = [str(number) for number in range(100)]
    wire = await served.connected(*texts)
    for _ in range(10):
        await served.clock.settle()
    assert wire.seen == ["accepted", *texts]
    assert Handler.most == 1
    await served.lose(wire)


async def test_rule_3_what_on_message_returns_is_sent() -> None:
    class Handler(Journal):
        async def on_message(self, data: str | bytes) -> Any:
            return {"text": "t\u00e4xt", "bytes": b"\x00\xff", "array": bytearray(b"a"), "empty": ""}.get(str(data))

    served = Served(Handler)
    wire = await served.connected("text", "nothing", "bytes", "array", "empty", b"text")
    assert wire.seen == ["accepted", "t\u00e4xt", b"\x00\xff", b"a", ""]
    await served.lose(wire)


@pytest.mark.parametrize("reply", [1, {"a": 1}, "\ud800"])
async def test_rule_3_a_reply_that_is_no_message_is_a_failure(reply: object, caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> Any:
            return reply

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected("x")
    await served.over(wire)
    assert wire.seen == ["accepted", ("close", 1011, "internal error")]
    assert logged.lines() == ["ERROR Handler.on_message failed for 192.0.2.1:4321"]
    assert isinstance(logged.exceptions()[0], TypeError | ValueError)


async def test_rule_3_a_stream_sends_each_value_as_it_comes() -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> AsyncIterator[str | bytes]:
            yield "one"
            await self.gate.wait()
            yield b"two"
            yield ""

    served = Served(Handler)
    wire = await served.connected("x")
    assert wire.seen == ["accepted", "one"]
    Handler.gate.set()
    await served.clock.settle()
    assert wire.seen == ["accepted", "one", b"two", ""]
    await served.lose(wire)


async def test_rule_3_a_stream_may_be_any_asynchronous_iterator() -> None:
    class Countdown:
        def __init__(self, start: int) -> None:
            self.left = start

        def __aiter__(self) -> AsyncIterator[str]:
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return str(self.left)

    class Handler(Journal):
        def on_message(self, text: str) -> AsyncIterator[str]:
            return Countdown(int(text))

    served = Served(Handler)
    wire = await served.connected("3", "0", "1")
    assert wire.seen == ["accepted", "2", "1", "0", "0"]
    await served.lose(wire)


async def test_rule_3_a_peer_that_leaves_in_mid_stream_closes_the_generator(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []

    class Handler(Journal):
        async def on_message(self, text: str) -> AsyncIterator[str]:
            try:
                while True:
                    yield "tick"
                    await self.gate.wait()
            finally:
                closed.append("closed")

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected("x")
    wire.close(4001, "bye")
    Handler.gate.set()
    await served.over(wire)
    assert closed == ["closed"]
    assert Handler.reasons == [BYE]
    assert logged.lines() == []


async def test_rule_3_a_generator_that_fails_when_it_is_closed_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> AsyncIterator[str]:
            try:
                while True:
                    yield "tick"
                    await self.gate.wait()
            finally:
                raise ValueError("cannot tidy up")

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected("x")
    wire.close(4001, "bye")
    Handler.gate.set()
    await served.over(wire)
    assert Handler.reasons == [BYE]
    assert logged.lines() == ["ERROR Handler.on_message failed for 192.0.2.1:4321"]
    assert isinstance(logged.exceptions()[0], ValueError)


class TakesText(Journal):
    async def on_message(self, text: str) -> str:
        return f"text {text!r}"


class TakesBinary(Journal):
    async def on_message(self, data: bytes) -> str:
        return f"binary {data!r}"


class TakesBoth(Journal):
    async def on_message(self, data: str | bytes) -> str:
        return f"both {data!r}"


class TakesNone(Journal):
    pass


@pytest.mark.parametrize(
    ("handler", "replies", "ignored"),
    [
        (TakesText, ["text 'a'", "text ''"], 2),
        (TakesBinary, ["binary b'b'", "binary b''"], 2),
        (TakesBoth, ["both 'a'", "both b'b'", "both ''", "both b''"], 0),
        (TakesNone, [], 4),
    ],
)
async def test_rule_3_text_and_binary(
    handler: type[Journal], replies: list[str], ignored: int, caplog: pytest.LogCaptureFixture
) -> None:
    logged = Logged(caplog)
    served = Served(handler)
    wire = await served.connected("a", b"b", "", b"")
    assert wire.seen == ["accepted", *replies]
    await served.lose(wire)
    line = f"INFO {handler.__name__}: {ignored} messages of 192.0.2.1:4321 reached no hook"
    assert logged.lines(logging.INFO) == ([line] if ignored else [])


@pytest.mark.parametrize("leaves", ["closes", "is lost"])
async def test_rule_3_what_came_before_the_peer_left_is_delivered(leaves: str) -> None:
    heard: list[str] = []

    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            heard.append(text)
            for _ in range(20):
                await asyncio.sleep(0)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            assert len(heard) == 50, "on_disconnect comes after the last on_message"
            await super().on_disconnect(reason)

    served = Served(Slow)
    wire = await served.connected()
    texts = [str(number) for number in range(50)]
    for text in texts:
        wire.message(text)
    if leaves == "closes":
        wire.close(4001, "bye")
    else:
        wire.lose()
    for _ in range(30):
        await served.clock.settle()
    await served.over(wire)
    assert heard == texts
    assert Slow.reasons == [BYE if leaves == "closes" else Unknown()]


async def test_rule_3_the_replies_to_a_peer_that_has_left_are_no_error(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    served = Served(TakesText)
    TakesText.reasons.clear()
    wire = await served.connected()
    for _ in range(50):
        wire.message("x")
    wire.close(4001, "bye")
    await served.over(wire)
    assert wire.seen == ["accepted"]
    assert TakesText.reasons == [BYE]
    assert logged.lines(logging.DEBUG) == []


async def test_rule_3_the_peers_close_is_seen_while_a_hook_runs() -> None:
    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            await self.gate.wait()

    served = Served(Slow)
    wire = await served.connected("x")
    sink = Slow.sinks[0]
    assert (sink.closed, sink.reason) == (False, None)
    wire.close(4001, "bye")
    await served.clock.settle()
    assert (sink.closed, sink.reason) == (True, BYE)
    assert Slow.reasons == []
    Slow.gate.set()
    await served.over(wire)
    assert Slow.reasons == [BYE]


@pytest.mark.parametrize(("size", "max_inbox", "most"), [(1000, 65536, 64), (1, 1, 1), (100_000, 65536, 1)])
async def test_rule_3_a_full_inbox_stops_the_reading_and_it_goes_on_again(size: int, max_inbox: int, most: int) -> None:
    heard = 0

    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            nonlocal heard
            heard += 1
            await self.gate.wait()

    served = Served(Slow, max_inbox=max_inbox)
    wire = await served.connected()
    for _ in range(1000):
        wire.message("x" * size)
    await served.clock.settle()
    # One is with the hook, and one has filled the inbox.
    read = 1000 - wire.unread
    assert read <= most + 2
    await served.clock.advance(1000)
    assert 1000 - wire.unread == read, "the peer is not read meanwhile"
    Slow.gate.set()
    for _ in range(100):
        await served.clock.settle()
    assert (heard, wire.unread) == (1000, 0)
    await served.lose(wire)


async def test_rule_3_a_full_inbox_does_not_hide_that_the_peer_has_gone() -> None:
    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            while True:
                await self.sinks[0].send("are you there?")
                await self.gate.wait()

    served = Served(Slow, max_inbox=1)
    wire = await served.connected()
    for _ in range(100):
        wire.message("x")
    await served.clock.settle()
    wire.close(4001, "bye")
    assert wire.unread > 90
    Slow.gate.set()
    await served.over(wire)
    assert Slow.reasons == [BYE]


async def test_rule_3_a_full_inbox_does_not_hide_it_from_a_hook_that_goes_on() -> None:
    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            await self.gate.wait()
            with contextlib.suppress(ConnectionClosed):
                await self.sinks[0].send("are you there?")
            await asyncio.Event().wait()

    served = Served(Slow, max_inbox=1, disconnect_grace=5)
    wire = await served.connected()
    for _ in range(100):
        wire.message("x")
    wire.close(4001, "bye")
    await served.clock.settle()
    assert wire.unread > 90
    Slow.gate.set()
    await served.clock.settle()
    assert Slow.sinks[0].reason == BYE
    await served.clock.advance(5)
    await served.over(wire)
    assert Slow.reasons == [BYE]


async def test_rule_3_an_own_close_gives_up_what_waits_in_the_inbox(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            heard.append(text)
            await self.sinks[0].close(4002)

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected()
    for text in "abc":
        wire.message(text)
    await served.over(wire)
    assert heard == ["a"]
    assert logged.lines(logging.INFO) == ["INFO Handler: 2 messages of 192.0.2.1:4321 reached no hook"]


async def test_rule_3_a_message_over_the_limit_closes_with_1009(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    served = Served(TakesText, max_message_size=10)
    TakesText.reasons.clear()
    wire = await served.connected("x" * 10, "\u20ac" * 3, "x" * 11, "y")
    await served.over(wire)
    answers = ["text 'xxxxxxxxxx'", "text '\u20ac\u20ac\u20ac'"]
    assert wire.seen == ["accepted", *answers, ("close", 1009, "message is longer than 10 bytes")], (
        "what came before is answered"
    )
    assert TakesText.reasons == [Close(1009, "message is longer than 10 bytes", by="server")]
    assert logged.lines(logging.INFO) == ["INFO TakesText: 2 messages of 192.0.2.1:4321 reached no hook"]


# Rule 4: on_disconnect exactly once.


class Talks(Journal):
    """Awaits in every way there is, in every hook."""

    entered: ClassVar[list[object]]
    left: ClassVar[list[object]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.entered = []
        cls.left = []

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.entered.append(self)
        self.sinks.append(sink)
        await asyncio.sleep(0)
        await asyncio.gather(*(sink.send(text) for text in "abc"))
        sink.send_nowait("d")

    async def on_message(self, text: str) -> AsyncIterator[str]:
        await asyncio.sleep(0)
        yield text
        if text == "close":
            await self.sinks[0].close(4002)
        if text == "raise":
            raise ValueError(text)
        await asyncio.sleep(0)
        yield text

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        await super().on_disconnect(reason)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.left.append(self)


async def let_go(wire: Wire, served: Served) -> None:
    """Wait for the app with all the time it needs; it may have been cancelled."""
    await served.clock.advance(100)
    wire.lose()
    await served.clock.advance(100)
    assert wire.task.done(), "the connection goes on"
    if not wire.task.cancelled():
        wire.task.result()


def hooks_task() -> "asyncio.Task[Any] | None":
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        if coroutine.__qualname__ == "Lifecycle._run_hooks":
            return task
    return None


STEPS: Final = 60
"""Turns of the event loop in which the conversation is over."""


async def slow_send(message: Message) -> None:
    await asyncio.sleep(0)


class Refuses(Talks):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.entered.append(self)
        await asyncio.sleep(0)
        raise HTTPException(403)


def handler_like(base: type[Talks]) -> type[Talks]:
    """Return a class with records of its own."""
    return type("Handler", (base,), {})


async def talk(wire: Wire, ends: str, turns: int) -> None:
    """Let some turns of the event loop pass in a conversation."""
    for turn in range(turns):
        await asyncio.sleep(0)
        if turn == 15:
            wire.message("x")
            wire.message({"own": "close", "failure": "raise"}.get(ends, "y"))
        if turn == 30 and ends == "peer":
            wire.close(4001)


async def cancel(wire: Wire, target: str) -> int:
    """Cancel what is there; return how much that was."""
    tasks = [hooks_task()] if target in {"hooks", "both"} else []
    tasks += [wire.task] if target != "hooks" else []
    cancelled = sum(task is not None and task.cancel() for task in tasks)
    for _ in range(100 if target == "server repeatedly" else 0):
        wire.task.cancel()
        await asyncio.sleep(0)
    return cancelled


@pytest.mark.parametrize("target", ["server", "hooks", "both", "server repeatedly"])
@pytest.mark.parametrize("ends", ["peer", "own", "failure", "refused"])
async def test_rule_4_cancellation_at_every_step(target: str, ends: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "wsdeco")
    cancelled = 0
    for turns in range(STEPS if ends != "refused" else 15):
        handler = handler_like(Refuses if ends == "refused" else Talks)
        served = Served(handler)
        wire = served.wire()
        wire.before_send = slow_send
        await talk(wire, ends, turns)
        cancelled += await cancel(wire, target)
        await let_go(wire, served)
        if ends == "refused":
            # Cancelled before it could refuse, it failed, and failures have their on_disconnect.
            assert len(handler.reasons) <= len(handler.entered) <= 1
        else:
            assert len(handler.reasons) == len(handler.entered) <= 1, f"turn {turns}"
        assert_at_rest(served.app, served.clock)
    assert cancelled > 5


async def test_rule_4_a_cancelled_server_task_stays_cancelled() -> None:
    class Handler(Talks):
        pass

    served = Served(Handler)
    wire = await served.connected()
    wire.task.cancel("stop")
    await served.clock.settle()
    with pytest.raises(asyncio.CancelledError, match="stop"):
        wire.task.result()
    assert Handler.reasons == [RESTART]
    assert len(Handler.left) == 1, "on_disconnect has run to its end"
    assert wire.seen[-1] == ("close", 1012, "service restart")
    assert_at_rest(served.app, served.clock)


async def test_rule_4_a_hook_has_close_timeout_when_the_server_task_is_cancelled() -> None:
    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            await asyncio.Event().wait()

    served = Served(Slow, close_timeout=7, disconnect_grace=None)
    wire = await served.connected("x")
    for _ in range(3):
        wire.task.cancel()
        await served.clock.advance(2)
        assert not wire.task.done()
    await served.clock.advance(1)
    assert wire.task.cancelled()
    assert Slow.reasons == [RESTART]
    assert_at_rest(served.app, served.clock)


async def test_rule_4_level_cancellation_as_anyio_has_it() -> None:
    class Handler(Talks):
        pass

    served = Served(Handler)
    scope = anyio.CancelScope()
    behind: list[bool] = []

    async def cancellable(asgi_scope: Scope, receive: Receive, send: Send) -> None:
        with scope:
            await served.app(asgi_scope, receive, send)
        behind.append(scope.cancelled_caught)

    wire = Wire(cancellable)
    wire.connect()
    await served.clock.settle()
    scope.cancel()
    await served.clock.settle()
    await served.over(wire)
    assert behind == [True]
    assert Handler.reasons == [RESTART]
    assert len(Handler.left) == 1


async def test_rule_4_a_flush_that_nobody_reads_does_not_outlive_a_cancelled_server_task() -> None:
    class Handler(Journal):
        pass

    served = Served(Handler, close_timeout=7)
    wire = await served.connected()
    wire.writable.clear()
    assert Handler.sinks[0].send_nowait("x")
    await served.clock.settle()
    for _ in range(5):
        wire.task.cancel()
        await served.clock.settle()
    assert not wire.task.done()
    await served.clock.advance(7)
    assert wire.task.cancelled()
    assert_at_rest(served.app, served.clock)


async def test_rule_4_a_hooks_task_cancelled_before_it_began(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        pass

    served = Served(Handler)
    wire = served.wire()
    while (task := hooks_task()) is None:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)
    task.cancel()
    await served.clock.advance(10)
    await served.over(wire)
    assert wire.seen == [("http", 500)]
    assert Handler.sinks == []


async def test_rule_4_a_hooks_task_cancelled_while_it_waits_is_a_line_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler(Journal):
        pass

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected()
    task = hooks_task()
    assert task is not None
    task.cancel()
    await served.over(wire)
    assert wire.seen == ["accepted", ("close", 1011, "internal error")]
    assert logged.lines() == ["WARNING Handler for 192.0.2.1:4321 was cancelled from outside"]
    assert logged.exceptions() == []


class WaitsIn(Journal):
    """Waits for ever in one hook."""

    where: ClassVar[str]
    left: ClassVar[list[BaseException]]

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        if self.where == "refusal":
            raise HTTPException(401)
        await self.wait("on_connect")

    async def on_message(self, text: str) -> None:
        await self.wait("on_message")

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        await super().on_disconnect(reason)
        await self.wait("on_disconnect")

    async def wait(self, hook: str) -> None:
        if hook == self.where:
            try:
                await asyncio.Event().wait()
            except BaseException as exc:
                self.left.append(exc)
                raise


@pytest.mark.parametrize("place", ["on_connect", "refusal", "on_message", "on_disconnect"])
async def test_rule_4_hooks_that_are_thrown_away_with_their_loop_await_nothing_more(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Handler(WaitsIn):
        where = place
        left: ClassVar[list[BaseException]] = []

    served = Served(Handler)
    wire = served.wire()
    if place == "refusal":
        wire.writable.clear()
    await served.clock.settle()
    if place == "on_message":
        wire.message("x")
    if place == "on_disconnect":
        wire.lose()
    await served.clock.settle()
    task = hooks_task()
    assert task is not None
    coroutine: Any = task.get_coro()
    coroutine.close()
    assert [type(exc) for exc in Handler.left] == ([] if place == "refusal" else [GeneratorExit])
    wire.writable.set()
    task.cancel()
    wire.lose()
    await served.clock.advance(100)
    await served.over(wire)
    assert len(Handler.reasons) == (place == "on_disconnect")


async def test_rule_4_a_hook_may_raise_even_generator_exit(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            raise GeneratorExit

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected("x")
    await served.over(wire)
    assert wire.seen == ["accepted", ("close", 1011, "internal error")]
    assert Handler.reasons == [Error("Handler.on_message raised GeneratorExit: ")]
    assert logged.lines() == ["ERROR Handler.on_message failed for 192.0.2.1:4321"]


async def test_rule_4_what_fails_outside_of_the_hooks_still_closes_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class FailsOnce(logging.Filter):
        failed = False

        def filter(self, record: logging.LogRecord) -> bool:
            if not self.failed:
                self.failed = True
                raise RuntimeError("a broken filter")
            return True

    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            raise ValueError(text)

    logged = Logged(caplog)
    broken = FailsOnce()
    logging.getLogger("wsdeco").addFilter(broken)
    try:
        served = Served(Handler)
        wire = await served.connected("x")
        await served.over(wire)
    finally:
        logging.getLogger("wsdeco").removeFilter(broken)
    assert wire.seen == ["accepted", ("close", 1011, "internal error")]
    assert logged.lines() == ["ERROR Handler: the connection failed"]


async def test_rule_4_cancellation_while_the_reason_is_awaited(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send("to nobody")

    served = Served(Handler)
    wire = served.wire()
    wire.failure = OSError("gone")
    await served.clock.settle()
    assert Handler.reasons == [], "the server has not said yet why the peer is gone"
    task = hooks_task()
    assert task is not None
    task.cancel()
    await served.clock.settle()
    assert Handler.reasons == [Unknown()]
    await served.lose(wire)


async def test_rule_4_all_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "wsdeco")
    for seed in range(400):
        await all_ends_at_once(random.Random(seed))  # noqa: S311 - it is to be the same each time


async def all_ends_at_once(rng: random.Random) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> str:
            if text == "gate":
                await self.gate.wait()
            if text == "raise":
                raise ValueError(text)
            return text

    served = Served(
        Handler,
        idle_timeout=60,
        max_connection_duration=60,
        close_timeout=rng.choice([1, 10]),
        disconnect_grace=rng.choice([0, 30, None]),
    )
    wire = await served.connected()
    wire.answers = rng.random() < 0.8
    await served.clock.advance(59.999)
    if rng.random() < 0.3:
        wire.message("gate")
        await asyncio.sleep(0)
    sink = Handler.sinks[0]
    others: list[asyncio.Future[Any]] = []

    def spawn(coroutine: Awaitable[Any]) -> None:
        others.append(asyncio.ensure_future(coroutine))

    ends: list[Callable[[], object]] = [
        lambda: spawn(served.clock.advance(0.001)),
        lambda: spawn(sink.close(4002)),
        lambda: wire.close(4001),
        wire.lose,
        lambda: spawn(served.app.shut_down()),
        wire.task.cancel,
        lambda: wire.message("raise"),
        lambda: wire.message("x" * 2_000_000),
        lambda: sink.send_nowait("y" * 1_000_000),
        lambda: spawn(sink.send("z")),
        wire.writable.clear,
        Handler.gate.set,
    ]
    for end in rng.sample(ends, rng.randint(1, len(ends))):
        end()
        if rng.random() < 0.3:
            await asyncio.sleep(0)
    await served.clock.settle()
    wire.writable.set()
    Handler.gate.set()
    await let_go(wire, served)
    await asyncio.gather(*others, return_exceptions=True)
    assert len(Handler.reasons) == 1
    assert Handler.reasons == [sink.reason]
    assert_at_rest(served.app, served.clock)


# Rule 5: reasons. (The failures have their own file, as have the deadlines.)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"code": 1000, "reason": ""}, Close(1000, "", by="client")),
        ({"code": 1000}, Close(1000, "", by="client")),
        ({"code": 4001, "reason": "bye"}, BYE),
        ({"code": 1005, "reason": ""}, Close(1005, "", by="client")),
        ({"code": 1005, "reason": None}, Unknown()),
        ({"code": 1006, "reason": "x"}, Unknown()),
        ({}, Unknown()),
        ({"code": 1002, "reason": "bad frame"}, Close(1002, "bad frame", by="server")),
        ({"code": 1012}, RESTART),
        ({"code": 1012, "reason": "mine"}, Close(1012, "mine", by="client")),
    ],
    ids=str,
)
async def test_rule_5_the_reason_carries_the_evidence(event: dict[str, Any], reason: DisconnectReason) -> None:
    class Handler(Journal):
        pass

    served = Served(Handler)
    wire = await served.connected()
    wire.tell({"type": "websocket.disconnect", **event})
    await served.over(wire)
    found = Close(1012, "", by="server") if reason == RESTART else reason
    assert Handler.reasons == [found]
    assert Handler.sinks[0].reason == found


# Rule 7: errors.


async def test_rule_7_a_failure_is_logged_once_with_its_traceback_and_the_peer_learns_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            raise ValueError("secret\npassword")

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected("x", "y")
    await served.over(wire)
    assert wire.seen == ["accepted", ("close", 1011, "internal error")]
    assert logged.lines() == ["ERROR Handler.on_message failed for 192.0.2.1:4321"]
    (exception,) = logged.exceptions()
    assert isinstance(exception, ValueError)
    (reason,) = Handler.reasons
    assert isinstance(reason, Error)
    assert reason.exception is exception
    assert reason.message == r"Handler.on_message raised ValueError: secret\npassword"


async def test_rule_7_replies_before_the_failure_arrive() -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> str:
            return {"0": "zero", "1": "one", "2": "two"}[text]

    served = Served(Handler)
    wire = await served.connected(*(str(number) for number in range(50)))
    await served.over(wire)
    assert wire.seen == ["accepted", "zero", "one", "two", ("close", 1011, "internal error")]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this works")


async def test_rule_7_an_exception_that_cannot_be_shown_does_not_cost_on_disconnect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            raise UnprintableError

    served = Served(Handler)
    wire = await served.connected("x")
    await served.over(wire)
    assert wire.seen[-1] == ("close", 1011, "internal error")
    assert Handler.reasons == [Error("Handler.on_message raised UnprintableError")]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_rule_7_connection_closed_because_the_peer_left_is_no_error(
    wrapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            await self.gate.wait()
            if wrapped:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.sinks[0].send("a"))
                    group.create_task(self.sinks[0].send("b"))
            await self.sinks[0].send("c")

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            await super().on_disconnect(reason)
            await self.sinks[0].send("still there?")

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected("x")
    wire.close(4001, "bye")
    await served.clock.settle()
    Handler.gate.set()
    await served.over(wire)
    assert Handler.reasons == [BYE]
    assert logged.lines() == []


async def test_rule_7_a_group_with_anything_else_in_it_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            await self.gate.wait()
            raise ExceptionGroup("both", [ConnectionClosed(Unknown()), ValueError("x")])

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected("x")
    wire.close(4001, "bye")
    await served.clock.settle()
    Handler.gate.set()
    await served.over(wire)
    assert Handler.reasons == [BYE]
    assert logged.lines() == ["ERROR Handler.on_message failed for 192.0.2.1:4321"]


async def test_rule_7_connection_closed_of_another_connection_ends_the_hook_alone() -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            for sink in self.sinks:
                await sink.send(text)

    served = Served(Handler)
    first, second = await served.connected(), await served.connected()
    first.lose()
    await served.clock.settle()
    second.message("hello")
    await served.clock.settle()
    second.lose()
    await served.over(first, second)
    assert second.seen == ["accepted"]
    assert Handler.reasons == [Unknown(), Unknown()]


async def test_rule_7_on_disconnect_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            await super().on_disconnect(reason)
            raise HTTPException(500)

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected()
    wire.lose()
    await served.over(wire)
    assert logged.lines() == ["ERROR Handler.on_disconnect failed for 192.0.2.1:4321"]
    assert Handler.reasons == [Unknown()]


async def test_rule_7_a_server_whose_receive_fails_has_lost_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        pass

    logged = Logged(caplog)
    served = Served(Handler)
    for failure in (RuntimeError("broken"), KeyError("broken")):
        wire = await served.connected()
        wire.tell(failure)
        await served.over(wire)
    wire = await served.connected()
    wire.tell({"type": "websocket.receive"})
    await served.over(wire)
    assert Handler.reasons == [Unknown()] * 3
    assert logged.lines() == []
    assert logged.lines(logging.DEBUG) == ["DEBUG Handler: receive() failed"] * 3


@pytest.mark.parametrize("way", ["send", "send_nowait", "reply", "close"])
async def test_rule_7_a_server_whose_send_fails_has_lost_the_peer(way: str, caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> Any:
            sink = self.sinks[0]
            match way:
                case "send":
                    await sink.send("x")
                case "send_nowait":
                    assert sink.send_nowait("x")
                case "close":
                    await sink.close(4002)
                case _:
                    return "x"
            return None

    logged = Logged(caplog)
    served = Served(Handler)
    wire = await served.connected()
    wire.failure = KeyError("odd")
    wire.message("x")
    # The server never says that the peer has gone.
    await served.clock.advance(100)
    await served.over(wire)
    assert Handler.reasons == [Close(4002, by="server") if way == "close" else Unknown()]
    assert logged.lines() == ["ERROR the server's send() failed for 192.0.2.1:4321"]
    assert isinstance(logged.exceptions()[0], KeyError)


async def test_rule_7_a_server_whose_send_and_receive_fail_together_has_lost_the_peer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            await self.gate.wait()
            await self.sinks[-1].send("x")

    logged = Logged(caplog)
    served = Served(Handler)
    for turns in range(8):
        wire = await served.connected("x")
        wire.failure = OSError("gone")
        Handler.gate.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        wire.tell(RuntimeError("gone"))
        await served.over(wire)
        Handler.gate.clear()
    assert Handler.reasons == [Unknown()] * 8
    assert logged.lines() == []


# Rule 8: sending.


async def sink_and_wire(**limits: Any) -> tuple[Sink, Wire, Served]:
    class Handler(Journal):
        pass

    served = Served(Handler, **limits)
    wire = await served.connected()
    return Handler.sinks[0], wire, served


async def test_rule_8_the_sink_tells_of_its_connection() -> None:
    class Handler(Journal):
        pass

    clock = ManualClock()
    app = App(clock=clock)
    app.add("/rooms/{room}/{n:int}", Handler, subprotocols=["b", "a"])
    scope = websocket_scope([("x-test", "1"), ("cookie", "k=v")], ["a", "b"], query="q=1&q=2")
    wire = Wire(app, {**scope, "path": "/rooms/red/7", "raw_path": b"/rooms/red/7"})
    wire.connect()
    await clock.settle()
    (sink,) = Handler.sinks
    assert sink.addr == Address("192.0.2.1", 4321)
    assert (sink.addr.host, sink.addr.port) == ("192.0.2.1", 4321)
    assert sink.headers["X-Test"] == "1"
    assert sink.query_params.getlist("q") == ["1", "2"]
    assert sink.path_params == {"room": "red", "n": 7}
    assert sink.request.cookies == {"k": "v"}
    assert sink.request.url.path == "/rooms/red/7"
    assert sink.subprotocol == "b"
    assert (sink.closed, sink.reason, sink.dropped) == (False, None, 0)
    assert repr(sink) == "<Sink 192.0.2.1:4321 open>"
    assert {sink: 1}[sink] == 1
    wire.close(4001, "bye")
    await clock.settle()
    assert (sink.closed, sink.reason) == (True, BYE)
    assert repr(sink) == "<Sink 192.0.2.1:4321 closed>"
    assert_at_rest(app, clock)


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        (None, "unknown address"),
        (["::1", 80], "[::1]:80"),
        (["evil\r\nhost", 1], r"evil\r\nhost:1"),
    ],
)
async def test_rule_8_addresses(client: list[Any] | None, shown: str) -> None:
    class Handler(Journal):
        pass

    served = Served(Handler)
    wire = served.wire({**websocket_scope(), "client": client})
    await served.clock.settle()
    assert str(Handler.sinks[0].addr) == shown
    await served.lose(wire)


@pytest.mark.parametrize(
    ("configured", "offered", "wanted", "agreed"),
    [
        ([], ["a"], None, None),
        (["b", "a"], ["a", "b"], None, "b"),
        (["c"], ["a", "b"], None, None),
        (["b"], ["a", "b"], "a", "a"),
        ([], [], None, None),
    ],
)
async def test_rule_8_subprotocols(
    configured: list[str], offered: list[str], wanted: str | None, agreed: str | None
) -> None:
    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await super().on_connect(addr, sink)
            await sink.accept(wanted)

    served = Served(Handler, subprotocols=configured)
    wire = served.wire(websocket_scope(subprotocols=offered))
    await served.clock.settle()
    assert wire.sent[0]["subprotocol"] == agreed
    assert Handler.sinks[0].subprotocol == agreed
    await served.lose(wire)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"subprotocol": "x"}, ValueError, "'x' was not offered by the client, which offers 1 others"),
        ({"headers": {"bad name": "x"}}, ValueError, "header name 'bad name' is not a token"),
        ({"headers": {"": "x"}}, ValueError, "header name '' is not a token"),
        ({"headers": {"x": "a\nb"}}, ValueError, "header 'x' has a value that no header can carry"),
        ({"headers": {"x": "\u20ac"}}, ValueError, "header 'x' has a value that no header can carry"),
        ({"headers": {"Upgrade": "x"}}, ValueError, "header 'Upgrade' belongs to the handshake"),
        ({"headers": {"Sec-WebSocket-Protocol": "x"}}, ValueError, "write subprotocol=..."),
        ({"headers": [("x", 1)]}, TypeError, "headers must be pairs of str"),
        ({"headers": [(b"x", "1")]}, TypeError, "headers must be pairs of str"),
    ],
    ids=str,
)
async def test_rule_8_accept_refuses(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            with pytest.raises(error) as caught:
                await sink.accept(**arguments)
            assert says in str(caught.value)
            # It has not been accepted, so it may still be.
            await sink.accept("a", {"x": "y"})

    served = Served(Handler)
    wire = served.wire(websocket_scope(subprotocols=["a"]))
    await served.clock.settle()
    assert wire.sent == [{"type": "websocket.accept", "subprotocol": "a", "headers": [(b"x", b"y")]}]
    await served.lose(wire)


async def test_rule_8_accept_comes_once_and_first() -> None:
    sink, wire, served = await sink_and_wire()
    with pytest.raises(RuntimeError, match=r"accepted already: call accept\(\) in on_connect, before any send\(\)"):
        await sink.accept()
    await served.lose(wire)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (
            1,
            TypeError,
            "a message must be str or bytes, not int: write sink.send_json(...), or annotate on_message with types",
        ),
        (None, TypeError, "not NoneType"),
        ("\ud800", ValueError, "text cannot be sent, UTF-8 has no form for it"),
    ],
)
async def test_rule_8_what_is_no_message_is_refused_and_the_connection_lives(
    data: Any, error: type[Exception], says: str
) -> None:
    sink, wire, served = await sink_and_wire()
    with pytest.raises(error) as caught:
        await sink.send(data)
    assert says in str(caught.value)
    with pytest.raises(error):
        sink.send_nowait(data)
    await sink.send("alive")
    assert wire.seen == ["accepted", "alive"]
    await served.lose(wire)


async def test_rule_8_send_takes_text_and_anything_like_bytes() -> None:
    sink, wire, served = await sink_and_wire()
    buffer: Any = bytearray(b"array")
    view: Any = memoryview(b"view")
    for data in ("text", b"bytes", buffer, view, "", b""):
        await sink.send(data)
    buffer[0] = 0
    assert wire.seen == ["accepted", "text", b"bytes", b"array", b"view", "", b""]
    await served.lose(wire)


@pytest.mark.parametrize(
    ("data", "error"), [(set[str](), TypeError), (float("nan"), ValueError), ("\ud800", ValueError)], ids=repr
)
async def test_rule_8_what_json_cannot_carry(data: object, error: type[Exception]) -> None:
    sink, wire, served = await sink_and_wire()
    with pytest.raises(error):
        await sink.send_json(data)
    await sink.send_json({"\u20ac": [True, None]})
    assert wire.seen[1:] == ['{"\u20ac":[true,null]}']
    await served.lose(wire)


async def test_rule_8_sends_of_many_tasks_keep_their_order() -> None:
    sink, wire, served = await sink_and_wire()
    wire.before_send = slow_send
    tasks = [asyncio.create_task(sink.send(str(number))) for number in range(100)]
    await asyncio.sleep(0)
    assert sink.send_nowait("last")
    await asyncio.gather(*tasks)
    await served.clock.settle()
    assert wire.seen == ["accepted", *(str(number) for number in range(100)), "last"]
    await served.lose(wire)


@pytest.mark.parametrize("nowait_first", [False, True])
async def test_rule_8_sends_before_the_upgrade_keep_their_order(nowait_first: bool) -> None:
    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            if nowait_first:
                assert sink.send_nowait("nowait")
            await asyncio.gather(*(sink.send(str(number)) for number in range(5)))

    served = Served(Handler)
    wire = served.wire()
    wire.before_send = slow_send
    await served.clock.settle()
    assert wire.seen == ["accepted", *(["nowait"] if nowait_first else []), *"01234"]
    await served.lose(wire)


async def test_rule_8_a_send_that_is_cancelled_in_the_queue_is_not_sent() -> None:
    sink, wire, served = await sink_and_wire()
    wire.writable.clear()
    first, second, third = [asyncio.create_task(sink.send(text)) for text in "abc"]
    await served.clock.settle()
    second.cancel()
    await served.clock.settle()
    wire.writable.set()
    await asyncio.gather(first, third)
    assert wire.seen == ["accepted", "a", "c"]
    await served.lose(wire)


async def test_rule_8_send_waits_while_the_peer_does_not_read() -> None:
    sink, wire, served = await sink_and_wire()
    wire.writable.clear()
    task = asyncio.create_task(sink.send("x"))
    await served.clock.settle()
    assert not task.done()
    wire.writable.set()
    await task
    assert wire.seen == ["accepted", "x"]
    await served.lose(wire)


async def test_rule_8_send_after_the_end_raises_with_the_reason() -> None:
    sink, wire, served = await sink_and_wire()
    wire.close(4001, "bye")
    await served.over(wire)
    for use in (sink.send("x"), sink.send_json(1)):
        with pytest.raises(ConnectionClosed) as caught:
            await use
        assert caught.value.reason == BYE
        assert str(caught.value) == "the connection has ended: closed by the client with 4001 (bye)"
    with pytest.raises(RuntimeError, match="accepted already"):
        await sink.accept()
    assert sink.send_nowait("x") is False
    await sink.close()


async def test_rule_8_senders_in_the_queue_learn_that_the_peer_has_gone() -> None:
    sink, wire, served = await sink_and_wire()
    wire.writable.clear()
    tasks = [asyncio.create_task(sink.send(str(number))) for number in range(5)]
    await served.clock.settle()
    wire.close(4001, "bye")
    wire.writable.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [result.reason for result in results if isinstance(result, ConnectionClosed)] == [BYE] * 5
    await served.over(wire)
    assert wire.seen == ["accepted"]


async def test_rule_8_a_sender_in_the_queue_learns_that_its_own_write_failed() -> None:
    sink, wire, served = await sink_and_wire()
    wire.before_send = slow_send
    first, second, third = [asyncio.create_task(sink.send(text)) for text in "abc"]
    await first
    wire.failure = OSError("gone")
    for task in (second, third):
        with pytest.raises(ConnectionClosed):
            await task
    assert wire.seen == ["accepted", "a"]
    await served.lose(wire)


async def test_rule_8_a_send_that_finds_the_peer_gone_learns_why_if_the_server_says_so() -> None:
    sink, wire, served = await sink_and_wire()
    wire.close(4001, "bye")
    with pytest.raises(ConnectionClosed) as caught:
        await sink.send("x")
    assert caught.value.reason == BYE
    await served.over(wire)


async def test_rule_8_close_sends_what_waits_first_and_only_once() -> None:
    sink, wire, served = await sink_and_wire()
    wire.writable.clear()
    sending = [asyncio.create_task(sink.send(text)) for text in "ab"]
    await served.clock.settle()
    assert sink.send_nowait("c")
    closing = [asyncio.create_task(sink.close(4002, "enough")), asyncio.create_task(sink.close(4003, "again"))]
    await served.clock.settle()
    assert sink.reason == Close(4002, "enough", by="server")
    assert sink.send_nowait("d") is False
    wire.writable.set()
    await asyncio.gather(*sending, *closing)
    await served.over(wire)
    await sink.close(4004)
    assert wire.seen == ["accepted", "a", "b", "c", ("close", 4002, "enough")]


async def test_rule_8_close_after_the_peer_has_gone_changes_nothing() -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            with contextlib.suppress(ConnectionClosed):
                await self.sinks[0].send("x")
            await self.sinks[0].close()

    served = Served(Handler)
    wire = await served.connected()
    wire.failure = OSError("gone")
    wire.message("x")
    await served.clock.advance(1)
    # The server says late what has happened, and that is what counts.
    wire.close(4001, "bye")
    await served.over(wire)
    assert Handler.reasons == [BYE]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, -1, 65536])
async def test_rule_8_reserved_codes_are_refused_and_the_connection_lives(code: int) -> None:
    sink, wire, served = await sink_and_wire()
    with pytest.raises(ValueError, match=f"close code {code} may not be sent"):
        await sink.close(code)
    assert not sink.closed
    await served.lose(wire)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("1000",), TypeError), ((True,), TypeError), ((1000, None), TypeError), ((1000, "\ud800"), ValueError)],
)
async def test_rule_8_close_refuses_what_no_frame_can_carry(arguments: Any, error: type[Exception]) -> None:
    sink, wire, served = await sink_and_wire()
    with pytest.raises(error, match="close"):
        await sink.close(*arguments)
    assert not sink.closed
    await served.lose(wire)


@pytest.mark.parametrize(("text", "arrives"), [("x" * 124, "x" * 123), ("\u20ac" * 50, "\u20ac" * 41)])
async def test_rule_8_the_text_of_a_close_is_cut_to_what_fits(text: str, arrives: str) -> None:
    sink, wire, served = await sink_and_wire()
    await sink.close(4000, text)
    await served.over(wire)
    assert wire.seen[-1] == ("close", 4000, arrives)
    assert sink.reason == Close(4000, arrives, by="server")


async def test_rule_8_close_when_the_upgrade_finds_nobody() -> None:
    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await super().on_connect(addr, sink)
            await sink.close(4002)

    served = Served(Handler)
    wire = served.wire()
    wire.failure = OSError("gone")
    await served.clock.advance(20)
    await served.over(wire)
    assert Handler.reasons == [Unknown()]


async def test_rule_8_a_slow_consumer_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    sink, wire, served = await sink_and_wire(max_outbox=1000)
    wire.writable.clear()
    assert [sink.send_nowait("x" * 100) for _ in range(10)] == [True] * 10
    await served.clock.settle()
    # The first is being written and still counts: it has not left.
    assert sink.send_nowait("x") is False
    assert sink.reason == Close(1013, "slow consumer", by="server")
    assert sink.dropped == 0
    assert sink.send_nowait("x") is False
    wire.writable.set()
    await served.over(wire)
    assert wire.seen == ["accepted", "x" * 100, ("close", 1013, "slow consumer")], "after deciding not a byte more"


async def test_rule_8_a_slow_consumer_may_lose_messages_instead() -> None:
    sink, wire, served = await sink_and_wire(max_outbox=1000, slow_consumer="drop")
    wire.writable.clear()
    assert [sink.send_nowait("\u20ac" * 100) for _ in range(5)] == [True] * 3 + [False] * 2
    assert sink.dropped == 2
    assert sink.send_nowait("x" * 100) is True, "a smaller one may still fit"
    assert sink.reason is None
    wire.writable.set()
    await served.clock.settle()
    assert wire.seen == ["accepted", *["\u20ac" * 100] * 3, "x" * 100]
    assert sink.send_nowait("x" * 1000) is True
    assert sink.dropped == 2
    await served.clock.settle()
    await served.lose(wire)


async def test_rule_8_a_message_that_never_fits_the_outbox_is_refused() -> None:
    sink, wire, served = await sink_and_wire(max_outbox=1000)
    with pytest.raises(ValueError, match="a message of 1001 bytes never fits max_outbox=1000"):
        sink.send_nowait("x" * 1001)
    await sink.send("x" * 1001)
    assert not sink.closed
    await served.lose(wire)


async def test_rule_8_send_nowait_waits_for_the_upgrade() -> None:
    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            assert sink.send_nowait("early")
            await self.gate.wait()

    served = Served(Handler)
    wire = served.wire()
    await served.clock.settle()
    assert wire.sent == []
    Handler.gate.set()
    await served.clock.settle()
    assert wire.seen == ["accepted", "early"]
    await served.lose(wire)


async def test_rule_8_the_sink_belongs_to_its_loop() -> None:
    sink, wire, served = await sink_and_wire()
    errors: list[Exception] = []

    def elsewhere() -> None:
        uses: list[Callable[[], object]] = [
            lambda: asyncio.run(sink.send("x")),
            lambda: asyncio.run(sink.close()),
            lambda: asyncio.run(sink.accept()),
        ]
        for use in uses:
            try:
                use()
            except RuntimeError as exc:
                errors.append(exc)

    await asyncio.to_thread(elsewhere)
    assert len(errors) == 3
    assert all("run_coroutine_threadsafe" in str(error) for error in errors)
    loop = asyncio.get_running_loop()
    thread = threading.Thread(target=lambda: asyncio.run_coroutine_threadsafe(sink.send("hi"), loop).result())
    thread.start()
    while wire.seen != ["accepted", "hi"]:  # noqa: ASYNC110 - another thread sends it
        await asyncio.sleep(0)
    await asyncio.to_thread(thread.join)
    await served.lose(wire)


# Rule 9: shutdown.


async def test_rule_9_shutdown_closes_all_and_lets_no_new_one_in() -> None:
    class Handler(Journal):
        pass

    served = Served(Handler)
    wires = [await served.connected() for _ in range(20)]
    await asyncio.gather(served.app.shut_down(), served.app.shut_down())
    await served.over(*wires)
    assert [wire.seen for wire in wires] == [["accepted", ("close", 1012, "service restart")]] * 20
    assert Handler.reasons == [RESTART] * 20
    late = served.wire()
    await served.over(late)
    assert late.seen == [("http", 503)]


async def test_rule_9_shutdown_lets_a_hook_finish_within_its_deadline() -> None:
    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            await self.gate.wait()
            self.reasons.append(Error("finished"))

    served = Served(Slow, close_timeout=7)
    wire = await served.connected("x")
    stopping = [asyncio.create_task(served.app.shut_down()) for _ in range(3)]
    await served.clock.advance(6.9)
    assert not any(task.done() for task in stopping)
    Slow.gate.set()
    await served.clock.settle()
    assert Slow.reasons == [Error("finished"), RESTART]
    async with asyncio.timeout(5):
        await asyncio.gather(*stopping)
    await served.over(wire)


async def test_rule_9_the_servers_own_shutdown_gives_hooks_close_timeout_too() -> None:
    class Slow(Journal):
        async def on_message(self, text: str) -> None:
            await asyncio.Event().wait()

    served = Served(Slow, close_timeout=7, disconnect_grace=None)
    wire = await served.connected("x")
    wire.tell({"type": "websocket.disconnect", "code": 1012})
    await served.clock.advance(6.9)
    assert Slow.reasons == []
    await served.clock.advance(0.1)
    await served.over(wire)
    assert Slow.reasons == [Close(1012, "", by="server")]


async def test_rule_9_shutdown_while_the_closing_handshake_goes_on_leaves_no_timer() -> None:
    sink, wire, served = await sink_and_wire()
    wire.answers = False
    await sink.close(4002)
    stopping = asyncio.create_task(served.app.shut_down())
    await served.clock.settle()
    wire.close(4002)
    await stopping
    await served.over(wire)


async def test_rule_9_shutdown_before_the_server_has_told_of_the_handshake() -> None:
    class Handler(Journal):
        def __init__(self) -> None:
            raise NotImplementedError

    served = Served(Handler)
    wire = Wire(served.app)
    wire.answers = False
    await served.clock.settle()
    stopping = asyncio.create_task(served.app.shut_down())
    await served.clock.settle()
    assert wire.seen == [("http", 503)]
    await served.clock.advance(20)
    wire.connect()
    await stopping
    await served.over(wire)


async def test_rule_9_a_hook_that_shuts_the_app_down_does_not_hang_it() -> None:
    class Handler(Journal):
        app: ClassVar[App]

        async def on_message(self, text: str) -> None:
            await self.app.shut_down()

    served = Served(Handler, close_timeout=7)
    Handler.app = served.app
    wire = await served.connected("x")
    await served.clock.advance(7)
    await served.over(wire)
    assert Handler.reasons == [RESTART]


# Rule 10: definition time.


async def test_rule_10_nothing_is_checked_per_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(Journal):
        async def on_message(self, text: str) -> str:
            return text

    served = Served(Handler)

    def refuse(*_args: object) -> None:
        raise NotImplementedError

    for name in ("wsdeco.definition.base.inspected", "wsdeco.definition.base.hook_faults", "inspect.signature"):
        monkeypatch.setattr(name, refuse)
    wire = await served.connected("x")
    assert wire.seen == ["accepted", "x"]
    await served.lose(wire)


# What hooks may rely on.

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


async def test_all_hooks_run_in_one_task_and_one_context() -> None:
    seen: list[tuple[str, object]] = []

    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            seen.append((request_id.get(), asyncio.current_task()))
            request_id.set("from on_connect")

        async def on_message(self, text: str) -> None:
            seen.append((request_id.get(), asyncio.current_task()))
            request_id.set("from on_message")

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            seen.append((request_id.get(), asyncio.current_task()))

    served = Served(Handler)
    request_id.set("from a middleware")
    wire = await served.connected("x")
    await served.lose(wire)
    assert [value for value, _ in seen] == ["from a middleware", "from on_connect", "from on_message"]
    assert len({task for _, task in seen}) == 1
    assert request_id.get() == "from a middleware"


async def test_asyncio_timeout_and_task_groups_work_in_hooks() -> None:
    done: list[str] = []

    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.sinks[0].send("a"))
                group.create_task(self.sinks[0].send("b"))
            done.append(text)

    served = Served(Handler)
    wire = await served.connected("x")
    while not done:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0.001)
    assert wire.seen == ["accepted", "a", "b"]
    await served.lose(wire)


async def test_a_hook_that_cancels_itself_and_swallows_it_goes_on_as_if_nothing_had_been() -> None:
    counts: list[int] = []

    class Handler(Journal):
        async def on_message(self, text: str) -> None:
            task = asyncio.current_task()
            assert task is not None
            counts.append(task.cancelling())
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    served = Served(Handler)
    wire = await served.connected("x", "y")
    assert counts == [0, 0]
    await served.lose(wire)
    assert Handler.reasons == [Unknown()]


async def test_a_background_task_of_a_hook_may_outlive_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(Journal):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            background.append(asyncio.create_task(self.tick(sink)))

        async def tick(self, sink: Sink) -> str:
            try:
                while True:
                    await sink.send("tick")
                    await self.gate.wait()
            except ConnectionClosed as exc:
                return str(exc.reason)

    background: list[asyncio.Task[str]] = []
    served = Served(Handler)
    wire = await served.connected()
    assert wire.seen == ["accepted", "tick"]
    wire.close(4001, "bye")
    await served.clock.settle()
    assert wire.task.done()
    Handler.gate.set()
    assert await background[0] == "closed by the client with 4001 (bye)"
    await served.over(wire)


@pytest.mark.parametrize("kind", ["plain", "eager"])
async def test_task_factories(kind: str) -> None:
    def plain(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        # One that is as old as asyncio knows of no context.
        assert "context" not in options
        return asyncio.Task(coro, loop=loop, **options)

    if kind == "eager" and sys.version_info < (3, 12):
        pytest.skip("this Python has no eager tasks")

    class Handler(Journal):
        async def on_message(self, text: str) -> str:
            return text

    loop = asyncio.get_running_loop()
    factory: Any = plain if kind == "plain" else vars(asyncio)["eager_task_factory"]
    loop.set_task_factory(factory)
    try:
        served = Served(Handler)
        wire = await served.connected("a", "b")
        assert wire.seen == ["accepted", "a", "b"]
        await served.lose(wire)
    finally:
        loop.set_task_factory(None)
