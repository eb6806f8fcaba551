"""What the README of `websocket_builder` promises, by its features, and the holes of it that are closed here."""

import asyncio
import inspect
import logging
import runpy
from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args

import pytest
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect as network_connect

import wsdeco
from tests.support.checkout import CHECKOUT
from tests.support.stacks import SANSIO, soon
from wsdeco import (
    Address,
    App,
    Close,
    ConnectionConfig,
    DisconnectReason,
    Error,
    Sink,
    Timeout,
    Unknown,
    WebSocketHandler,
    WebSocketUpgrade,
    handle_socket,
    handle_upgrade,
    websocket_route,
)
from wsdeco.testing import Client, HandshakeRefused, ManualClock, connect

EXAMPLES = CHECKOUT / "examples"


class MyHandler:
    """The handler of the README, hook by hook."""

    def __init__(self, reasons: list[DisconnectReason]) -> None:
        self.reasons = reasons
        self.addr: Address
        self.sink: Sink

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.addr = addr
        self.sink = sink
        await self.sink.send("Welcome!")

    async def on_message(self, text: str) -> None:
        await self.sink.send(f"Echo: {text}")

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.reasons.append(reason)


class MyHandlerFactory:
    """The factory of the README."""

    def __init__(self) -> None:
        self.reasons: list[DisconnectReason] = []
        self.seen: list[Headers] = []

    def create(self, headers: Headers) -> MyHandler:
        self.seen.append(headers)
        return MyHandler(self.reasons)


class Echo:
    """The least a handler can be."""

    async def on_message(self, text: str) -> str:
        return f"Echo: {text}"


async def converse(client: Client) -> None:
    await client.expect("Welcome!")
    await client.send("hi")
    await client.expect("Echo: hi")


async def refusal(app: Any, path: str) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app, path):
            pass
    return caught.value


# The features, in the order of its README.


async def test_three_hooks() -> None:
    app = App()
    events: list[object] = []

    @app.handler("/ws")
    class Handler:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            events.append((addr, sink.addr))

        async def on_message(self, text: str) -> None:
            events.append(text)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            events.append(reason)

    async with connect(app, "/ws", client=("192.0.2.1", 4711)) as client:
        await client.send("a")
        await client.send("b")
        await client.close(1000, "done")
    addr = Address("192.0.2.1", 4711)
    assert events == [(addr, addr), "a", "b", Close(1000, "done", by="client")]


async def test_per_connection_handlers_have_a_state_of_their_own() -> None:
    app = App()

    @app.handler("/ws")
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        async def on_message(self, text: str) -> str:
            self.count += 1
            return f"{self.count} {text}"

    async with connect(app, "/ws") as first, connect(app, "/ws") as second:
        for client, expected in ((first, "1 x"), (first, "2 x"), (second, "1 x"), (first, "3 x")):
            await client.send("x")
            await client.expect(expected)


async def test_starlette_integration() -> None:
    async def page(request: object) -> Response:
        return HTMLResponse("<h1>page</h1>")

    app = Starlette(routes=[websocket_route("/ws", Echo)])
    app.add_route("/", page)
    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.expect("Echo: x")
    async with AsyncClient(transport=ASGITransport(app), base_url="http://testserver") as http:
        assert (await http.get("/")).text == "<h1>page</h1>"


async def test_connection_limits() -> None:
    app = App()
    app.add("/ws", Echo, max_connections=2)
    async with connect(app, "/ws"):
        async with connect(app, "/ws"):
            refused = await refusal(app, "/ws")
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        async with connect(app, "/ws") as client:
            await client.send("x")
            await client.expect("Echo: x")


async def test_automatic_ping_pong_and_close_frames() -> None:
    app = App()
    reasons: list[DisconnectReason] = []
    app.add("/ws", MyHandler, factory=lambda headers: MyHandler(reasons))
    async with SANSIO.serve(app) as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        async with network_connect(url, proxy=None, ping_interval=None) as client:
            assert await soon(client.recv()) == "Welcome!"
            await soon(await client.ping(b"are you there?"))
            await client.close(4001, "bye")
            # The server's close frame answers with the code of the client's (RFC 6455, section 5.5.1).
            assert client.protocol.close_rcvd is not None
            assert client.protocol.close_rcvd.code == 4001
    assert reasons == [Close(4001, "bye", by="client")]


async def test_a_factory_with_create_gets_the_headers_of_each_connection() -> None:
    app = App()
    factory = MyHandlerFactory()
    app.add("/ws", MyHandler, factory=factory)
    for name in ("Ada", "Grace"):
        async with connect(app, "/ws", headers={"X-Name": name}) as client:
            await converse(client)
    assert [headers["x-name"] for headers in factory.seen] == ["Ada", "Grace"]
    assert factory.reasons == [Unknown(), Unknown()]


async def test_websocket_route() -> None:
    factory = MyHandlerFactory()
    route = websocket_route("/ws", factory)
    assert isinstance(route, WebSocketRoute)
    async with connect(Starlette(routes=[route]), "/ws") as client:
        await converse(client)
        await client.close()
    assert factory.reasons == [Close(1000, "", by="client")]


async def test_websocket_route_with_config() -> None:
    config = ConnectionConfig(
        max_connections=1, max_connection_duration=timedelta(minutes=5), idle_timeout=timedelta(minutes=1)
    )
    app = Starlette(routes=[websocket_route("/ws", MyHandlerFactory(), config)])
    async with connect(app, "/ws") as client:
        await converse(client)
        assert (await refusal(app, "/ws")).status == 503


def test_connection_config_has_the_three_fields_and_none_is_set_by_default() -> None:
    config = ConnectionConfig()
    assert (config.max_connections, config.max_connection_duration, config.idle_timeout) == (None, None, None)
    config = ConnectionConfig(
        max_connections=1000, max_connection_duration=timedelta(seconds=300), idle_timeout=timedelta(seconds=60)
    )
    assert (config.max_connections, config.max_connection_duration, config.idle_timeout) == (1000, 300.0, 60.0)


class Limited:
    """An app on a clock of its own, whose handler keeps the reasons."""

    def __init__(self, config: ConnectionConfig) -> None:
        self.clock = ManualClock()
        self.app = App(clock=self.clock)
        self.reasons: list[DisconnectReason] = []
        reasons = self.reasons

        @self.app.handler("/ws", config=config)
        class Handler:
            async def on_message(self, data: str | bytes) -> str:
                return "got it"

            async def on_disconnect(self, reason: DisconnectReason) -> None:
                reasons.append(reason)

    def connect(self) -> Client:
        return connect(self.app, "/ws")

    async def exchange(self, client: Client, data: str | bytes = "x") -> None:
        await client.send(data)
        await client.expect("got it")

    async def expect_timeout(self, client: Client, reason: Timeout) -> None:
        await client.expect_close(1001, reason.message)
        await client.wait_done()
        assert self.reasons == [reason]


async def test_max_connection_duration_is_hard_whatever_the_activity() -> None:
    limited = Limited(ConnectionConfig(max_connection_duration=300))
    async with limited.connect() as client:
        for _ in range(29):
            await limited.clock.advance(10)
            await limited.exchange(client)
        await limited.clock.advance(9.9)
        await limited.exchange(client)
        await limited.clock.advance(0.1)
        message = "max_connection_duration of 300 s is over"
        await limited.expect_timeout(client, Timeout(message, "max_connection_duration"))


async def test_idle_timeout_closes_after_a_time_without_messages() -> None:
    limited = Limited(ConnectionConfig(idle_timeout=60))
    async with limited.connect() as client:
        await limited.clock.advance(59.9)
        assert limited.reasons == []
        await limited.clock.advance(0.1)
        await limited.expect_timeout(client, Timeout("idle_timeout of 60 s is over", "idle_timeout"))


@pytest.mark.parametrize("data", ["text", b"binary"])
async def test_idle_timeout_starts_again_with_any_message(data: str | bytes) -> None:
    limited = Limited(ConnectionConfig(idle_timeout=60))
    async with limited.connect() as client:
        for _ in range(10):
            await limited.clock.advance(59.9)
            await limited.exchange(client, data)
        assert limited.reasons == []
        await limited.clock.advance(60)
        await limited.expect_timeout(client, Timeout("idle_timeout of 60 s is over", "idle_timeout"))


async def test_idle_timeout_starts_again_with_a_binary_message_that_no_hook_takes() -> None:
    clock = ManualClock()
    app = App(clock=clock)
    app.add("/ws", Echo, idle_timeout=60)
    async with connect(app, "/ws") as client:
        for _ in range(3):
            await clock.advance(40)
            await client.send(b"binary")
        await client.send("x")
        await client.expect("Echo: x")


@pytest.mark.parametrize(
    ("duration", "idle", "shorter"),
    [(300, 60, "idle_timeout"), (60, 300, "max_connection_duration")],
)
async def test_with_both_limits_the_shorter_one_takes_effect(duration: float, idle: float, shorter: str) -> None:
    limited = Limited(ConnectionConfig(max_connection_duration=duration, idle_timeout=idle))
    async with limited.connect() as client:
        await limited.clock.advance(60)
        await client.expect_close(1001)
        await client.wait_done()
    (reason,) = limited.reasons
    assert isinstance(reason, Timeout)
    assert reason.limit == shorter


async def test_a_timeout_triggers_on_disconnect_with_its_message() -> None:
    limited = Limited(ConnectionConfig(idle_timeout=0.5))
    async with limited.connect() as client:
        await limited.clock.advance(0.5)
        await client.wait_done()
    match limited.reasons:
        case [Timeout(message)]:
            assert message == "idle_timeout of 0.5 s is over"
        case other:
            pytest.fail(f"{other} is not one timeout")


async def test_flexible_handler_serves_http_and_websocket_on_one_route() -> None:
    app = App()
    factory = MyHandlerFactory()

    @app.route("/")
    async def flexible(headers: Headers, upgrade: WebSocketUpgrade | None) -> Response | None:
        if upgrade is None:
            return HTMLResponse("<h1>Hello from HTTP!</h1>")
        await handle_upgrade(upgrade, factory.create(headers))
        return None

    async with AsyncClient(transport=ASGITransport(app), base_url="http://testserver") as http:
        assert (await http.get("/")).text == "<h1>Hello from HTTP!</h1>"
    async with connect(app, "/", headers={"X-Name": "Ada"}) as client:
        await converse(client)
    assert [headers["x-name"] for headers in factory.seen] == ["Ada"]


async def test_handle_upgrade_with_config() -> None:
    clock = ManualClock()
    app = App(clock=clock)
    factory = MyHandlerFactory()

    @app.route("/")
    async def socket_only(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, factory.create(upgrade.headers), ConnectionConfig(idle_timeout=60))

    async with connect(app, "/") as client:
        await converse(client)
        await clock.advance(60)
        await client.expect_close(1001)
        await client.wait_done()
    assert factory.reasons == [Timeout("idle_timeout of 60 s is over", "idle_timeout")]


async def test_handle_socket_inside_an_endpoint_of_starlette() -> None:
    factory = MyHandlerFactory()
    config = ConnectionConfig(max_connections=10)

    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, factory.create(websocket.headers), config)

    app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
    async with connect(app, "/ws") as client:
        await converse(client)
        await client.close(1001, "going")
    assert factory.reasons == [Close(1001, "going", by="client")]


async def test_binary_messages_are_ignored() -> None:
    app = App()
    app.add("/ws", Echo)
    async with connect(app, "/ws") as client:
        await client.send(b"binary")
        await client.send("text")
        await client.expect("Echo: text")


@pytest.mark.parametrize("hook", [Close, Error, Timeout, Unknown])
def test_disconnect_reason_is_a_closed_set(hook: type) -> None:
    kinds = get_args(DisconnectReason)
    assert hook in kinds
    assert len(kinds) == 4


@pytest.fixture
def reasons() -> list[DisconnectReason]:
    return []


async def test_disconnect_reason_close(reasons: list[DisconnectReason]) -> None:
    app = App()
    app.add("/ws", MyHandler, factory=lambda headers: MyHandler(reasons))
    async with connect(app, "/ws") as client:
        await client.expect("Welcome!")
        await client.close(4000, "why not")
    assert reasons == [Close(4000, "why not", by="client")]


async def test_disconnect_reason_error(reasons: list[DisconnectReason], caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    failure = ValueError("no such command")

    @app.handler("/ws", factory=lambda headers: Failing(reasons))
    class Failing(MyHandler):
        async def on_message(self, text: str) -> None:
            raise failure

    async with connect(app, "/ws") as client:
        await client.expect("Welcome!")
        await client.send("x")
        await client.expect_close(1011, "internal error")
        await client.wait_done()
    (reason,) = reasons
    assert isinstance(reason, Error)
    assert reason.exception is failure
    assert reason.message.endswith("Failing.on_message raised ValueError: no such command")
    (record,) = (each for each in caplog.records if each.levelno >= logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is failure


async def test_disconnect_reason_timeout(reasons: list[DisconnectReason]) -> None:
    clock = ManualClock()
    app = App(clock=clock)
    app.add("/ws", MyHandler, factory=lambda headers: MyHandler(reasons), max_connection_duration=1)
    async with connect(app, "/ws") as client:
        await clock.advance(1)
        await client.expect("Welcome!")
        await client.expect_close(1001)
        await client.wait_done()
    assert reasons == [Timeout("max_connection_duration of 1 s is over", "max_connection_duration")]


async def test_disconnect_reason_unknown(reasons: list[DisconnectReason]) -> None:
    app = App()
    app.add("/ws", MyHandler, factory=lambda headers: MyHandler(reasons))
    async with connect(app, "/ws") as client:
        await client.expect("Welcome!")
        await client.drop()
    assert reasons == [Unknown()]


def test_the_explicit_base_class_names_the_three_hooks() -> None:
    hooks: list[Callable[..., object]] = [
        WebSocketHandler.on_connect,
        WebSocketHandler.on_message,
        WebSocketHandler.on_disconnect,
    ]
    names = [list(inspect.signature(hook).parameters)[1:] for hook in hooks]
    assert names == [["addr", "sink"], ["message"], ["reason"]]


# The holes of it, none of which is copied.


@pytest.mark.parametrize("accepts_first", [False, True])
async def test_on_disconnect_runs_when_on_connect_fails(accepts_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    seen: list[DisconnectReason] = []

    @app.handler("/ws")
    class Failing:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            if accepts_first:
                await sink.send("Welcome!")
            raise RuntimeError("broken")

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            seen.append(reason)

    if accepts_first:
        async with connect(app, "/ws") as client:
            await client.expect("Welcome!")
            await client.expect_close(1011)
            await client.wait_done()
    else:
        assert (await refusal(app, "/ws")).status == 500
    assert [type(reason) for reason in seen] == [Error]
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


async def test_on_disconnect_runs_when_on_message_fails(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    seen: list[DisconnectReason] = []

    @app.handler("/ws")
    class Failing:
        async def on_message(self, text: str) -> None:
            raise RuntimeError("broken")

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            seen.append(reason)

    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.send("y")
        await client.expect_close(1011)
        await client.wait_done()
    assert [type(reason) for reason in seen] == [Error]
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


async def test_a_timeout_sends_a_close_frame() -> None:
    app = App()
    app.add("/ws", Echo, max_connection_duration=0.01)
    async with SANSIO.serve(app) as server, server.connect("/ws") as peer:
        with pytest.raises(wsdeco.ConnectionClosed) as caught:
            await peer.receive()
    assert caught.value.reason == Close(1001, "max_connection_duration of 0.01 s is over", by="server")


async def test_a_client_over_the_limit_is_refused_before_the_upgrade() -> None:
    app = App()
    app.add("/ws", Echo, max_connections=1)
    async with SANSIO.serve(app) as server, server.connect("/ws"):
        with pytest.raises(HandshakeRefused) as caught:
            async with server.connect("/ws"):
                pass
    assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "1")
    assert caught.value.body == b"Service Unavailable"


async def test_max_connections_holds_for_handle_upgrade() -> None:
    app = App()

    @app.route("/ws")
    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Echo(), max_connections=1)

    async with connect(app, "/ws"):
        assert (await refusal(app, "/ws")).status == 503
    async with connect(app, "/ws"):
        pass


async def test_max_connections_holds_for_handle_socket() -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, Echo(), max_connections=1)

    app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
    async with connect(app, "/ws"):
        assert (await refusal(app, "/ws")).status == 503
    async with connect(app, "/ws"):
        pass


async def test_a_long_on_message_does_not_outlive_max_connection_duration() -> None:
    clock = ManualClock()
    app = App(clock=clock)
    events: list[object] = []

    @app.handler("/ws", max_connection_duration=300)
    class Endless:
        async def on_message(self, text: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                events.append("on_message is cancelled")

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            events.append(reason)

    async with connect(app, "/ws") as client:
        await client.send("x")
        await clock.advance(300)
        await client.expect_close(1001)
        await client.wait_done()
    message = "max_connection_duration of 300 s is over"
    assert events == ["on_message is cancelled", Timeout(message, "max_connection_duration")]


async def test_the_chat_example_delivers_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    monkeypatch.setattr(wsdeco, "ws", app)
    runpy.run_path(str(EXAMPLES / "chat_server.py"), run_name="chat_server")
    async with connect(app, "/chat?name=Ada") as ada, connect(app, "/chat?name=Grace") as grace:
        assert await ada.receive_json() == {"you": "Ada", "people": ["Ada"]}
        assert await ada.receive_json() == {"joined": "Grace"}
        assert (await grace.receive_json())["people"] == ["Ada", "Grace"]
        await ada.send("hello")
        for client in (ada, grace):
            assert await client.receive_json() == {"name": "Ada", "text": "hello"}
