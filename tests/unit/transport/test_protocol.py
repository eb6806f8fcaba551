"""The protocol on a transport in memory and a clock that the test moves: one concern per class."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from tests.support import client_frames as wire
from tests.support.client_frames import BINARY, CONT, PING, PONG, TEXT, client_frame
from tests.support.in_memory import ACCEPTED, REQUEST, Session, request, settle
from wsdeco.reasons import Close, Unknown
from wsdeco.transport.protocol import WebSocketProtocol
from wsdeco.wire.outgoing import encode_close, encode_message, encode_ping

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

ACCEPT: Event = {"type": "websocket.accept"}
CLOSED_1006 = {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def text(content: str) -> Event:
    return {"type": "websocket.send", "text": content}


def disconnect(code: int, reason: str = "") -> Event:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


class Echo:
    """An application that accepts, echoes, and keeps a log of what it received."""

    def __init__(self, accept: Event = ACCEPT) -> None:
        self.accept = accept
        self.scope: dict[str, Any] = {}
        self.events: list[Event] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        assert await receive() == {"type": "websocket.connect"}
        await send(self.accept)
        while True:
            await self.gate.wait()
            event = await receive()
            self.events.append(event)
            if event["type"] == "websocket.disconnect":
                return
            await self.gate.wait()
            await send({**event, "type": "websocket.send"})


class Script:
    """An application that does what a test tells it."""

    def __init__(self, *sends: Event) -> None:
        self.sends = sends
        self.receive: Receive
        self.send: Send
        self.result: object = None
        self.done = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Any:
        self.receive, self.send = receive, send
        for event in self.sends:
            await send(event)
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.result

    async def end(self, error: BaseException | None = None, *, result: object = None) -> None:
        self.error = error
        self.result = result
        self.done.set()
        await settle()


@pytest.fixture(autouse=True)
async def _no_error_escapes(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Fail a test whose loop has met an exception nobody handled."""
    escaped: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    caplog.set_level(logging.DEBUG, "uvicorn.error")
    yield
    await settle()
    assert escaped == []


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


class TestHandshake:
    async def test_accept(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Echo()
        session = Session(app)
        assert await session.feed(REQUEST) == ACCEPTED
        assert '"WebSocket /chat?x=1" [accepted]' in caplog.text
        await session.end()
        assert app.events == [CLOSED_1006]

    async def test_split_at_every_byte(self) -> None:
        session = Session(Echo())
        for index in range(len(REQUEST)):
            session.transport.feed(REQUEST[index : index + 1])
        await settle()
        assert session.transport.take() == ACCEPTED
        assert await session.feed(wire.text("a")) == encode_message("a")
        await session.end()

    async def test_scope(self) -> None:
        app = Echo()
        session = Session(app, root_path="/root")
        await session.feed(
            request("X-A: caf\xe9", "x-a: 2", "sec-websocket-protocol: a, b").replace(b"/chat", b"/ch%20at%C3%A9")
        )
        # What wsdeco's own endpoints take; it means nothing to any other app.
        assert app.scope["extensions"].pop("wsdeco") is not None
        assert app.scope == {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "server": None,
            "client": None,
            "root_path": "/root",
            "path": "/root/ch até",
            "raw_path": b"/root/ch%20at%C3%A9",
            "query_string": b"x=1",
            "headers": [
                (b"host", b"example.com"),
                (b"upgrade", b"websocket"),
                (b"connection", b"Upgrade"),
                (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
                (b"sec-websocket-version", b"13"),
                (b"x-a", b"caf\xe9"),
                (b"x-a", b"2"),
                (b"sec-websocket-protocol", b"a, b"),
            ],
            "subprotocols": ["a", "b"],
            "state": {"from": "lifespan"},
            "extensions": {"websocket.http.response": {}},
        }
        await session.end()

    async def test_tls_is_wss(self) -> None:
        app = Echo()
        session = Session(app, tls=True)
        await session.open()
        assert app.scope["scheme"] == "wss"
        await session.end()

    async def test_headers_and_subprotocol(self) -> None:
        cookies = [(b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]
        app = Echo({"type": "websocket.accept", "subprotocol": "b", "headers": cookies})
        session = Session(app)
        session.state.default_headers = [(b"server", b"uvicorn")]
        assert await session.feed(request("sec-websocket-protocol: a, b")) == ACCEPTED[:-2] + (
            b"server: uvicorn\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nSec-WebSocket-Protocol: b\r\n\r\n"
        )
        await session.end()

    @pytest.mark.parametrize("subprotocol", [None, "", "b"])
    async def test_a_subprotocol_among_the_headers(self, subprotocol: str | None) -> None:
        headers = [(b"Sec-WebSocket-Protocol", b"a")]
        session = Session(Echo({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers}))
        response = await session.feed(request("sec-websocket-protocol: a, b"))
        assert response.count(b"Sec-WebSocket-Protocol: ") == 1
        assert (b"Sec-WebSocket-Protocol: " + (subprotocol or "a").encode()) in response
        await session.end()

    async def test_a_subprotocol_nobody_offered(self) -> None:
        app = Script()
        session = Session(app)
        await session.feed(request("sec-websocket-protocol: a"))
        with pytest.raises(ValueError, match="'x' was not offered"):
            await app.send({"type": "websocket.accept", "subprotocol": "x"})
        await app.send(ACCEPT)
        await settle()
        assert session.transport.take() == ACCEPTED
        await session.end()

    async def test_header_injection(self) -> None:
        app = Script()
        session = Session(app)
        await session.feed(REQUEST)
        with pytest.raises(ValueError, match="control character"):
            await app.send({"type": "websocket.accept", "headers": [(b"x", b"a\r\nset-cookie: b")]})
        with pytest.raises(ValueError, match="not a token"):
            await app.send({"type": "websocket.http.response.start", "status": 200, "headers": [(b"x\r\ny", b"a")]})
        assert session.transport.take() == b""
        await session.end()

    async def test_early_frames_are_delivered(self) -> None:
        app = Echo()
        session = Session(app)
        assert await session.feed(REQUEST + wire.text("early")) == ACCEPTED + encode_message("early")
        await session.end()

    async def test_early_frames_are_bounded(self) -> None:
        app = Script()
        session = Session(app)
        await session.feed(REQUEST)
        frames = client_frame(BINARY, b"x" * 20_000)
        for _ in range(5):
            session.transport.feed(frames)
        assert session.transport.paused
        assert len(session.transport.waiting) == 1
        await app.send(ACCEPT)
        await settle()
        received = [await app.receive() for _ in range(6)]
        assert [event["type"] for event in received] == ["websocket.connect"] + ["websocket.receive"] * 5
        assert not session.transport.paused
        await session.end()

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (REQUEST.replace(b"GET", b"PUT"), b"405 Method Not Allowed\r\nallow: GET"),
            (REQUEST.replace(b"version: 13", b"version: 8"), b"426 Upgrade Required\r\nsec-websocket-version: 13"),
            (REQUEST.replace(b"ZQ==", b""), b"400 Bad Request"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400 Bad Request"),
            (request(*["x: y"] * 200), b"431 Request Header Fields Too Large"),
            (request("x: " + "y" * 70_000), b"431 Request Header Fields Too Large"),
            (b"GET / HTTP/1.1\r\nx: " + b"y" * 65_536, b"431 Request Header Fields Too Large"),
        ],
    )
    async def test_a_failed_handshake_closes_the_connection(
        self, head: bytes, status: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = Script()
        session = Session(app)
        response = await session.feed(head + b"GET /smuggled HTTP/1.1\r\n\r\n", b"more")
        assert response.startswith(b"HTTP/1.1 " + status)
        assert b"\r\nconnection: close\r\n" in response
        assert response.count(b"HTTP/1.1") == 1
        assert session.transport.wrote_eof
        assert not session.transport.closing
        assert errors(caplog) == []
        session.transport.feed_eof()
        await session.end()

    async def test_a_refused_peer_that_does_not_close_is_aborted(self) -> None:
        session = Session(Script())
        await session.feed(b"garbage\r\n\r\n")
        await session.advance(1.9)
        assert not session.transport.aborted
        await session.advance(0.2)
        assert session.transport.aborted
        await session.end()

    async def test_concurrency_limit(self) -> None:
        session = Session(Script(), limit_concurrency=1)
        session.state.connections.add(Any)  # type: ignore[arg-type]
        assert (await session.feed(REQUEST)).startswith(b"HTTP/1.1 503 ")
        session.state.connections.clear()
        await session.end()

    async def test_concurrency_limit_by_tasks(self) -> None:
        session = Session(Echo(), limit_concurrency=2)
        busy = [asyncio.ensure_future(asyncio.sleep(0)) for _ in range(2)]
        session.state.tasks.update(busy)
        assert (await session.feed(REQUEST)).startswith(b"HTTP/1.1 503 ")
        session.state.tasks.clear()
        await session.end()

    async def test_below_the_concurrency_limit(self) -> None:
        session = Session(Echo(), limit_concurrency=2)
        await session.open()
        await session.end()

    async def test_compression(self) -> None:
        session = Session(Echo(), ws_per_message_deflate=True)
        response = await session.feed(
            request("sec-websocket-extensions: permessage-deflate; client_no_context_takeover")
        )
        agreed = b"permessage-deflate; client_no_context_takeover; server_max_window_bits=12"
        assert b"\r\nSec-WebSocket-Extensions: " + agreed + b"\r\n" in response
        reply = await session.feed(client_frame(TEXT, wire.deflated(b"again" * 50), reserved=0x40))
        assert reply[0] == 0xC1
        assert len(reply) < 30
        await session.end()

    @pytest.mark.parametrize("offer", ["=;=", "permessage-deflate; what=1", "other"])
    async def test_no_compression(self, offer: str) -> None:
        session = Session(Echo(), ws_per_message_deflate=True)
        assert await session.feed(request("sec-websocket-extensions: " + offer)) == ACCEPTED
        await session.end()

    async def test_log_line_holds_no_control_characters(self, caplog: pytest.LogCaptureFixture) -> None:
        session = Session(Echo())
        await session.feed(REQUEST.replace(b"/chat", b"/%0Aevil%1b"))
        assert '"WebSocket /%0Aevil%1B?x=1" [accepted]' in caplog.text
        await session.end()

    async def test_nothing_is_logged_below_the_level(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "uvicorn.error")
        session = Session(Echo())
        await session.open()
        assert caplog.text == ""
        await session.end()

    async def test_peer_gone_before_the_answer(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Script()
        session = Session(app)
        await session.feed(REQUEST)
        session.transport.feed_eof()
        await settle()
        assert [await app.receive(), await app.receive()] == [{"type": "websocket.connect"}, CLOSED_1006]
        with pytest.raises(ClientDisconnected):
            await app.send(ACCEPT)
        await app.end()
        assert errors(caplog) == []
        await session.end()

    async def test_the_head_never_comes(self) -> None:
        session = Session(Script())
        await session.feed(REQUEST[:-5])
        session.transport.feed_eof()
        await settle()
        assert session.transport.lost
        await session.end()

    def test_outside_of_a_loop(self) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            Session(Script())

    async def test_a_configuration_that_is_not_loaded(self) -> None:
        config = Config(Script(), log_config=None)
        WebSocketProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        assert config.loaded

    async def test_accept_and_refuse_work_once(self) -> None:
        session = Session(Echo())
        with pytest.raises(RuntimeError, match="accepted or refused before"):
            session.protocol.accept()
        await session.open()
        with pytest.raises(RuntimeError, match="accepted or refused before"):
            session.protocol.refuse(403)
        await session.end()

    async def test_limits_of_the_route(self) -> None:
        app = Script()
        session = Session(app, ws_per_message_deflate=True)
        await session.feed(request("sec-websocket-extensions: permessage-deflate"))
        session.protocol.accept(max_message_size=3, compression=False)
        assert await session.feed(wire.text("abcd")) == ACCEPTED
        assert session.protocol.end == Close(1009, "message is longer than 3 bytes", by="server")
        await session.end()


class TestDenial:
    async def test_close_before_accept_is_403(self) -> None:
        app = Script({"type": "websocket.close"})
        session = Session(app)
        response = await session.feed(REQUEST)
        assert response.startswith(b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n")
        assert [await app.receive(), await app.receive()] == [{"type": "websocket.connect"}, CLOSED_1006]
        with pytest.raises(RuntimeError, match=r"after sending 'websocket\.close'"):
            await app.send(ACCEPT)
        await session.end()

    async def test_response_in_parts(self) -> None:
        app = Script(
            {"type": "websocket.http.response.start", "status": 401, "headers": [(b"WWW-Authenticate", b"Basic")]},
            {"type": "websocket.http.response.body", "body": b"not ", "more_body": True},
            {"type": "websocket.http.response.body", "body": b"you", "more_body": True},
        )
        session = Session(app)
        assert await session.feed(REQUEST) == b""
        with pytest.raises(RuntimeError, match=r"Expected ASGI message 'websocket\.http\.response\.body' but got 'x'"):
            await app.send({"type": "x"})
        await app.send({"type": "websocket.http.response.body"})
        await settle()
        assert session.transport.take() == (
            b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\nconnection: close\r\ncontent-length: 7\r\n"
            b"content-type: text/plain; charset=utf-8\r\n\r\nnot you"
        )
        await app.receive()
        assert await app.receive() == CLOSED_1006
        await session.end()

    async def test_status_that_is_no_answer(self) -> None:
        app = Script()
        session = Session(app)
        await session.feed(REQUEST)
        with pytest.raises(ValueError, match="101 is no answer"):
            await app.send({"type": "websocket.http.response.start", "status": 101})
        await session.end()

    async def test_wrong_event(self) -> None:
        app = Script()
        session = Session(app)
        await session.feed(REQUEST)
        with pytest.raises(
            RuntimeError, match=r"Expected ASGI message 'websocket\.accept'.* but got 'websocket\.send'"
        ):
            await app.send(text("a"))
        await session.end()

    @pytest.mark.parametrize("start", [(), ({"type": "websocket.http.response.start", "status": 401},)])
    async def test_return_without_an_answer_is_500(
        self, start: tuple[Event, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        app = Script(*start)
        session = Session(app)
        await session.feed(REQUEST)
        await app.end()
        assert session.transport.take().startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert errors(caplog) == ["ASGI callable returned without completing handshake."]
        await session.end()

    async def test_exception_before_the_answer_is_500(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Script()
        session = Session(app)
        await session.feed(REQUEST)
        await app.end(SystemExit(3))
        assert session.transport.take().startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert errors(caplog) == ["Exception in ASGI application\n"]
        await session.end()


class TestMessages:
    async def test_text_binary_and_empty(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        stream = wire.text("a") + client_frame(BINARY, b"b") + wire.text("") + client_frame(BINARY)
        messages: list[str | bytes] = ["a", b"b", "", b""]
        assert await session.feed(stream) == b"".join(map(encode_message, messages))
        assert app.events == [
            {"type": "websocket.receive", "text": "a"},
            {"type": "websocket.receive", "bytes": b"b"},
            {"type": "websocket.receive", "text": ""},
            {"type": "websocket.receive", "bytes": b""},
        ]
        await session.end()

    async def test_one_write_for_one_turn(self) -> None:
        session = Session(Echo())
        await session.open()
        session.transport.feed(wire.text("a") * 16)
        await settle()
        assert session.transport.written == [encode_message("a") * 16]
        await session.end()

    async def test_connections_share_the_flush(self) -> None:
        first = Session(Echo())
        sessions = [first, Session(Echo(), state=first.state)]
        for session in sessions:
            await session.open()
        for session in sessions:
            session.protocol.send(b"\x89\x00")
        assert [session.transport.take() for session in sessions] == [b"", b""]
        await settle()
        assert [session.transport.take() for session in sessions] == [b"\x89\x00"] * 2
        for session in sessions:
            await session.end()

    async def test_a_message_is_written_at_once_behind_what_waits(self) -> None:
        session = Session(Script(ACCEPT))
        await session.open()
        session.protocol.write_message("a")
        assert session.transport.take() == encode_message("a")
        session.protocol.send_message("b")
        session.protocol.write_message("c")
        assert session.transport.take() == encode_message("b") + encode_message("c")
        session.transport.fill()
        session.protocol.write_message("d")
        assert session.transport.take() == b""
        session.transport.empty()
        assert session.transport.take() == encode_message("d")
        session.transport.close()
        session.protocol.write_message("e")
        assert session.transport.take() == b""
        await session.end()

    @pytest.mark.parametrize("message", ["x" * 300_000, "ж" * 100_000, bytes(100_000)], ids=["ASCII", "text", "binary"])
    async def test_a_large_message_keeps_its_place(self, message: str | bytes) -> None:
        session = Session(Script(ACCEPT))
        await session.open()
        session.protocol.send_message("a")
        session.protocol.send_message(message)
        session.protocol.write_message("b")
        assert session.transport.take() == b"".join(map(encode_message, ("a", message, "b")))
        session.transport.fill()
        session.protocol.send_message("c")
        session.protocol.write_message(message)
        session.protocol.send_message(message)
        session.protocol.send_message("d")
        assert session.transport.take() == b""
        assert session.protocol.unsent == len(b"".join(map(encode_message, ("c", message, message, "d"))))
        session.transport.empty()
        assert session.transport.take() == b"".join(map(encode_message, ("c", message, message, "d")))
        await session.end()

    @pytest.mark.parametrize("is_lost_at_once", [False, True])
    async def test_a_write_that_fails_is_the_last_of_a_large_message(self, is_lost_at_once: bool) -> None:
        session = Session(Script(ACCEPT))
        await session.open()
        write = session.transport.write

        def write_and_lose(data: bytes | bytearray | memoryview) -> None:
            write(data)
            session.transport.close()
            if is_lost_at_once:
                session.protocol.abort()

        session.transport.write = write_and_lose  # type: ignore[method-assign]
        session.protocol.write_message(bytes(100_000))
        assert len(session.transport.take()) < 100_000
        assert session.protocol.closed
        await session.end()

    async def test_a_message_that_waited_for_its_turn_and_cannot_be_encoded_fails_alone(self) -> None:
        session = Session(Script(ACCEPT))
        await session.open()
        session.transport.fill()
        sending = [asyncio.ensure_future(session.protocol.send_in_turn(text)) for text in ("\ud800", "after")]
        await settle()
        session.transport.empty()
        await settle()
        with pytest.raises(UnicodeEncodeError):
            await sending[0]
        assert await sending[1]
        assert session.transport.take() == encode_message("after")
        await session.end()

    async def test_a_large_message_that_cannot_be_encoded_leaves_nothing(self) -> None:
        session = Session(Script(ACCEPT))
        await session.open()
        with pytest.raises(UnicodeEncodeError):
            session.protocol.write_message("x" * 200_000 + "\ud800")
        assert session.transport.take() == b""
        await session.end()

    async def test_much_is_written_at_once(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await app.send({"type": "websocket.send", "bytes": b"x" * 70_000})
        assert len(session.transport.take()) == 70_010
        await settle()
        assert session.transport.take() == b""
        await session.end()

    @pytest.mark.parametrize("event", [{}, {"text": None, "bytes": None}, {"text": 1}, {"bytes": ["a"]}])
    async def test_a_send_without_data(self, event: Event) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        with pytest.raises(RuntimeError, match="needs 'text' as str or 'bytes' as bytes"):
            await app.send({"type": "websocket.send", **event})
        await app.send({"type": "websocket.send", "bytes": None, "text": "alive"})
        await settle()
        assert session.transport.take() == encode_message("alive")
        await session.end()

    async def test_wrong_event(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        with pytest.raises(RuntimeError, match=r"Expected ASGI message 'websocket\.send' or 'websocket\.close'"):
            await app.send(ACCEPT)
        await session.end()

    async def test_several_receivers(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await app.receive()
        receivers = [asyncio.ensure_future(app.receive()) for _ in range(3)]
        await settle()
        receivers[0].cancel()
        await session.feed(wire.text("a"))
        assert receivers[1].result()["text"] == "a"
        assert not receivers[2].done()
        await session.feed(wire.text("b"))
        assert receivers[2].result()["text"] == "b"
        await session.end()

    async def test_a_slow_application_pauses_reading_only_past_the_bound(self) -> None:
        app = Echo()
        app.gate.clear()
        session = Session(app)
        await session.open()
        await session.feed(client_frame(BINARY, b"x" * 30_000), client_frame(BINARY, b"x" * 30_000))
        assert not session.transport.paused
        await session.feed(client_frame(BINARY, b"x" * 30_000))
        assert session.transport.paused
        await session.feed(wire.text("later"))
        app.gate.set()
        await settle()
        assert not session.transport.paused
        assert app.events[-1] == {"type": "websocket.receive", "text": "later"}
        await session.end()

    async def test_empty_messages_fill_the_inbox_too(self) -> None:
        app = Echo()
        app.gate.clear()
        session = Session(app)
        await session.open()
        await session.feed(wire.text("") * 1100)
        assert session.transport.paused
        app.gate.set()
        await settle(60)
        assert len(app.events) == 1100
        await session.end()

    async def test_more_work_than_fits_a_turn_is_read_on_with(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        session.transport.feed(client_frame(PING) * 2500)
        assert session.transport.paused
        assert session.protocol.is_reading is False
        session.transport.feed(wire.text("last"))
        await settle()
        assert session.transport.take() == b"\x8a\x00" * 2500 + encode_message("last")
        assert session.protocol.is_reading
        await session.end()

    async def test_more_work_waits_for_a_slow_application(self) -> None:
        app = Echo()
        app.gate.clear()
        session = Session(app)
        await session.open()
        stream = client_frame(PING) * 999 + client_frame(BINARY, b"x" * 70_000) + client_frame(PING) * 600
        fragment = client_frame(BINARY, b"y", fin=False) + client_frame(CONT)
        await session.feed(stream + fragment + client_frame(PING) * 600)
        assert app.events == []
        assert session.transport.paused
        session.protocol.resume_reading()
        session.protocol.pause_reading()
        await settle()
        assert session.transport.paused
        app.gate.set()
        await settle()
        assert [len(event["bytes"]) for event in app.events] == [70_000, 1]
        assert not session.transport.paused
        await session.end()


class TestControlFrames:
    async def test_pings_are_answered_however_slow_the_application(self) -> None:
        app = Echo()
        app.gate.clear()
        session = Session(app)
        await session.open()
        stream = wire.text("a") + client_frame(PING, b"1") + client_frame(PING, b"2")
        assert await session.feed(stream) == b"\x8a\x011\x8a\x012"
        await session.end()

    async def test_one_pong_waits_for_a_peer_that_does_not_read(self) -> None:
        session = Session(Echo())
        await session.open()
        session.transport.fill()
        await session.feed(*[client_frame(PING, b"%d" % n) for n in range(9)])
        assert session.transport.take() == b""
        session.transport.empty()
        await settle()
        assert session.transport.take() == b"\x8a\x018"
        await session.end()

    async def test_no_pong_goes_behind_the_close_frame(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.transport.fill()
        await session.feed(client_frame(PING, b"late"))
        await app.send({"type": "websocket.close"})
        session.transport.empty()
        await session.feed(client_frame(PING, b"later"))
        assert session.transport.sent == b"" or session.transport.sent == encode_close(1000)
        await session.end()

    async def test_activity(self) -> None:
        session = Session(Echo())
        await session.open()
        for seconds, frame, counts in [
            (1, wire.text("a"), True),
            (1, client_frame(PING), True),
            (1, client_frame(PONG), True),
            (1, wire.text("a", fin=False), True),
            (1, client_frame(PONG, b"ours"), False),
        ]:
            session.protocol.ping(b"ours")
            before = session.protocol.last_activity
            session.clock.advance(seconds)
            await session.feed(frame)
            assert session.protocol.last_activity == (session.clock.now if counts else before)
        await session.end()

    async def test_ping(self) -> None:
        session = Session(Echo())
        await session.open()
        session.protocol.ping(b"hello")
        assert await session.feed() == b""
        await settle()
        assert session.transport.take() == encode_ping(b"hello")
        with pytest.raises(ValueError, match="125 bytes"):
            session.protocol.ping(b"x" * 126)
        await session.end()


class TestFlowControl:
    async def test_send_waits_while_the_peer_does_not_read(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.transport.fill()
        senders = [asyncio.ensure_future(app.send(text(name))) for name in "abc"]
        await settle()
        assert not any(sender.done() for sender in senders)
        senders[1].cancel()
        session.transport.empty()
        await settle()
        assert session.transport.take() == encode_message("a") + encode_message("c")
        await session.end()

    async def test_a_peer_that_stops_again_at_once(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.transport.fill()
        session.protocol.send(b"broadcast")
        write = session.transport.write

        def write_and_fill(data: bytes | bytearray | memoryview) -> None:
            write(data)
            session.protocol.pause_writing()

        session.transport.write = write_and_fill  # type: ignore[method-assign]
        sender = asyncio.ensure_future(app.send(text("a")))
        await settle()
        session.transport.empty()
        await settle()
        assert not sender.done()
        assert session.transport.take() == b"broadcast"
        sender.cancel()
        await session.end()

    async def test_frames_wait_in_the_outbox(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.transport.fill()
        session.protocol.send(b"one")
        await settle()
        session.protocol.send(b"x" * 70_000)
        await settle()
        assert session.transport.take() == b""
        assert session.protocol.unsent == 70_003
        session.transport.empty()
        assert session.transport.take() == b"one" + b"x" * 70_000
        assert session.protocol.unsent == 0
        await session.end()

    async def test_a_waiting_send_raises_when_the_transport_is_lost(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.transport.fill()
        sender = asyncio.ensure_future(app.send(text("a")))
        await settle()
        session.transport.lose(ConnectionResetError())
        await settle()
        with pytest.raises(ClientDisconnected):
            await sender
        await session.end()

    async def test_a_waiting_send_raises_when_the_connection_closes(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.transport.fill()
        sender = asyncio.ensure_future(app.send(text("a")))
        await settle()
        await app.send({"type": "websocket.close"})
        with pytest.raises(ClientDisconnected):
            await sender
        assert session.transport.take() == encode_close(1000)
        await session.end()

    async def test_full_before_the_handshake(self) -> None:
        app = Script()
        session = Session(app)
        await session.feed(REQUEST)
        session.transport.fill()
        await app.send(ACCEPT)
        await session.feed(client_frame(PING))
        assert session.transport.take() == b""
        session.transport.empty()
        assert session.transport.take() == ACCEPTED + b"\x8a\x00"
        await session.end()

    async def test_resumed_before_the_handshake(self) -> None:
        session = Session(Echo())
        session.transport.fill()
        session.transport.empty()
        await session.open()
        await session.end()


class TestPeerCloses:
    @pytest.mark.parametrize(
        ("frame", "code", "reason"),
        [
            (wire.close(1000, b"bye"), 1000, "bye"),
            (wire.close(), 1005, ""),
            (wire.close(4999), 4999, ""),
        ],
    )
    async def test_close_frame(self, frame: bytes, code: int, reason: str) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        assert await session.feed(frame) == encode_close(code, reason)
        assert app.events == [disconnect(code, reason)]
        assert session.transport.lost
        await session.end()

    async def test_messages_before_it_are_answered(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        reply = await session.feed(wire.text("a") + wire.text("b") + wire.close(4000) + wire.text("never"))
        assert reply == encode_message("a") + encode_message("b") + encode_close(4000)
        assert app.events[2:] == [disconnect(4000)]
        await session.end()

    async def test_a_slow_application_delays_the_echo_for_half_a_second(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        app.gate.clear()
        assert await session.feed(wire.text("a") + wire.close(4000)) == b""
        assert await session.advance(0.4) == b""
        assert await session.advance(0.2) == encode_close(4000)
        app.gate.set()
        await settle()
        assert [event["type"] for event in app.events] == ["websocket.receive"]
        await session.end()

    async def test_an_application_that_only_sends(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.close(1001))
        await app.send(text("still"))
        assert await session.advance(0.6) == encode_message("still") + encode_close(1001)
        with pytest.raises(ClientDisconnected):
            await app.send(text("gone"))
        assert isinstance(ClientDisconnected(), OSError)
        await app.send({"type": "websocket.close"})
        await session.end()

    async def test_disconnect_comes_once(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.close(1000))
        assert [await app.receive(), await app.receive()] == [{"type": "websocket.connect"}, disconnect(1000)]
        with pytest.raises(RuntimeError, match="nothing comes after it"):
            await app.receive()
        await session.end()

    async def test_close_by_the_application_echoes_the_peers(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.close(4001))
        await app.send({"type": "websocket.close", "code": 4002})
        assert session.transport.take() == encode_close(4001)
        await app.receive()
        assert await app.receive() == disconnect(4001)
        await session.end()

    async def test_return_of_the_application_echoes_the_peers(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.close(4001))
        await app.end()
        assert session.transport.take() == encode_close(4001)
        await session.end()

    async def test_a_peer_that_closes_and_does_not_read_is_aborted(self) -> None:
        session = Session(Echo())
        await session.open()
        session.transport.fill()
        await session.feed(wire.close(1000))
        assert session.transport.closing
        await session.advance(9.9)
        assert not session.transport.aborted
        await session.advance(0.2)
        assert session.transport.aborted
        await session.end()


class TestFaults:
    async def test_good_messages_are_answered_before_the_close(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        good = wire.text("1") + wire.text("2") + wire.text("3")
        assert await session.feed(good + client_frame(3) + wire.text("4")) == (
            encode_message("1") + encode_message("2") + encode_message("3") + encode_close(1002, "reserved opcode")
        )
        assert app.events[3:] == [disconnect(1002, "reserved opcode")]
        assert errors(caplog) == []
        assert session.transport.wrote_eof
        assert not session.transport.closing
        await session.feed(b"\xff" * 100)
        session.transport.feed_eof()
        await session.end()

    async def test_a_peer_that_does_not_close_is_aborted(self) -> None:
        session = Session(Echo())
        await session.open()
        assert await session.feed(client_frame(TEXT, b"\xff")) == encode_close(1007, "invalid UTF-8 in a text message")
        await session.advance(10.1)
        assert session.transport.aborted
        await session.end()

    async def test_a_peer_that_has_reset_the_connection_meanwhile(self) -> None:
        session = Session(Echo())
        await session.open()

        def write_eof() -> None:
            raise OSError("not connected")

        session.transport.write_eof = write_eof  # type: ignore[method-assign]
        await session.feed(client_frame(3))
        assert session.transport.aborted
        await session.end()

    async def test_tls_cannot_half_close(self) -> None:
        session = Session(Echo(), tls=True)
        await session.open()
        await session.feed(client_frame(TEXT, b"a", masked=False))
        assert session.transport.lost
        await session.end()

    async def test_an_application_that_does_not_ask_is_not_waited_for(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        assert await session.feed(client_frame(3)) == b""
        assert await session.advance(10.1) == encode_close(1002, "reserved opcode")
        await session.end()

    async def test_too_big(self) -> None:
        app = Echo()
        session = Session(app, ws_max_size=10)
        await session.open()
        assert await session.feed(wire.text("x" * 11)[:2]) == encode_close(1009, "message is longer than 10 bytes")
        await session.end()


class TestTransportEnds:
    async def test_lost(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        app.gate.clear()
        await session.feed(wire.text("a"))
        session.transport.lose(ConnectionResetError())
        app.gate.set()
        await settle()
        assert app.events == [{"type": "websocket.receive", "text": "a"}]
        assert errors(caplog) == []
        await session.end()

    async def test_lost_between_messages(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.text("a") + wire.text("b"))
        session.transport.lose()
        events = [await app.receive() for _ in range(4)]
        assert events[1:] == [
            {"type": "websocket.receive", "text": "a"},
            {"type": "websocket.receive", "text": "b"},
            CLOSED_1006,
        ]
        with pytest.raises(ClientDisconnected):
            await app.send(text("a"))
        await app.send({"type": "websocket.close"})
        await session.end()

    async def test_half_closed_after_a_request_gets_its_answer(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        session.transport.feed(wire.text("question"))
        session.transport.feed_eof()
        await settle()
        assert session.transport.take() == encode_message("question")
        assert app.events[-1] == CLOSED_1006
        assert session.transport.lost
        await session.end()

    async def test_half_closed_under_a_slow_application(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.transport.feed_eof()
        await session.advance(9.9)
        assert not session.transport.closing
        await session.advance(0.2)
        assert session.transport.closing
        assert session.protocol.end == Unknown()
        await session.end()

    async def test_half_closed_in_the_middle_of_a_frame(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        session.transport.feed(wire.text("cut")[:-1])
        session.transport.feed_eof()
        await settle()
        assert app.events == [CLOSED_1006]
        await session.end()

    async def test_half_closed_over_tls(self) -> None:
        app = Echo()
        session = Session(app, tls=True)
        await session.open()
        session.transport.feed_eof()
        await settle()
        assert session.transport.lost
        assert app.events == [CLOSED_1006]
        await session.end()

    async def test_a_send_raises_where_the_transport_closes(self) -> None:
        app = Script(ACCEPT)
        session = Session(app, tls=True)
        await session.open()
        session.transport.stuck = True
        session.transport.feed_eof()
        # It is known when something is written.
        await app.send(text("too late"))
        await settle()
        with pytest.raises(ClientDisconnected):
            await app.send(text("much too late"))
        assert session.transport.take() == b""
        assert not session.transport.aborted
        await session.advance(10.1)
        assert session.transport.aborted
        await session.end()

    async def test_a_reply_is_refused_where_the_transport_closes(self) -> None:
        session = Session(Script(ACCEPT), tls=True)
        await session.open()
        assert session.protocol.write_message("in time")
        assert session.transport.take() == encode_message("in time")
        session.transport.stuck = True
        session.transport.feed_eof()
        assert not session.protocol.write_message("too late")
        assert session.protocol.closed
        assert not await session.protocol.send_in_turn("much too late")
        await session.end()


class TestApplicationCloses:
    async def test_closing_handshake(self) -> None:
        app = Script(ACCEPT, {"type": "websocket.close", "code": 4000, "reason": "done"})
        session = Session(app)
        assert await session.feed(REQUEST) == ACCEPTED + encode_close(4000, "done")
        assert [await app.receive(), await app.receive()] == [{"type": "websocket.connect"}, disconnect(4000, "done")]
        assert not session.transport.closing
        await session.feed(wire.text("ignored"), client_frame(PING))
        assert await session.feed(wire.close(4000)) == b""
        assert session.transport.lost
        for event in (text("a"), {"type": "websocket.close"}):
            with pytest.raises(RuntimeError, match=r"after sending 'websocket\.close'"):
                await app.send(event)
        await session.end()

    async def test_defaults(self) -> None:
        app = Script(ACCEPT, {"type": "websocket.close", "reason": None})
        session = Session(app)
        assert await session.feed(REQUEST) == ACCEPTED + encode_close(1000)
        await session.end()

    async def test_messages_before_it_can_still_be_received(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.text("a"))
        await app.send({"type": "websocket.close"})
        await session.feed(wire.text("b"))
        events = [await app.receive() for _ in range(3)]
        assert events[1:] == [{"type": "websocket.receive", "text": "a"}, disconnect(1000)]
        await session.end()

    async def test_a_peer_that_does_not_answer_is_aborted(self) -> None:
        app = Script(ACCEPT, {"type": "websocket.close"})
        session = Session(app)
        await session.open()
        await session.advance(9.9)
        assert not session.transport.aborted
        await session.advance(0.2)
        assert session.transport.aborted
        await session.end()

    async def test_a_peer_that_answers_with_a_fault(self) -> None:
        session = Session(Script(ACCEPT, {"type": "websocket.close"}))
        await session.open()
        assert await session.feed(client_frame(3)) == b""
        assert session.transport.lost
        await session.end()

    async def test_a_peer_that_answers_with_the_end_of_its_stream(self) -> None:
        session = Session(Script(ACCEPT, {"type": "websocket.close"}))
        await session.open()
        session.transport.feed_eof()
        await settle()
        assert session.transport.lost
        await session.end()

    async def test_reading_goes_on_when_it_was_paused(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(client_frame(BINARY, b"x" * 70_000))
        assert session.transport.paused
        await app.send({"type": "websocket.close"})
        assert await session.feed(wire.close(1000)) == encode_close(1000)
        assert session.transport.lost
        await session.end()

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65536])
    async def test_codes_that_may_not_be_sent(self, code: int) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        with pytest.raises(ValueError, match=f"close code {code} may not be sent"):
            await app.send({"type": "websocket.close", "code": code})
        await app.send(text("alive"))
        await settle()
        assert session.transport.take() == encode_message("alive")
        await session.end()

    async def test_return_closes_with_1000(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await app.end(result=1)
        assert session.transport.take() == encode_close(1000)
        assert errors(caplog) == ["ASGI callable should return None, but returned '1'."]
        await session.end()

    @pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(1), KeyboardInterrupt(), ClientDisconnected()])
    async def test_an_exception_closes_with_1011(self, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await app.end(error)
        assert session.transport.take() == encode_close(1011)
        assert errors(caplog) == ["Exception in ASGI application\n"]
        await session.end()

    @pytest.mark.parametrize(
        ("error", "logged"),
        [
            (ClientDisconnected(), 0),
            (WebSocketDisconnect(1000), 0),
            (BaseExceptionGroup("", [ClientDisconnected(), ExceptionGroup("", [WebSocketDisconnect()])]), 0),
            (BaseExceptionGroup("", [ClientDisconnected(), ValueError()]), 1),
            (ValueError(), 1),
        ],
    )
    async def test_the_end_of_the_connection_is_not_an_error(
        self, error: BaseException, logged: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.close(1000))
        await app.end(error)
        assert session.transport.take() == encode_close(1000)
        assert len(errors(caplog)) == logged
        await session.end()

    async def test_cancellation_closes_and_is_no_error(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        (task,) = session.state.tasks
        task.cancel()
        await settle()
        assert task.cancelled()
        assert session.transport.take() == encode_close(1011)
        assert errors(caplog) == []
        await session.end()

    @pytest.mark.parametrize("reset", [True, False])
    async def test_context(self, reset: bool) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
        variable.set("set")
        seen: list[str] = []

        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            seen.append(variable.get())

        session = Session(app, reset_contextvars=reset)
        await session.feed(REQUEST)
        assert seen == ["unset" if reset else "set"]
        await session.end()


class TestShutdown:
    async def test_before_the_head(self) -> None:
        session = Session(Script())
        session.protocol.shutdown()
        await settle()
        assert session.transport.take() == b""
        await session.end()

    @pytest.mark.parametrize("start", [(), ({"type": "websocket.http.response.start", "status": 401},)])
    async def test_before_the_answer(self, start: tuple[Event, ...], caplog: pytest.LogCaptureFixture) -> None:
        app = Script(*start)
        session = Session(app)
        await session.feed(REQUEST)
        session.protocol.shutdown()
        await settle()
        assert session.transport.take().startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert [await app.receive(), await app.receive()] == [{"type": "websocket.connect"}, CLOSED_1006]
        with pytest.raises(ClientDisconnected):
            await app.send({"type": "websocket.http.response.body"} if start else ACCEPT)
        await app.end()
        assert errors(caplog) == []
        await session.end()

    async def test_open(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        session.protocol.shutdown()
        await settle()
        assert app.events == [disconnect(1012)]
        assert session.transport.take() == encode_close(1012)
        assert not session.transport.closing
        session.protocol.shutdown()
        await session.feed(wire.close(1012))
        assert session.transport.lost
        await session.end()

    async def test_open_with_messages_waiting(self) -> None:
        app = Echo()
        app.gate.clear()
        session = Session(app)
        await session.open()
        await session.feed(wire.text("a"))
        session.protocol.shutdown()
        app.gate.set()
        await settle()
        assert session.transport.take() == encode_close(1012)
        assert app.events == [{"type": "websocket.receive", "text": "a"}]
        await session.end()

    async def test_a_stuck_application_and_a_silent_peer(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        session.protocol.shutdown()
        await session.advance(10.1)
        assert session.transport.aborted
        assert not session.state.connections
        await session.end()

    async def test_one_frozen_client_is_waited_for_a_moment(self) -> None:
        session = Session(Echo())
        await session.open()
        session.protocol.shutdown()
        await session.advance(1.4)
        assert not session.transport.aborted
        await session.advance(0.2)
        assert session.transport.aborted
        await session.end()

    async def test_a_slow_client_that_reads_on_gets_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        session = Session(Echo())
        await session.open()
        session.protocol.close(1012)
        unsent = [6000]
        monkeypatch.setattr(session.transport, "get_write_buffer_size", lambda: unsent[0])
        session.protocol.shutdown()
        for left in (4000, 2000, 0):
            unsent[0] = left
            await session.advance(1.5)
            assert not session.transport.aborted
        await session.advance(1.6)
        assert session.transport.aborted
        await session.end()

    async def test_a_client_that_reads_next_to_nothing_has_its_close_timeout(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            scope["extensions"]["wsdeco"].close_timeout += -6
            assert scope["extensions"]["wsdeco"].close_timeout == 4
            await send(ACCEPT)
            while (await receive())["type"] != "websocket.disconnect":
                pass

        session = Session(app)
        await session.open()
        unsent = [6000]
        monkeypatch.setattr(session.transport, "get_write_buffer_size", lambda: unsent[0])
        session.protocol.shutdown()
        for aborted in (False, False, True):
            unsent[0] -= 1
            await session.advance(1.5)
            assert session.transport.aborted is aborted
        await session.end()

    async def test_while_the_peer_is_closing(self) -> None:
        app = Script(ACCEPT)
        session = Session(app)
        await session.open()
        await session.feed(wire.close(4000))
        session.protocol.shutdown()
        await settle()
        assert session.transport.take() == encode_close(4000)
        await session.end()

    async def test_after_the_end(self) -> None:
        session = Session(Echo())
        await session.open()
        session.transport.lose()
        session.protocol.shutdown()
        await session.end()


class TestKeepalive:
    async def test_pings_and_answers(self) -> None:
        session = Session(Echo(), ws_ping_interval=20, ws_ping_timeout=10)
        await session.open()
        for _ in range(3):
            ping = await session.advance(20.1)
            assert (ping[0], ping[1], len(ping)) == (0x89, 4, 6)
            await session.feed(client_frame(PONG, ping[2:]))
        assert not session.transport.closing
        await session.end()

    async def test_a_silent_peer(self, caplog: pytest.LogCaptureFixture) -> None:
        app = Echo()
        session = Session(app, ws_ping_interval=20, ws_ping_timeout=10)
        await session.open()
        await session.advance(20.1)
        assert await session.advance(10.3) == encode_close(1011, "keepalive ping timeout")
        assert app.events == [CLOSED_1006]
        assert errors(caplog) == []
        await session.end()

    async def test_a_silent_peer_that_does_not_read(self) -> None:
        app = Echo()
        session = Session(app, ws_ping_interval=20, ws_ping_timeout=10)
        await session.open()
        session.transport.fill()
        await session.advance(30.5)
        assert app.events == [CLOSED_1006]
        await session.advance(2.1)
        assert session.transport.aborted
        await session.end()

    async def test_any_byte_is_life(self) -> None:
        session = Session(Echo(), ws_ping_interval=20, ws_ping_timeout=10)
        await session.open()
        await session.advance(25)
        await session.feed(b"\x81")
        await session.advance(14)
        assert not session.transport.closing
        await session.end()

    async def test_a_slow_application_kills_nobody(self) -> None:
        app = Echo()
        app.gate.clear()
        session = Session(app, ws_ping_interval=2, ws_ping_timeout=2)
        await session.open()
        await session.feed(client_frame(BINARY, b"x" * 100_000))
        await session.advance(60)
        assert not session.transport.closing
        await session.end()

    async def test_connections_with_the_same_interval_share_it(self) -> None:
        app = Echo()
        first = Session(app, ws_ping_interval=20, ws_ping_timeout=10)
        second = Session(app, ws_ping_interval=20, ws_ping_timeout=10, state=first.state)
        await first.open()
        await second.open()
        assert first.clock.pending == 1
        assert second.clock.pending == 0
        await first.end()
        await second.end()

    async def test_limits_of_the_route(self) -> None:
        session = Session(Script(), ws_ping_interval=20, ws_ping_timeout=20)
        await session.feed(REQUEST)
        session.protocol.accept(keepalive=(1, 1))
        assert (await session.advance(1.1)).startswith(ACCEPTED)
        assert (await session.advance(1.2)).endswith(encode_close(1011, "keepalive ping timeout"))
        await session.end()

    async def test_a_route_without_pings(self) -> None:
        session = Session(Script(), ws_ping_interval=1, ws_ping_timeout=1)
        await session.feed(REQUEST)
        session.protocol.accept(keepalive=(None, 1))
        assert await session.advance(100) == ACCEPTED
        await session.end()

    async def test_no_pings_while_closing(self) -> None:
        session = Session(Script(ACCEPT), ws_ping_interval=1, ws_ping_timeout=1)
        await session.open()
        await session.feed(wire.close(1000))
        assert await session.advance(0.4) == b""
        assert await session.advance(5) == encode_close(1000)
        await session.end()


class TestAbort:
    async def test_drops_what_is_unsent(self) -> None:
        app = Echo()
        session = Session(app)
        await session.open()
        session.transport.fill()
        session.protocol.send(b"never")
        session.protocol.abort()
        await settle()
        assert session.transport.take() == b""
        assert session.transport.lost
        assert app.events == [CLOSED_1006]
        await session.end()

    async def test_close_and_finish_afterwards_do_nothing(self) -> None:
        session = Session(Echo())
        await session.open()
        session.protocol.finish()
        session.protocol.abort()
        session.protocol.close()
        session.protocol.finish()
        await session.end()

    async def test_close_before_the_handshake_does_nothing(self) -> None:
        session = Session(Script())
        session.protocol.close()
        session.protocol.send_message("nothing")
        session.protocol.finish()
        assert not session.protocol.closed
        await session.end()
