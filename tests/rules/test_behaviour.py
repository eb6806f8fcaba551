"""What a connection does, on every server: each test runs on each stack."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from tests.support.recording import Journal, Recorder, admitted, closing, refusal, refusal_with_a_slot, take_errors
from tests.support.stacks import Peer, Server, Stack, skip_unless_it_ends, soon, until
from wsdeco import (
    Address,
    App,
    Close,
    ConnectionClosed,
    DisconnectReason,
    Error,
    Sink,
    Unknown,
    WebSocketUpgrade,
    handle_socket,
    handle_upgrade,
    websocket_route,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged")


# Messages.


async def test_text_and_binary_are_echoed(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_message(self, message: str | bytes) -> str | bytes:
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for message in ("text", b"binary \x00\xff", "", b"", "\x00", "zażółć gęślą jaźń", "👩‍👩‍👧‍👦\u202e\ufeff", "￿"):
            await peer.send(message)
            assert await peer.receive() == message


async def test_a_message_of_the_largest_size_is_echoed(stack: Stack) -> None:
    app = App()

    @app.handler("/ws", max_message_size=1024 * 1024)
    class Echo:
        async def on_message(self, message: str | bytes) -> str | bytes:
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for message in ("x" * 1024 * 1024, "é" * 512 * 1024, bytes(range(256)) * 4096):
            await peer.send(message)
            assert await peer.receive() == message


async def test_many_messages_keep_their_order(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_message(self, message: str) -> str:
            return message

    sent = [str(number) for number in range(500)]
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for message in sent:
            await peer.send(message)
        assert [await peer.receive() for _ in sent] == sent


async def test_a_handler_of_text_gets_no_binary_messages(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_message(self, message: str) -> str:
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send(b"binary")
        await peer.send("text")
        assert await peer.receive() == "text"


async def test_a_welcome_comes_before_the_first_message(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Welcome:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send(f"Welcome, {addr.host}!")
            sink.send_nowait("Sit down.")
            await sink.send_json({"ß": [1, None]})

        async def on_message(self, message: str) -> str:
            return f"Echo: {message}"

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("x")
        received = [await peer.receive() for _ in range(4)]
    assert received == ["Welcome, 127.0.0.1!", "Sit down.", '{"ß":[1,null]}', "Echo: x"]


async def test_replies_are_returned_or_not(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class OddsOnly:
        async def on_message(self, message: str) -> bytes | None:
            return message.encode() if int(message) % 2 else None

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for number in range(4):
            await peer.send(str(number))
        assert [await peer.receive(), await peer.receive()] == [b"1", b"3"]


async def test_replies_are_yielded(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Spell:
        async def on_message(self, message: str) -> AsyncGenerator[str]:
            for letter in message:
                yield letter

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("abc")
        await peer.send("d")
        assert [await peer.receive() for _ in range(4)] == ["a", "b", "c", "d"]


async def test_a_stream_is_closed_when_the_peer_leaves(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Endless(journal))
    class Endless(Recorder):
        async def on_message(self, message: str) -> AsyncGenerator[str]:  # type: ignore[override]
            try:
                while True:
                    yield message
                    await asyncio.sleep(0)
            finally:
                self.journal.add("stream closed")

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("again and again")
            assert await peer.receive() == "again and again"
            await peer.drop()
        assert await journal.next() == "connect"
        assert await journal.next() == "stream closed"
        assert await journal.next() == Unknown()
    assert journal.ended()


async def test_a_stream_that_waits_is_closed_when_the_peer_leaves(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Waiting(journal), disconnect_grace=0)
    class Waiting(Recorder):
        async def on_message(self, message: str) -> AsyncGenerator[str]:  # type: ignore[override]
            try:
                yield message
                await asyncio.Event().wait()
            finally:
                self.journal.add("stream closed")

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("once")
            assert await peer.receive() == "once"
            await peer.close(4001, "enough")
        assert await journal.next() == "connect"
        assert await journal.next() == "stream closed"
        assert await journal.next() == stack.peer_closed(4001, "enough")
    assert journal.ended()


# The handshake.


async def test_subprotocols(stack: Stack) -> None:
    app = App()

    @app.handler("/configured", subprotocols=["v2", "v1"])
    class Configured:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send(str(sink.subprotocol))
            await sink.send(str(sink.subprotocol))

    @app.handler("/chosen")
    class Chosen:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            with pytest.raises(ValueError, match="not offered"):
                await sink.accept(subprotocol="v9")
            await sink.accept(subprotocol="v1")

    async with stack.serve(app) as server:
        async with server.connect("/configured", subprotocols=["v1", "v2"]) as peer:
            assert peer.subprotocol == "v2"
            # The first send is the one that accepts.
            assert [await peer.receive(), await peer.receive()] == ["None", "v2"]
        async with server.connect("/configured", subprotocols=["v3"]) as peer:
            assert peer.subprotocol is None
        async with server.connect("/configured") as peer:
            assert peer.subprotocol is None
        async with server.connect("/chosen", subprotocols=["v2", "v1"]) as peer:
            assert peer.subprotocol == "v1"


async def test_accept_headers(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Cookies:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Latin", "caf\xe9")])

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        values = [value for name, value in peer.headers if name in {"set-cookie", "x-latin"}]
    assert values == (["a=1", "b=2", "caf\xe9"] if stack.accept_headers else [])


async def test_what_init_receives(stack: Stack) -> None:
    app = App()

    @app.handler("/rooms/{room}/{number:int}")
    class Seat:
        def __init__(
            self, room: str, number: int, query_params: Any, headers: Headers, request: HTTPConnection, spare: str = "s"
        ) -> None:
            self.facts = [room, number, query_params.get("token"), headers["x-name"], request.url.path, spare]

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.facts += [sink.path_params["number"], sink.query_params["token"], sink.headers["x-name"]]
            await sink.send_json(self.facts)

    path = "/rooms/caf%C3%A9%20bar/7?token=a%26b"
    async with stack.serve(app) as server, server.connect(path, headers={"X-Name": "Ada"}) as peer:
        received = await peer.receive()
    assert received == '["café bar",7,"a&b","Ada","/rooms/café bar/7","s",7,"a&b","Ada"]'


async def test_an_unknown_path_is_refused(stack: Stack) -> None:
    app = App()

    @app.handler("/n/{number:int}")
    class Echo:
        async def on_message(self, message: str) -> str:
            return message

    async with stack.serve(app) as server:
        refused = [await refusal(server, path) for path in ("/other", "/n/x", "/n/1/")]
    assert [exc.status for exc in refused] == [404, 404, 404]


@pytest.mark.parametrize("place", ["init", "factory", "on_connect"])
async def test_http_exceptions_refuse_the_handshake(stack: Stack, place: str) -> None:
    app = App()
    journal = Journal()

    def refuse() -> None:
        raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})

    class Guarded(Recorder):
        def __init__(self) -> None:
            super().__init__(journal)
            if place == "init":
                refuse()

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await asyncio.sleep(0)
            refuse()

    def factory(headers: Headers) -> Guarded:
        refuse()
        raise AssertionError

    app.add("/ws", Guarded, factory=factory if place == "factory" else None, max_connections=1)
    async with stack.serve(app) as server:
        for _ in range(2):
            refused = await refusal_with_a_slot(server, "/ws")
            assert (refused.status, refused.body) == (401, b"who are you?")
            assert refused.headers["www-authenticate"] == "Bearer"
    assert journal.ended()


@pytest.mark.parametrize("place", ["init", "factory", "on_connect"])
async def test_other_exceptions_before_the_upgrade_are_a_500(
    stack: Stack, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    journal = Journal()

    class Broken(Recorder):
        def __init__(self) -> None:
            super().__init__(journal)
            if place == "init":
                raise ZeroDivisionError("secret")

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            raise ZeroDivisionError("secret")

    def factory(headers: Headers) -> Broken:
        raise ZeroDivisionError("secret")

    app.add("/ws", Broken, factory=factory if place == "factory" else None, max_connections=1)
    async with stack.serve(app) as server:
        for _ in range(2):
            refused = await refusal_with_a_slot(server, "/ws")
            assert (refused.status, refused.body) == (500, b"Internal Server Error")
            if place == "on_connect":
                reason = await journal.next()
                assert isinstance(reason, Error)
                assert isinstance(reason.exception, ZeroDivisionError)
    assert journal.ended()
    errors = take_errors(caplog)
    assert [name for name, _ in errors] == ["wsdeco", "wsdeco"]


async def test_origins(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/same", factory=lambda headers: Recorder(journal))
    class Same(Recorder): ...

    @app.handler("/listed", allowed_origins=["https://app.example"])
    class Listed:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send("in")

    async with stack.serve(app) as server:
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            refused = await refusal(server, "/same", headers={"Origin": origin})
            assert (refused.status, refused.body) == (403, b"Forbidden")
        assert journal.ended()
        host = f"127.0.0.1:{server.port}" if stack.on_network else "testserver"
        async with server.connect("/same", headers={"Origin": f"http://{host}"}):
            assert await journal.next() == "connect"
        async with server.connect("/listed", headers={"Origin": "https://app.example"}) as peer:
            assert await peer.receive() == "in"
        assert (await refusal(server, "/listed", headers={"Origin": "https://other.example"})).status == 403


async def test_a_full_route_refuses_and_takes_in_again(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", max_connections=2, factory=lambda headers: Recorder(journal))
    class Few(Recorder): ...

    async with stack.serve(app) as server:
        for _ in range(2):
            async with admitted(server, "/ws") as first, admitted(server, "/ws") as second:
                refused = await refusal(server, "/ws")
                assert (refused.status, refused.body) == (503, b"Service Unavailable")
                assert int(refused.headers["retry-after"]) >= 1
                await first.close()
                await second.drop()
                for _ in range(4):
                    await journal.next()
    assert journal.ended()


async def test_a_slow_on_connect_holds_a_slot_and_is_bounded(stack: Stack) -> None:
    app = App()
    journal = Journal()

    class Slow(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            self.journal.add("entered")
            await asyncio.Event().wait()

    app.add("/ws", Slow, factory=lambda headers: Slow(journal), max_connections=1, connect_timeout=0.2)
    async with stack.serve(app) as server:
        waiting = asyncio.create_task(refusal(server, "/ws"))
        assert await journal.next() == "entered"
        assert (await refusal(server, "/ws")).status == 503
        assert (await soon(waiting)).status == 503
        assert "connect_timeout" in str(await journal.next())
    assert journal.ended()


# Ends.


async def test_own_close(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Closing(journal))
    class Closing(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            await self.sink.send("last words")
            await self.sink.close(4005, "schönes Ende")
            await self.sink.close(4006, "never sent")
            with pytest.raises(ConnectionClosed):
                await self.sink.send("too late")

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("end it")
            await peer.send("comes too late for a hook")
            assert await peer.receive() == "last words"
            assert await closing(peer) == Close(4005, "schönes Ende", by="server")
        assert await journal.next() == "connect"
        assert await journal.next() == Close(4005, "schönes Ende", by="server")
    assert journal.ended()


async def test_own_close_in_on_connect(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Turnstile(journal))
    class Turnstile(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.close(4005, "€" * 50)

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            assert await closing(peer) == Close(4005, "€" * 41, by="server")
        assert await journal.next() == Close(4005, "€" * 41, by="server")
    assert journal.ended()


async def test_own_close_from_another_task(stack: Stack) -> None:
    app = App()
    journal = Journal()

    async with stack.serve(app) as server:

        @app.handler("/ws", factory=lambda headers: Quiet(journal))
        class Quiet(Recorder):
            async def on_connect(self, addr: Address, sink: Sink) -> None:
                self.journal.add(sink)

        async with server.connect("/ws") as peer:
            sink: Sink = await journal.next()
            await soon(sink.close())
            assert await closing(peer) == Close(1000, "", by="server")
        assert await journal.next() == Close(1000, "", by="server")
        assert sink.closed
        assert sink.reason == Close(1000, "", by="server")
    assert journal.ended()


async def test_an_error_in_on_message_is_a_1011_that_tells_nothing(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Broken(journal), max_connections=1)
    class Broken(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            raise ZeroDivisionError("secret")

    async with stack.serve(app) as server:
        for _ in range(2):
            async with admitted(server, "/ws") as peer:
                await peer.send("x")
                assert await closing(peer) == Close(1011, "internal error", by="server")
            assert await journal.next() == "connect"
            reason = await journal.next()
            assert isinstance(reason, Error)
            assert reason.message == "Broken.on_message raised ZeroDivisionError: secret"
            assert isinstance(reason.exception, ZeroDivisionError)
    assert journal.ended()
    errors = take_errors(caplog)
    assert [(name, text.partition(" for ")[0]) for name, text in errors] == [("wsdeco", "Broken.on_message failed")] * 2


async def test_an_error_in_on_connect_after_its_first_send_is_a_1011(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Broken(journal), max_connections=1)
    class Broken(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send("hello")
            raise HTTPException(401, "too late for a response")

    async with stack.serve(app) as server:
        for _ in range(2):
            async with admitted(server, "/ws") as peer:
                assert await peer.receive() == "hello"
                assert await closing(peer) == Close(1011, "internal error", by="server")
            assert isinstance(await journal.next(), Error)
    assert journal.ended()
    assert [name for name, _ in take_errors(caplog)] == ["wsdeco", "wsdeco"]


async def test_an_error_in_on_disconnect_gives_the_slot_back(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Broken(journal), max_connections=1)
    class Broken(Recorder):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            self.journal.add(reason)
            raise ZeroDivisionError("secret")

    async with stack.serve(app) as server:
        for _ in range(2):
            async with admitted(server, "/ws") as peer:
                await peer.close(4001, "bye")
            assert await journal.next() == "connect"
            assert await journal.next() == stack.peer_closed(4001, "bye")
    assert journal.ended()
    errors = take_errors(caplog)
    assert [name for name, _ in errors] == ["wsdeco", "wsdeco"]
    assert all("on_disconnect" in text for _, text in errors)


async def test_a_reply_that_cannot_be_sent_is_an_error(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Wrong(journal))
    class Wrong(Recorder):
        async def on_message(self, message: str | bytes) -> Any:
            return 42 if message == "number" else "\ud800"

    async with stack.serve(app) as server:
        for message, failure in (("number", TypeError), ("surrogate", ValueError)):
            async with server.connect("/ws") as peer:
                await peer.send(message)
                assert await closing(peer) == Close(1011, "internal error", by="server")
            assert await journal.next() == "connect"
            reason = await journal.next()
            assert isinstance(reason, Error)
            assert isinstance(reason.exception, failure)
    assert journal.ended()
    assert len(take_errors(caplog)) == 2


async def test_text_that_cannot_be_sent_is_refused_and_the_connection_lives(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept()
            with pytest.raises(ValueError, match="text cannot be sent, UTF-8 has no form for it"):
                await sink.send("\ud800")
            with pytest.raises(ValueError, match="text cannot be sent, UTF-8 has no form for it"):
                sink.send_nowait("\ud800")
            await sink.send("alive")

        async def on_message(self, message: str) -> str:
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert await peer.receive() == "alive"
        await peer.send("still")
        assert await peer.receive() == "still"


LARGE: dict[str, str | bytes] = {
    "ASCII": "x" * 300_000,
    "beyond ASCII": "größe, размер, 大きさ " * 10_000,
    "beyond the BMP": "😀" * 30_000,
    "binary": bytes(range(256)) * 2_000,
}


@pytest.mark.parametrize("kind", LARGE)
async def test_large_messages_come_back_as_they_were_and_in_order(stack: Stack, kind: str) -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink

        async def on_message(self, message: str | bytes) -> str | bytes:
            self.sink.send_nowait("once")
            await self.sink.send(message)
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send(LARGE[kind])
        await peer.send("small")
        assert [await peer.receive() for _ in range(3)] == ["once", LARGE[kind], LARGE[kind]]
        assert [await peer.receive() for _ in range(3)] == ["once", "small", "small"]


@pytest.mark.parametrize("message", ["x" * 101, "é" * 51, b"x" * 101, "x" * 100_000])
async def test_a_message_that_is_too_big_is_a_1009(stack: Stack, message: str | bytes) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Recorder(journal), max_message_size=100)
    class Small(Recorder): ...

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("x" * 100)
            await peer.send(message)
            assert await closing(peer) == Close(1009, "message is longer than 100 bytes", by="server")
        assert await journal.next() == "connect"
        assert await journal.next() == "x" * 100
        assert await journal.next() == Close(1009, "message is longer than 100 bytes", by="server")
    assert journal.ended()


async def test_a_close_code_that_may_not_be_sent_is_a_value_error(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Wrong:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536, -1):
                with pytest.raises(ValueError, match="RFC 6455"):
                    await sink.close(code)
            await sink.send("still here")

        async def on_message(self, message: str) -> str:
            return message

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert await peer.receive() == "still here"
        await peer.send("x")
        assert await peer.receive() == "x"


@pytest.mark.parametrize("end", ["peer close", "drop", "own close", "failure"])
async def test_a_send_after_the_end_raises_connection_closed(
    stack: Stack, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Late(journal))
    class Late(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            if message == "own close":
                await self.sink.close(4002, "mine")
            elif message == "failure":
                raise ZeroDivisionError

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            for data in ("text", b"binary"):
                with pytest.raises(ConnectionClosed) as caught:
                    await self.sink.send(data)
                assert caught.value.reason is reason
            with pytest.raises(ConnectionClosed):
                await self.sink.send_json({})
            assert self.sink.send_nowait("x") is False
            await self.sink.close()
            self.journal.add(self.sink)

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            if end == "peer close":
                await peer.close()
            elif end == "drop":
                await peer.drop()
            else:
                await peer.send(end)
                await closing(peer)
        assert await journal.next() == "connect"
        sink = await journal.next()
        with pytest.raises(ConnectionClosed):
            await sink.send("from a task of its own")
    assert journal.ended()
    assert len(take_errors(caplog)) == (1 if end == "failure" else 0)


async def test_a_hook_that_sends_on_and_on_ends_when_the_peer_leaves(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Talker(journal))
    class Talker(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            while True:
                await self.sink.send(message)
                await asyncio.sleep(0)

    for leave in ("close", "drop"):
        async with stack.serve(app) as server:
            async with server.connect("/ws") as peer:
                await peer.send("on and on")
                assert await peer.receive() == "on and on"
                await (peer.close(4001, "bye") if leave == "close" else peer.drop())
            assert await journal.next() == "connect"
            reason = await journal.next()
            assert reason == (stack.peer_closed(4001, "bye") if leave == "close" else Unknown())
    assert journal.ended()


async def test_the_code_and_text_of_the_peers_close(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Recorder(journal))
    class Quiet(Recorder): ...

    async with stack.serve(app) as server:
        for code, text in ((1000, ""), (1001, "going"), (3000, ""), (4001, "tschüß"), (4999, "x" * 123)):
            async with server.connect("/ws") as peer:
                await peer.close(code, text)
            assert await journal.next() == "connect"
            reason = await journal.next()
            assert reason == stack.peer_closed(code, text)
            assert isinstance(reason, Unknown) or type(reason.code) is int
    assert journal.ended()


async def test_a_lost_transport_is_unknown(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Recorder(journal))
    class Quiet(Recorder): ...

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("x")
            assert await journal.next() == "connect"
            assert await journal.next() == "x"
            await peer.drop()
        assert await journal.next() == Unknown()
    assert journal.ended()


async def test_the_peers_close_is_seen_while_a_hook_runs(stack: Stack) -> None:
    app = App()
    journal = Journal()
    release = asyncio.Event()

    @app.handler("/ws", factory=lambda headers: Slow(journal))
    class Slow(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            self.journal.add(self.sink)
            await release.wait()
            self.journal.add("hook ends")

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("x")
        assert await journal.next() == "connect"
        sink: Sink = await journal.next()
        closing_task = asyncio.create_task(peer.close(4001, "bye"))
        await until(lambda: sink.closed)
        assert sink.reason == stack.peer_closed(4001, "bye")
        assert journal.ended()
        release.set()
        assert await journal.next() == "hook ends"
        assert await journal.next() == stack.peer_closed(4001, "bye")
        await soon(closing_task)
    assert journal.ended()


async def test_a_hook_that_still_runs_is_cancelled_after_its_grace(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Stuck(journal), disconnect_grace=0)
    class Stuck(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            self.journal.add(message)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.journal.add("cancelled")
                raise

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("x")
            assert [await journal.next() for _ in range(2)] == ["connect", "x"]
            await peer.close(4001, "bye")
        assert await journal.next() == "cancelled"
        assert await journal.next() == stack.peer_closed(4001, "bye")
    assert journal.ended()


async def test_messages_before_the_peers_close_are_delivered(stack: Stack) -> None:
    app = App()
    journal = Journal()
    release = asyncio.Event()

    @app.handler("/ws", factory=lambda headers: Slow(journal))
    class Slow(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            await release.wait()
            self.journal.add(message)

    sent = [str(number) for number in range(50)]
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for message in sent:
            await peer.send(message)
        closing_task = asyncio.create_task(peer.close(4001, "bye"))
        assert await journal.next() == "connect"
        release.set()
        assert [await journal.next() for _ in sent] == sent
        assert await journal.next() == stack.peer_closed(4001, "bye")
        await soon(closing_task)
    assert journal.ended()


# Shutdown.


async def test_shutdown_runs_every_on_disconnect(stack: Stack) -> None:
    skip_unless_it_ends(stack)
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Recorder(journal), close_timeout=0.2)
    class Quiet(Recorder): ...

    @asynccontextmanager
    async def peers(server: Server, number: int) -> AsyncGenerator[list[Peer]]:
        if number == 0:
            yield []
            return
        async with peers(server, number - 1) as others, server.connect("/ws") as peer:
            yield [*others, peer]

    async with stack.serve(app) as server, peers(server, 5) as connected:
        assert [await journal.next() for _ in connected] == ["connect"] * 5
        stopping = asyncio.create_task(server.stop())
        for _ in connected:
            reason = await journal.next()
            assert isinstance(reason, Close)
            assert (reason.code, reason.by) == (1012, "server")
        if stack.shuts_down_1012:
            for peer in connected:
                reason = await closing(peer)
                assert isinstance(reason, Close)
                assert reason.code == 1012
        await soon(stopping)
    assert journal.ended()


async def test_the_app_can_be_shut_down_by_itself(stack: Stack) -> None:
    app = App()
    journal = Journal()

    @app.handler("/ws", factory=lambda headers: Recorder(journal))
    class Quiet(Recorder): ...

    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            assert await journal.next() == "connect"
            await soon(app.shut_down())
            assert await closing(peer) == Close(1012, "service restart", by="server")
            assert await journal.next() == Close(1012, "service restart", by="server")
        assert (await refusal(server, "/ws")).status == 503
    assert journal.ended()


async def test_the_lifespan_gives_state_and_ends_after_the_last_on_disconnect(stack: Stack) -> None:
    skip_unless_it_ends(stack)
    app = App()
    journal = Journal()

    @app.lifespan
    async def lifespan(starlette: Starlette) -> AsyncGenerator[dict[str, str]]:  # pyright: ignore[reportUnusedFunction]
        journal.add("startup")
        yield {"name": "Ada"}
        journal.add("shutdown")

    @app.handler("/ws", close_timeout=0.2)
    class Stateful:
        def __init__(self, request: HTTPConnection) -> None:
            journal.add(request.state.name)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            await asyncio.sleep(0.01)
            journal.add("disconnect")

    @app.route("/name")
    async def name(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse(request.state.name)

    async with stack.serve(app) as server:
        assert await journal.next() == "startup"
        async with server.http() as client:
            assert (await client.get("/name")).text == "Ada"
        async with server.connect("/ws"), server.connect("/ws"):
            assert [await journal.next() for _ in range(2)] == ["Ada"] * 2
            await soon(server.stop())
    assert [await journal.next() for _ in range(3)] == ["disconnect", "disconnect", "shutdown"]
    assert journal.ended()


# Helpers for own endpoints.


class Upper:
    async def on_message(self, message: str) -> str:
        return message.upper()


async def check_upper_with_one_slot(server: Server, path: str) -> None:
    """Check that a route answers with `Upper`, to one client at a time."""
    async with server.connect(path) as peer:
        await peer.send("x")
        assert await peer.receive() == "X"
        assert (await refusal(server, path)).status == 503
    async with admitted(server, path) as peer:
        await peer.send("y")
        assert await peer.receive() == "Y"


async def check_upper_with_one_slot_after_accept(server: Server, path: str) -> None:
    """Check the same where the endpoint accepts the upgrade by itself, and so cannot refuse it any more."""
    async with server.connect(path) as peer:
        await peer.send("x")
        assert await peer.receive() == "X"
        async with server.connect(path) as second:
            assert await closing(second) == Close(1013, "service unavailable", by="server")
    async with admitted(server, path) as peer:
        await peer.send("y")
        assert await peer.receive() == "Y"


async def test_websocket_route(stack: Stack) -> None:
    routes = [
        websocket_route("/class", Upper, max_connections=1),
        websocket_route("/factory", lambda headers: Upper(), max_connections=1),
    ]
    async with stack.serve(Starlette(routes=routes)) as server:
        for path in ("/class", "/factory"):
            await check_upper_with_one_slot(server, path)


async def test_handle_socket_in_starlette(stack: Stack) -> None:
    async def handled(websocket: WebSocket) -> None:
        await handle_socket(websocket, Upper, max_connections=1)

    async def accepted(websocket: WebSocket) -> None:
        await websocket.accept()
        await handle_socket(websocket, Upper(), max_connections=1)

    routes = [WebSocketRoute("/handled", handled), WebSocketRoute("/accepted", accepted)]
    async with stack.serve(Starlette(routes=routes)) as server:
        await check_upper_with_one_slot(server, "/handled")
        await check_upper_with_one_slot_after_accept(server, "/accepted")


async def test_handle_socket_in_fastapi(stack: Stack) -> None:
    app = fastapi.FastAPI()

    @app.websocket("/rooms/{room}")
    async def handled(websocket: WebSocket, room: str) -> None:  # pyright: ignore[reportUnusedFunction]
        assert room == "blue"
        await handle_socket(websocket, Upper, max_connections=1)

    @app.websocket("/accepted")
    async def accepted(websocket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await websocket.accept()
        await handle_socket(websocket, Upper, max_connections=1)

    @app.websocket("/subprotocol")
    async def subprotocol(websocket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await websocket.accept(subprotocol="v1")
        await handle_socket(websocket, Upper)

    async with stack.serve(app) as server:
        await check_upper_with_one_slot(server, "/rooms/blue")
        await check_upper_with_one_slot_after_accept(server, "/accepted")
        async with server.connect("/subprotocol", subprotocols=["v1"]) as peer:
            assert peer.subprotocol == "v1"


async def test_handle_upgrade(stack: Stack) -> None:
    app = App()

    @app.route("/both")
    async def both(upgrade: WebSocketUpgrade | None) -> Response | None:  # pyright: ignore[reportUnusedFunction]
        if upgrade is None:
            return HTMLResponse("<title>page</title>")
        await handle_upgrade(upgrade, Upper, max_connections=1)
        return None

    @app.route("/guarded/{name}")
    async def guarded(upgrade: WebSocketUpgrade, name: str) -> Response | None:  # pyright: ignore[reportUnusedFunction]
        if upgrade.query_params.get("token") != name:
            return JSONResponse({"error": "token"}, 401)
        await handle_upgrade(upgrade, Upper())
        return None

    async with stack.serve(app) as server:
        async with server.http() as client:
            page = await client.get("/both")
            assert (page.status_code, page.text) == (200, "<title>page</title>")
            assert (await client.get("/guarded/ada")).status_code == 426
        await check_upper_with_one_slot(server, "/both")
        refused = await refusal(server, "/guarded/ada")
        assert (refused.status, refused.body) == (401, b'{"error":"token"}')
        async with server.connect("/guarded/ada?token=ada") as peer:
            await peer.send("x")
            assert await peer.receive() == "X"


async def test_an_upgrade_that_is_left_unanswered_is_a_500(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    app = App()

    @app.route("/ws")
    async def forgetful(upgrade: WebSocketUpgrade | None) -> None:  # pyright: ignore[reportUnusedFunction]
        return None

    async with stack.serve(app) as server:
        refused = await refusal(server, "/ws")
        assert (refused.status, refused.body) == (500, b"Internal Server Error")
    errors = take_errors(caplog)
    assert len(errors) == 1
    assert "left a WebSocket handshake unanswered" in errors[0][1]


# Inside other apps, and behind middleware.


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
async def test_mounted(stack: Stack, framework: str) -> None:
    skip_unless_it_ends(stack)
    app = App()
    journal = Journal()

    @app.handler("/rooms/{room}", max_connections=1, close_timeout=0.2)
    class Room(Recorder):
        def __init__(self, room: str, request: HTTPConnection) -> None:
            super().__init__(journal)
            journal.add((room, request.scope["root_path"]))

        async def on_message(self, message: str | bytes) -> str | bytes:
            return message

    @app.route("/page")
    async def page() -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("page")

    @asynccontextmanager
    async def lifespan(outer: ASGIApp) -> AsyncGenerator[None]:
        yield
        # A mounted app does not see the lifespan of the server.
        await app.shut_down()

    outer: Starlette
    if framework == "starlette":
        outer = Starlette(routes=[Mount("/live", app)], lifespan=lifespan)
    else:
        outer = fastapi.FastAPI(lifespan=lifespan)
        outer.mount("/live", app)
    async with stack.serve(outer) as server:
        async with server.http() as client:
            assert (await client.get("/live/page")).text == "page"
        async with server.connect("/live/rooms/blue") as peer:
            assert await journal.next() == ("blue", "/live")
            assert await journal.next() == "connect"
            await peer.send("x")
            assert await peer.receive() == "x"
            assert (await refusal(server, "/live/rooms/blue")).status == 503
            assert (await refusal(server, "/live/other")).status == 404
            await soon(server.stop())
            reason = await journal.next()
            assert isinstance(reason, Close)
            assert (reason.code, reason.by) == (1012, "server")
    assert journal.ended()


class Stamp:
    """Middleware that changes the scope."""

    def __init__(self, app: ASGIApp, value: str) -> None:
        self.app = app
        self.value = value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope = {**scope, "stamp": self.value}
        await self.app(scope, receive, send)


class Shout:
    """Middleware that wraps `receive` and `send`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def shouting_receive() -> Any:
            message = await receive()
            return {**message, "text": message["text"] + "!"} if message.get("text") is not None else message

        async def shouting_send(message: Any) -> None:
            text = message.get("text")
            await send({**message, "text": text.upper()} if text is not None else message)

        await self.app(scope, shouting_receive, shouting_send)


class Gate(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["X-Gate"] = "passed"
        return response


class Tokens(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        token = conn.headers.get("authorization")
        if token is None:
            return None
        if token.removeprefix("Bearer ") != "ada":
            raise AuthenticationError("bad token")
        return AuthCredentials(["chat"]), SimpleUser("ada")


def on_auth_error(conn: HTTPConnection, exc: Exception) -> Response:
    return PlainTextResponse(str(exc), 401)


async def test_middleware(stack: Stack) -> None:
    app = App(
        middleware=[
            Middleware(Stamp, value="green"),
            Middleware(Shout),
            Middleware(SessionMiddleware, secret_key=secrets.token_hex()),
            Middleware(AuthenticationMiddleware, backend=Tokens(), on_error=on_auth_error),
            Middleware(Gate),
        ]
    )

    @app.handler("/ws")
    class Behind:
        def __init__(self, request: HTTPConnection) -> None:
            self.request = request

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            if not self.request.user.is_authenticated:
                raise HTTPException(401, "log in first")
            self.request.session["seen"] = "yes"
            await sink.accept()
            await sink.send(f"{self.request.user.username} {self.request.scope['stamp']}")

        async def on_message(self, message: str) -> str:
            return f"echo {message}"

    @app.route("/page")
    async def page(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse(request.session.get("seen", "never"))

    async with stack.serve(app) as server:
        async with server.http() as client:
            response = await client.get("/page")
            assert (response.text, response.headers["x-gate"]) == ("never", "passed")
        refused = await refusal(server, "/ws")
        assert (refused.status, refused.body) == (401, b"log in first")
        async with server.connect("/ws", headers={"Authorization": "Bearer ada"}) as peer:
            assert await peer.receive() == "ADA GREEN"
            await peer.send("x")
            assert await peer.receive() == "ECHO X!"
            await peer.close()
