"""The client that users test with, in memory and over a real socket: the same test both ways."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.stacks import soon, until
from wsdeco import App, Close, ConnectionClosed, DisconnectReason, Sink, Timeout, Unknown
from wsdeco.testing import Client, HandshakeRefused, ManualClock, connect
from wsdeco.testing.forms import Forms


@pytest.fixture(params=[False, True], ids=["memory", "live"])
def join(request: pytest.FixtureRequest) -> Callable[..., Client]:
    return partial(connect, live=request.param)


class Recorded:
    """An app with one echo, whose reasons are kept."""

    def __init__(self, **limits: Any) -> None:
        self.app = App()
        self.reasons: list[DisconnectReason] = []
        self.sinks: list[Sink] = []
        recorded = self

        @self.app.handler("/rooms/{room}", subprotocols=["a"], **limits)
        class Echo:
            sink: Sink

            def __init__(self, room: str, query_params: Any, headers: Any) -> None:
                if room == "secret":
                    raise HTTPException(401, "who are you?", {"X-Why": "no"})
                self.room = f"{room} {query_params.get('a')} {headers['host']}"

            async def on_connect(self, addr: object, sink: Sink) -> None:
                recorded.sinks.append(sink)
                await sink.accept(headers=[("x-a", "1")])

            async def on_message(self, data: str | bytes) -> str | bytes | None:
                match data:
                    case "where":
                        return f"{self.room} {self.sink.addr} {self.sink.request.url.scheme}"
                    case "close":
                        await self.sink.close(4001, "bye")
                        return None
                    case _:
                        return data

            async def on_disconnect(self, reason: DisconnectReason) -> None:
                recorded.reasons.append(reason)


async def test_a_conversation(join: Callable[..., Client]) -> None:
    recorded = Recorded()
    path = "/rooms/a%20b?a=%3D"
    options: dict[str, Any] = {"subprotocols": ["b", "a"], "client": ("10.0.0.1", 7), "scheme": "wss"}
    async with join(recorded.app, path, **options) as client:
        assert (client.subprotocol, client.headers) == ("a", [("x-a", "1")])
        await client.send("where")
        await client.expect("a b = testserver 10.0.0.1:7 wss")
        await client.send(b"\x00\xff")
        await client.expect(b"\x00\xff")
        await client.send("")
        await client.expect("")
        await client.send("in three pieces \u00e9", pieces=3)
        await client.expect("in three pieces \u00e9")
        await client.send(b"in pieces", pieces=9)
        await client.expect(b"in pieces")
        await client.send("close")
        await client.expect_close(4001, "bye")
        await client.wait_done()
        with pytest.raises(ConnectionClosed):
            await client.send("x")
    assert recorded.reasons == [Close(4001, "bye", by="server")]


async def test_a_refusal(join: Callable[..., Client]) -> None:
    with pytest.raises(HandshakeRefused, match="HTTP 401: who are you") as caught:
        async with join(Recorded().app, "/rooms/secret"):
            pass
    assert caught.value.headers["x-why"] == "no"
    with pytest.raises(HandshakeRefused, match="HTTP 404"):
        async with join(Recorded().app, "/nowhere"):
            pass


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        ("close", Close(4002, "enough", by="client")),
        ("drop", Unknown()),
        ("half_close", Unknown()),
        ("leave", Unknown()),
    ],
)
async def test_the_ways_to_leave(join: Callable[..., Client], leave: str, reason: DisconnectReason) -> None:
    recorded = Recorded()
    async with join(recorded.app, "/rooms/a") as client:
        await client.send("x")
        await client.expect("x")
        if leave == "close":
            await client.close(4002, "enough")
        elif leave == "drop":
            await client.drop()
        elif leave == "half_close":
            await client.half_close()
            await client.wait_done()
    assert recorded.reasons == [reason]


async def test_the_limits_of_the_app_on_the_clock_of_the_test(join: Callable[..., Client]) -> None:
    recorded, clock = Recorded(idle_timeout=60), ManualClock()
    async with join(recorded.app, "/rooms/a", clock=clock) as client:
        await until(lambda: clock.pending > 0)
        assert recorded.sinks[0].clock is clock
        rung = asyncio.Event()
        recorded.sinks[0].clock.call_at(clock.time() + 5, rung.set)
        await clock.advance(59)
        assert rung.is_set()
        assert recorded.reasons == []
        await clock.advance(1)
        await client.expect_close(1001, "idle_timeout of 60 s is over")
        await client.wait_done()
    assert recorded.reasons == [Timeout("idle_timeout of 60 s is over", "idle_timeout")]
    async with join(recorded.app, "/rooms/a"):
        assert recorded.sinks[1].clock is asyncio.get_running_loop(), "the app itself is as it was"


async def test_a_reset_of_the_connection_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(reader: asyncio.StreamReader, number: int) -> bytes:
        raise ConnectionResetError

    recorded = Recorded()
    async with connect(recorded.app, "/rooms/a", live=True) as client:
        monkeypatch.setattr(asyncio.StreamReader, "read", fail)
        await client.send("x")
        await client.expect("x")
        with pytest.raises(ConnectionClosed):
            await client.receive()
    assert recorded.reasons == [Unknown()]


async def test_a_peer_that_hangs(join: Callable[..., Client]) -> None:
    recorded, clock = Recorded(send_timeout=30, max_outbox=1024), ManualClock()
    async with join(recorded.app, "/rooms/a", clock=clock) as client:
        client.stall()
        sending = asyncio.create_task(send_for_ever(recorded.sinks[0]))
        await until(lambda: clock.pending > 0)
        await clock.advance(31)
        with pytest.raises(ConnectionClosed):
            await soon(sending)
        client.resume_reading()
        await clock.advance(20)
        await client.wait_done()
    (reason,) = recorded.reasons
    assert isinstance(reason, Close)
    assert reason.code == 1013


async def send_for_ever(sink: Sink) -> None:
    while True:
        await sink.send("x" * 100_000)


async def test_a_slow_peer(join: Callable[..., Client]) -> None:
    recorded, clock = Recorded(), ManualClock()
    async with join(recorded.app, "/rooms/a", clock=clock) as client:
        client.slow(10)
        with pytest.raises(ValueError, match="more than 0 bytes per second, not 0: see stall"):
            client.slow(0)
        await client.send("x" * 100)
        received = asyncio.create_task(client.receive())
        for _ in range(9):
            await clock.advance(1)
            assert not received.done()
        while not received.done():
            await asyncio.sleep(0.001)
            await clock.advance(1)
        assert await received == "x" * 100
        assert clock.time() >= 10


@dataclass
class Ask:
    what: str


@dataclass
class Tell:
    what: str


@dataclass
class Told:
    number: int


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_messages_with_types(join: Callable[..., Client], codec: Any) -> None:
    app = App()

    @app.handler("/ws", codec=codec)
    class Typed:
        async def on_message(self, message: Ask | Tell) -> Told | Ask:
            return Told(len(message.what)) if isinstance(message, Tell) else message

    async with join(app, "/ws") as client:
        await client.send(Tell("four"))
        await client.expect(Told(4))
        await client.send(Ask("x"))
        assert await client.receive(Ask) == Ask("x")
        await client.send(Ask("x"))
        with pytest.raises(AssertionError, match=r"expected Tell\(what='y'\), received"):
            await client.expect(Tell("y"))
        await client.send(Ask("x"))
        with pytest.raises(AssertionError, match="expected a message of Told, received"):
            await client.receive(Told)


async def test_messages_with_types_of_any_app(join: Callable[..., Client]) -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_message(self, data: str | bytes) -> str | bytes:
            return data

    class Plain:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)

    async with join(Plain(app), "/ws") as client:
        await client.send(Told(1))
        await client.expect('{"number":1}')
        await client.send(Told(1))
        assert await client.receive(Told) == Told(1)
        for wrong in (b"\x01", "no JSON"):
            await client.send(wrong)
            with pytest.raises(AssertionError, match="expected Told"):
                await client.expect(Told(1))


async def test_a_failure_of_the_app_fails_the_test(join: Callable[..., Client]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        async with join(app, "/"):
            pass


async def test_middleware_is_around_the_connection(join: Callable[..., Client]) -> None:
    seen: list[str] = []

    class Sees:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["type"])
            await self.app(scope, receive, send)

    app, clock = App(middleware=[Middleware(Sees)]), ManualClock()

    @app.handler("/ws", idle_timeout=5)
    class Echo:
        async def on_message(self, text: str) -> str:
            return text

    async with join(app, "/ws", clock=clock) as client:
        await client.send("x")
        await client.expect("x")
        await clock.advance(6)
        await client.expect_close(1001)
    assert seen == ["websocket"]


async def test_a_client_that_has_left_cannot_close_one_side(join: Callable[..., Client]) -> None:
    async with join(Recorded().app, "/rooms/a") as client:
        await client.close()
        await client.half_close()


def test_messages_with_types_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wsdeco.typed.codecs", None)
    with pytest.raises(TypeError, match=r"pip install 'wsdeco\[typed\]'"):
        Forms(App(), {})


def test_the_types_of_a_message_are_those_of_the_handler_on_its_path() -> None:
    app = App()

    @app.handler("/numbers")
    class Numbers:
        async def on_message(self, numbers: list[int]) -> None: ...

    @app.handler("/words", codec="msgpack")
    class Words:
        async def on_message(self, words: list[str]) -> None: ...

    scope: Scope = {"type": "websocket", "path": "/words", "headers": []}
    assert isinstance(Forms(app, scope).sent(["a"]), bytes)
    assert Forms(app, {**scope, "path": "/nowhere"}).sent(["a"]) == '["a"]'
