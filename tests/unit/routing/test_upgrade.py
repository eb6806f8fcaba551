"""`handle_upgrade`, `handle_socket` and `websocket_route`: handlers in endpoints and apps of one's own."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator
from datetime import date
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.convertors import CONVERTOR_TYPES, Convertor
from starlette.datastructures import Headers
from starlette.endpoints import WebSocketEndpoint
from starlette.requests import Request
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from wsdeco import (
    Address,
    App,
    Close,
    ConnectionConfig,
    DisconnectReason,
    HandlerError,
    RouteError,
    Sink,
    WebSocketUpgrade,
    handle_socket,
    handle_upgrade,
    websocket_route,
)
from wsdeco.routing.endpoints import HandlerEndpoint
from wsdeco.testing import HandshakeRefused, connect


class Echo:
    async def on_message(self, text: str) -> str:
        return text


class Room:
    def __init__(self, room: object, headers: Headers) -> None:
        self.room = room
        self.host = headers["host"]

    async def on_message(self, text: str) -> str:
        return f"{type(self.room).__name__} {self.room} {self.host}"


class Faulty:
    def on_message(self, text: str) -> str:
        return text


class Factory:
    """A factory, as the ancestor has it."""

    def create(self, headers: Headers) -> Echo:
        return Echo()


def make_echo(headers: Headers) -> Echo:
    return Echo()


SocketEndpoint = Callable[[WebSocket], Awaitable[None]]
UpgradeEndpoint = Callable[[WebSocketUpgrade], Awaitable[None]]


def socket_app(endpoint: SocketEndpoint, path: str = "/ws") -> Starlette:
    return Starlette(routes=[WebSocketRoute(path, endpoint)])


def upgrade_app(endpoint: UpgradeEndpoint, path: str = "/ws") -> App:
    app = App()

    @app.route(path)
    async def page(upgrade: WebSocketUpgrade) -> None:
        await endpoint(upgrade)

    return app


async def reply(app: ASGIApp, path: str = "/ws") -> str | bytes:
    async with connect(app, path) as client:
        await client.send("x")
        return await client.receive()


async def refusal(app: ASGIApp, path: str = "/ws", **headers: str) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app, path, headers=headers):
            pass
    return caught.value


async def failure(app: ASGIApp, path: str = "/ws") -> Exception:
    """Return what the app raises to the server."""
    with pytest.raises((HandlerError, RuntimeError, TypeError, ValueError)) as caught:
        async with connect(app, path):
            pass
    return caught.value


# Handlers.


@pytest.mark.parametrize("handler", [Echo, Echo()])
async def test_classes_and_instances_handle_an_upgrade(handler: object) -> None:
    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, handler)

    assert await reply(upgrade_app(endpoint)) == "x"


@pytest.mark.parametrize("handler", [Echo, Echo()])
async def test_classes_and_instances_handle_a_socket(handler: object) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, handler)

    assert await reply(socket_app(endpoint)) == "x"


async def test_an_instance_finds_address_and_sink_set() -> None:
    class Keeping:
        def __init__(self) -> None:
            self.addr: Address
            self.sink: Sink

        async def on_message(self, text: str) -> None:
            await self.sink.send(f"{text} {self.addr}")

    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, Keeping())

    assert await reply(socket_app(endpoint)) == "x 127.0.0.1:50000"


class DateConvertor(Convertor[date]):
    regex = r"\d{4}-\d{2}-\d{2}"

    def convert(self, value: str) -> date:
        return date.fromisoformat(value)

    def to_string(self, value: date) -> str:
        return value.isoformat()


@pytest.fixture
def date_convertor() -> Iterator[None]:
    CONVERTOR_TYPES["date"] = DateConvertor()
    yield
    del CONVERTOR_TYPES["date"]


@pytest.mark.parametrize(
    ("path", "url", "shown"),
    [
        ("/{room}", "/blue", "str blue testserver"),
        ("/{room:path}", "/a/b", "str a/b testserver"),
        ("/{room:int}", "/42", "int 42 testserver"),
        ("/{room:float}", "/4.5", "float 4.5 testserver"),
        ("/{room:date}", "/2024-02-29", "date 2024-02-29 testserver"),
    ],
)
async def test_a_class_is_built_from_what_the_request_holds(
    path: str, url: str, shown: str, date_convertor: None
) -> None:
    async def of_upgrade(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Room)

    async def of_socket(websocket: WebSocket) -> None:
        await handle_socket(websocket, Room)

    for app in (upgrade_app(of_upgrade, path), socket_app(of_socket, path)):
        assert await reply(app, url) == shown


async def test_a_class_with_annotated_parameters_is_checked_against_their_values(date_convertor: None) -> None:
    class Day:
        def __init__(self, day: date) -> None:
            self.day = day

        async def on_message(self, text: str) -> str:
            return str(self.day.year)

    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, Day)

    assert await reply(socket_app(endpoint, "/{day:date}"), "/2024-02-29") == "2024"
    error = await failure(socket_app(endpoint, "/{day}"), "/2024-02-29")
    assert isinstance(error, HandlerError)
    assert "annotates `day: datetime.date`, and gets str: write `day: str`" in str(error)


async def test_one_endpoint_may_choose_between_handlers() -> None:
    class Upper:
        async def on_message(self, text: str) -> str:
            return text.upper()

    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Upper if upgrade.path_params["how"] == "upper" else Echo)

    app = upgrade_app(endpoint, "/{how}")
    assert [await reply(app, "/upper"), await reply(app, "/plain")] == ["X", "x"]


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (make_echo, "make_echo is neither a handler class nor an instance of one: if it is a factory, call it with "),
        (Factory(), "Factory is neither a handler class nor an instance of one: if it is a factory, call it with "),
        (Factory, "class Factory cannot handle WebSocket connections:\n  - it has no hook: write at least one of "),
        (5, "class int cannot handle WebSocket connections:\n  - it has no hook: write at least one of "),
        (Faulty, "class Faulty cannot handle WebSocket connections:\n  - Faulty.on_message"),
        (Faulty(), "class Faulty cannot handle WebSocket connections:\n  - Faulty.on_message"),
    ],
)
async def test_what_is_no_handler(handler: object, message: str) -> None:
    async def of_upgrade(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, handler)

    async def of_socket(websocket: WebSocket) -> None:
        await handle_socket(websocket, handler)

    for app in (upgrade_app(of_upgrade), socket_app(of_socket)):
        error = await failure(app)
        assert isinstance(error, HandlerError)
        assert str(error).startswith(message)


# Wrong arguments.


async def test_handle_upgrade_needs_an_upgrade() -> None:
    async def of_socket(websocket: WebSocket) -> None:
        await handle_upgrade(websocket, Echo)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    wrong: Any = None
    with pytest.raises(TypeError) as caught:
        await handle_upgrade(wrong, Echo)
    for error, found in ((caught.value, "NoneType"), (await failure(socket_app(of_socket)), "WebSocket")):
        assert str(error) == (
            f"handle_upgrade() takes the WebSocketUpgrade of an @ws.route endpoint, not {found}: "
            "where it is None the request is plain HTTP; for a Starlette WebSocket use handle_socket()"
        )


async def test_handle_socket_needs_a_websocket() -> None:
    async def of_upgrade(upgrade: WebSocketUpgrade) -> None:
        await handle_socket(upgrade, Echo)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    wrong: Any = "ws"
    with pytest.raises(TypeError) as caught:
        await handle_socket(wrong, Echo)
    assert str(caught.value) == "handle_socket() takes a Starlette WebSocket, not str"
    assert str(await failure(upgrade_app(of_upgrade))) == (
        "handle_socket() takes a Starlette WebSocket, not WebSocketUpgrade: "
        "for an @ws.route endpoint use handle_upgrade()"
    )


@pytest.mark.parametrize(
    ("limits", "kind", "message"),
    [
        ({"config": {"idle_timeout": 5}}, TypeError, "config must be a ConnectionConfig, not dict: write Connection"),
        ({"max_conections": 5}, TypeError, "unknown limit 'max_conections': did you mean 'max_connections'?"),
        ({"idle_timeout": "5"}, TypeError, "idle_timeout must be seconds (a number) or a timedelta, not str: '5'"),
        ({"max_connections": 0}, ValueError, "max_connections must be 1 or more, not 0"),
    ],
)
async def test_wrong_limits(limits: dict[str, Any], kind: type[Exception], message: str) -> None:
    async def of_upgrade(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Echo, **limits)

    async def of_socket(websocket: WebSocket) -> None:
        await handle_socket(websocket, Echo, **limits)

    with pytest.raises(kind) as caught:
        websocket_route("/ws", Echo, **limits)
    for error in (caught.value, await failure(upgrade_app(of_upgrade)), await failure(socket_app(of_socket))):
        assert isinstance(error, kind)
        assert str(error).startswith(message)


async def test_keywords_go_on_top_of_config() -> None:
    config = ConnectionConfig(max_connections=5)

    async def of_upgrade(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Echo, config, max_connections=1)

    async def of_socket(websocket: WebSocket) -> None:
        await handle_socket(websocket, Echo, config, max_connections=1)

    routed = Starlette(routes=[websocket_route("/ws", Echo, config, max_connections=1)])
    for app in (upgrade_app(of_upgrade), socket_app(of_socket), routed):
        async with connect(app, "/ws"):
            assert (await refusal(app)).status == 503


async def test_an_upgrade_is_handled_once() -> None:
    handled: list[bool] = []

    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        handled.append(upgrade.handled)
        await handle_upgrade(upgrade, Echo)
        handled.append(upgrade.handled)
        await handle_upgrade(upgrade, Echo)

    with pytest.raises(RuntimeError) as caught:
        async with connect(upgrade_app(endpoint), "/ws") as client:
            await client.close()
    assert str(caught.value) == "this upgrade has been handled already: call handle_upgrade() once per request"
    assert handled == [False, True]


@pytest.mark.parametrize("before", ["handle_socket", "close", "disconnect"])
async def test_a_websocket_that_has_ended_cannot_be_handled(before: str) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        if before == "handle_socket":
            await handle_socket(websocket, Echo)
        else:
            await websocket.accept()
            if before == "close":
                await websocket.close()
            else:
                await websocket.receive()
        await handle_socket(websocket, Echo)

    with pytest.raises(RuntimeError) as caught:
        async with connect(socket_app(endpoint), "/ws") as client:
            await client.close()
    assert str(caught.value) == "this WebSocket has ended already: call handle_socket() once, while it is open"


# Slots.


async def slots_in_use(app: ASGIApp, path: str, limit: int) -> None:
    """Check that `path` takes `limit` connections, and again when they have gone."""
    for _ in range(2):
        async with asyncio.TaskGroup() as group:
            clients = [connect(app, path) for _ in range(limit)]
            for client in clients:
                await client.__aenter__()
            refused = await refusal(app, path)
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            for client in clients:
                group.create_task(client.close())


async def test_slots_are_counted_per_endpoint() -> None:
    async def first(websocket: WebSocket) -> None:
        await handle_socket(websocket, Echo, max_connections=2)

    async def second(websocket: WebSocket) -> None:
        await handle_socket(websocket, Echo, max_connections=2)

    app = Starlette(routes=[WebSocketRoute("/first", first), WebSocketRoute("/second", second)])
    async with connect(app, "/first"), connect(app, "/first"):
        await slots_in_use(app, "/second", 2)
        assert (await refusal(app, "/first")).status == 503


async def test_slots_are_counted_per_limit_within_an_endpoint() -> None:
    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        limit = {"guest": 1, "member": 2, "admin": None}[upgrade.path_params["role"]]
        await handle_upgrade(upgrade, Echo, max_connections=limit)

    app = upgrade_app(endpoint, "/{role}")
    async with connect(app, "/guest"), connect(app, "/admin"), connect(app, "/admin"), connect(app, "/admin"):
        assert (await refusal(app, "/guest")).status == 503
        await slots_in_use(app, "/member", 2)


async def test_max_connections_holds_whatever_the_other_limits() -> None:
    seconds = iter(range(1, 100))

    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        # As with a token that says how long it is good for.
        await handle_upgrade(upgrade, Echo, max_connections=3, max_connection_duration=1000 + next(seconds))

    await slots_in_use(upgrade_app(endpoint), "/ws", 3)


async def test_slots_without_an_endpoint_in_the_scope_are_those_of_the_handler_class() -> None:
    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        handler: object = Echo if scope["path"] == "/class" else Echo()
        await handle_socket(WebSocket(scope, receive, send), handler, max_connections=2)

    async with connect(bare, "/class"), connect(bare, "/instance"):
        for path in ("/class", "/instance"):
            assert (await refusal(bare, path)).status == 503
    await slots_in_use(bare, "/class", 2)


async def test_an_endpoint_that_has_gone_takes_its_slots_with_it() -> None:
    def served_once() -> Any:
        async def endpoint(websocket: WebSocket) -> None:
            await handle_socket(websocket, Echo, max_connections=1)

        return endpoint

    endpoint = served_once()
    assert await reply(socket_app(endpoint)) == "x"
    gone = weakref.ref(endpoint)
    del endpoint
    gc.collect()
    assert gone() is None


async def test_endpoints_of_every_kind_have_slots() -> None:
    class Endpoint(WebSocketEndpoint):
        async def dispatch(self) -> None:
            await handle_socket(WebSocket(self.scope, self.receive, self.send), Echo, max_connections=1)

    class Methods:
        async def endpoint(self, websocket: WebSocket) -> None:
            await handle_socket(websocket, Echo, max_connections=1)

    fastapi = FastAPI()

    @fastapi.websocket("/fastapi/{room}")
    async def endpoint(websocket: WebSocket, room: str) -> None:
        await handle_socket(websocket, Echo, max_connections=1)

    fastapi.router.routes += [WebSocketRoute("/class", Endpoint), WebSocketRoute("/method", Methods().endpoint)]
    for path in ("/fastapi/blue", "/class", "/method"):
        await slots_in_use(fastapi, path, 1)


# WebSockets that the endpoint has accepted by itself.


def accepting(reasons: list[DisconnectReason], **limits: Any) -> Starlette:
    class Handler:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send("Welcome!")

        async def on_message(self, text: str) -> str:
            return text

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            reasons.append(reason)

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="chat")
        await handle_socket(websocket, Handler, **limits)

    return socket_app(endpoint)


async def test_an_accepted_websocket_is_served() -> None:
    reasons: list[DisconnectReason] = []
    async with connect(accepting(reasons), "/ws", subprotocols=["chat"]) as client:
        assert client.subprotocol == "chat"
        await client.expect("Welcome!")
        await client.send("x")
        await client.expect("x")
        await client.close(4001, "bye")
    assert reasons == [Close(4001, "bye", by="client")]


async def test_an_accepted_websocket_over_the_limit_is_closed_with_1013() -> None:
    reasons: list[DisconnectReason] = []
    app = accepting(reasons, max_connections=1)
    async with connect(app, "/ws"):
        async with connect(app, "/ws") as second:
            await second.expect_close(1013, "service unavailable")
            await second.wait_done()
        assert reasons == []
    assert len(reasons) == 1
    async with connect(app, "/ws") as client:
        await client.expect("Welcome!")


async def test_an_accepted_websocket_with_a_bad_origin_is_closed_with_1008(caplog: pytest.LogCaptureFixture) -> None:
    reasons: list[DisconnectReason] = []
    async with connect(accepting(reasons), "/ws", headers={"Origin": "https://evil.example"}) as client:
        await client.expect_close(1008, "forbidden")
        await client.wait_done()
    assert reasons == []
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert record.getMessage() == (
        "127.0.0.1:50000 refused: origin https://evil.example is not that of ws://testserver; if its pages may "
        "connect, set allowed_origins=[...]; behind a proxy let it pass on the Host header of the browser (nginx: "
        "proxy_set_header Host $http_host), and where it ends TLS let the server trust its "
        "X-Forwarded-Proto"
    )


async def test_an_accepted_websocket_with_an_allowed_origin_is_served() -> None:
    reasons: list[DisconnectReason] = []
    limits = {"allowed_origins": ["https://example.com"]}
    async with connect(accepting(reasons, **limits), "/ws", headers={"Origin": "https://example.com"}) as client:
        await client.expect("Welcome!")


# Refusals before the upgrade.


def upgrading(**limits: Any) -> App:
    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Echo, **limits)

    return upgrade_app(endpoint)


async def test_a_bad_origin_is_refused_with_403() -> None:
    routed = Starlette(routes=[websocket_route("/ws", Echo)])
    for app in (upgrading(), routed):
        refused = await refusal(app, Origin="https://evil.example")
        assert (refused.status, refused.body) == (403, b"Forbidden")


async def test_a_host_that_is_missing_is_the_origin_of_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def without_host(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
        await routed({**scope, "headers": headers}, receive, send)

    routed = Starlette(routes=[websocket_route("/ws", Echo)])
    assert (await refusal(without_host, Origin="https://evil.example")).status == 403
    assert "is not that of ws://;" in caplog.records[-1].getMessage()


async def run_by_hand(app: ASGIApp, incoming: list[Message], **scope: Any) -> list[Message]:
    """Run an app on these events; return what it sends. A `send` after `websocket.disconnect` fails."""
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        if not incoming:
            raise OSError("gone")
        sent.append(message)

    await app({"type": "websocket", "path": "/ws", "scheme": "ws", "headers": [], "state": {}, **scope}, receive, send)
    return sent


async def test_a_client_that_leaves_before_it_is_turned_away() -> None:
    headers = [(b"origin", b"https://evil.example")]
    for app in (upgrading(), Starlette(routes=[websocket_route("/ws", Echo)])):
        assert await run_by_hand(app, [{"type": "websocket.disconnect"}], headers=headers) == []


async def test_a_client_that_leaves_while_it_is_turned_away() -> None:
    headers = [(b"origin", b"https://evil.example")]
    for app in (upgrading(), Starlette(routes=[websocket_route("/ws", Echo)])):
        assert await run_by_hand(app, [{"type": "websocket.connect"}], headers=headers) == []


async def test_a_client_that_leaves_before_it_is_served() -> None:
    for app in (upgrading(), Starlette(routes=[websocket_route("/ws", Echo)])):
        assert await run_by_hand(app, [{"type": "websocket.disconnect"}]) == []


# Routes.


async def test_a_route_of_a_class() -> None:
    app = Starlette(routes=[Mount("/live", routes=[websocket_route("/rooms/{room:int}", Room)])])
    assert await reply(app, "/live/rooms/5") == "int 5 testserver"


@pytest.mark.parametrize("factory", [make_echo, Factory(), Factory, Factory().create])
async def test_a_route_of_a_factory(factory: Any) -> None:
    app = FastAPI(routes=[websocket_route("/ws", factory)])
    assert await reply(app) == "x"


async def test_a_handler_class_may_have_a_method_called_create() -> None:
    class Rooms:
        def create(self, name: str) -> str:
            return f"created {name}"

        async def on_message(self, text: str) -> str:
            return self.create(text)

    assert await reply(Starlette(routes=[websocket_route("/ws", Rooms)])) == "created x"


async def test_an_instance_with_hooks_and_create_is_a_factory() -> None:
    class Both(Echo):
        def create(self, headers: Headers) -> "Both":
            return Both()

    assert await reply(Starlette(routes=[websocket_route("/ws", Both())])) == "x"


def test_a_route_of_one_instance_for_all_is_refused() -> None:
    wrong: Any = Echo()
    with pytest.raises(HandlerError) as caught:
        websocket_route("/ws", wrong)
    assert str(caught.value) == "one instance of Echo cannot serve every connection of '/ws': pass the class Echo"


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (5, "factory of type int cannot be called: pass a callable of the headers, or what has `create(headers)`"),
        (lambda: None, "cannot be called with the headers alone: give it one parameter, `headers`"),
        (object, "it has no hook: write at least one of "),
        (Faulty, "is not async: write `async def on_message(self, text)`"),
        (Room, "Room(room: object, headers: starlette.datastructures.Headers) needs `room`, which nothing supplies"),
    ],
)
def test_a_route_of_what_is_no_handler(handler: Any, message: str) -> None:
    with pytest.raises(HandlerError) as caught:
        websocket_route("/ws", handler)
    assert message in str(caught.value)


def test_a_route_with_a_bad_path() -> None:
    with pytest.raises(RouteError, match="path 'ws' must begin with a slash: write '/ws'"):
        websocket_route("ws", Echo)
    swapped: Any = (Echo, "/ws")
    with pytest.raises(RouteError, match=r"the path comes first and is a str, not <class .*Echo'>: write '/ws'"):
        websocket_route(*swapped)


class Outer:
    class Inner(Echo): ...


def test_the_name_of_a_route() -> None:
    async def page(request: Request) -> None: ...

    routes = [websocket_route("/class", Echo), websocket_route("/inner", Outer.Inner)]
    routes += [websocket_route("/factory", Factory()), websocket_route("/function", make_echo)]
    assert [route.name for route in routes] == ["Echo", "Inner", "Factory", "make_echo"]
    app = Starlette(routes=[Route("/", page), *routes])
    assert app.url_path_for("Inner") == "/inner"


async def test_the_endpoint_of_a_route_shows_its_limits_and_slots() -> None:
    route = websocket_route("/ws", Echo, max_connections=2)
    endpoint = route.endpoint
    assert isinstance(endpoint, HandlerEndpoint)
    assert endpoint.config == ConnectionConfig(max_connections=2)
    assert (endpoint.admission.slots.limit, endpoint.admission.slots.taken) == (2, 0)
    async with connect(Starlette(routes=[route]), "/ws"):
        assert endpoint.admission.slots.taken == 1
    assert endpoint.admission.slots.taken == 0
