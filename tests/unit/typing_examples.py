"""User code as people write it, which mypy and pyright must pass in their strict modes, and what they must refuse.

pytest does not collect this file; test_typing.py runs what is in it. Each line that a checker must refuse says so in
a comment of both checkers, which report a comment that is not needed.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar, assert_never, assert_type

from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from wsdeco import (
    Address,
    App,
    Close,
    ConnectionClosed,
    ConnectionConfig,
    DisconnectReason,
    Error,
    Room,
    RouteInfo,
    Sink,
    Timeout,
    Unknown,
    WebSocketHandler,
    WebSocketUpgrade,
    handle_socket,
    handle_upgrade,
    websocket_route,
    ws,
)
from wsdeco.testing import Client, ManualClock, connect

app = App()


# A plain class, with and without limits.


@app.handler("/plain")
class Plain:
    def __init__(self) -> None:
        self.count = 0

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.addr = addr
        self.sink = sink
        await sink.send(f"Welcome, {addr.host}:{addr.port}!")

    async def on_message(self, text: str) -> str:
        self.count += 1
        return f"{self.count} {text}"

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        print(f"{self.sink.addr} left: {reason}")  # noqa: T201


@app.handler(
    "/strict", max_connections=2, max_connection_duration=timedelta(minutes=5), idle_timeout=timedelta(minutes=1)
)
@app.handler(
    "/limits/{room}",
    connect_timeout=5,
    refuse_after_upgrade=True,
    first_message_timeout=timedelta(seconds=5),
    message_timeout=30,
    on_message_timeout="continue",
    close_timeout=2.5,
    send_timeout=None,
    disconnect_grace=timedelta(seconds=3),
    max_message_size=4096,
    max_inbox=8192,
    message_rate="20/s",
    burst=5,
    byte_rate="64KiB/s",
    over_rate="drop",
    max_outbox=65536,
    slow_consumer="drop",
    max_rooms=10,
    allowed_origins=["https://example.com"],
    subprotocols=("chat.v2", "chat.v1"),
)
class Stacked:
    """Keeps its type under both decorators."""

    greeting: str = "hello"

    async def on_message(self, data: str | bytes) -> str | bytes | None:
        return data or None


# The decorated class is what it was.

assert_type(Plain().count, int)
assert_type(Stacked.greeting, str)
stacked: type[Stacked] = Stacked
on_message: Callable[[Plain, str], object] = Plain.on_message


class Louder(Plain):
    async def on_message(self, text: str) -> str:
        return (await super().on_message(text)).upper()


# A dataclass, a generic and an abstract base.


@app.handler("/rooms/{room}/{seat:int}")
@dataclass
class Player:
    room: str
    seat: int
    headers: Headers
    query_params: QueryParams
    request: HTTPConnection

    async def on_message(self, text: str) -> AsyncIterator[str]:
        for part in text.split():
            yield f"{self.room}/{self.seat}: {part}"


Item = TypeVar("Item")


class Parsing(Generic[Item]):
    def parse(self, text: str) -> Item:
        raise NotImplementedError

    async def on_message(self, text: str) -> str:
        return repr(self.parse(text))


@app.handler("/numbers")
class Numbers(Parsing[int]):
    def parse(self, text: str) -> int:
        return int(text)


# The explicit base.


@app.handler("/base/text")
class Text(WebSocketHandler):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await super().on_connect(addr, sink)
        await sink.accept(headers={"X-Served-By": "tests"})

    async def on_message(self, text: str) -> str:
        assert_type(self.addr, Address)
        assert_type(self.sink, Sink)
        return f"{self.addr}: {text}"

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        assert_type(reason, Close | Error | Timeout | Unknown)


@app.handler("/base/binary")
class Binary(WebSocketHandler):
    async def on_message(self, data: bytes) -> bytes:
        return data[::-1]


@app.handler("/base/both")
class Both(WebSocketHandler):
    async def on_message(self, data: str | bytes) -> None:
        await self.sink.send(data)


@app.handler("/base/stream")
class Stream(WebSocketHandler):
    async def on_message(self, text: str) -> AsyncIterator[str | bytes]:
        for character in text:
            yield character


# Factories.


def make_plain(headers: Headers) -> Plain:
    if headers.get("authorization") is None:
        raise HTTPException(401)
    return Plain()


class PlainFactory:
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def create(self, headers: Headers) -> Plain:
        return Plain()


app.add("/function", Plain, factory=make_plain)
app.add("/object", Plain, factory=PlainFactory(["Ada"]))
app.add("/lambda", Plain, factory=lambda headers: Plain() if headers["host"] else Louder())
app.add("/config", Plain, config=ConnectionConfig(max_connections=10, allowed_origins="*"), idle_timeout=3600)


# A match that knows every reason.


def explain(reason: DisconnectReason) -> str:
    match reason:
        case Close(code=1000 | 1001, by=by):
            return f"a normal end by the {by}"
        case Close(code, text, by="client"):
            return f"{code} {text}"
        case Close(code=code):
            return f"closed by us: {code}"
        case Timeout(message, limit):
            assert_type(message, str)
            return f"{limit}: {message}"
        case Error(message=message, exception=exception):
            assert_type(exception, BaseException | None)
            return message
        case Unknown():
            return "lost"
        case _:
            assert_never(reason)


def explain_some(reason: DisconnectReason) -> str:
    match reason:
        case Close() | Error():
            return "ended"
        case Timeout():
            return "late"
        case _:
            assert_never(reason)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# The sink, from outside of a hook.


async def tell_everybody(sinks: set[Sink], text: str) -> int:
    for sink in sinks:
        if not sink.closed:
            assert_type(sink.send_nowait(text), bool)
    try:
        for sink in sinks:
            await sink.send_json({"text": text})
            await sink.close(4001, "enough")
    except ConnectionClosed as exc:
        assert_type(exc.reason, DisconnectReason)
    return sum(sink.dropped for sink in sinks)


# Rooms.


async def tell_rooms(sink: Sink, sinks: set[Sink]) -> None:
    room = app.room("lobby")
    assert_type(room, Room)
    room.join(sink)
    assert_type(await room.broadcast("text", exclude=sink), int)
    assert_type(await app.broadcast("/plain", b"bytes", exclude=sinks), int)
    room.broadcast_nowait("text", exclude=(other for other in room if other is not sink))
    app.broadcast_nowait("/plain", "text", exclude=room)
    assert_type([each.addr for each in room], list[Address])
    assert_type(len(room) if sink in room else 0, int)
    room.leave(sink)


# Endpoints of one's own.


@app.route("/page")
async def page_or_socket(upgrade: WebSocketUpgrade | None, request: HTTPConnection) -> Response | None:
    if upgrade is None:
        return HTMLResponse(f"<p>{request.url}</p>")
    await handle_upgrade(upgrade, Plain(), max_connections=100, idle_timeout=60)
    return None


@app.route("/form/{name}", methods=["POST"], name="form")
def form(request: Request, name: str) -> Response:
    return HTMLResponse(f"<p>{request.method} {name}</p>")


page_type: Callable[[WebSocketUpgrade | None, HTTPConnection], object] = page_or_socket


async def endpoint(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol="chat")
    await handle_socket(websocket, Plain, ConnectionConfig(max_connection_duration=300), max_connections=5)


routes = [
    websocket_route("/class", Plain, ConnectionConfig(max_connections=1)),
    websocket_route("/factory", make_plain, idle_timeout=timedelta(hours=1)),
    websocket_route("/object", PlainFactory([])),
    websocket_route("/lambda", lambda headers: Plain()),
    WebSocketRoute("/endpoint", endpoint),
]
assert_type(routes, list[WebSocketRoute])
starlette = Starlette(routes=routes)
starlette.mount("/live", app)
asgi: ASGIApp = app


# Start-up and shutdown.


@app.lifespan
async def start_and_stop(starlette: Starlette) -> AsyncIterator[dict[str, int]]:
    yield {"answer": 42}


@asynccontextmanager
async def managed(starlette: Starlette) -> AsyncGenerator[None]:
    yield


opens: Callable[[Starlette], AsyncIterator[dict[str, int]]] = start_and_stop
also_opens: Callable[[Starlette], AbstractAsyncContextManager[None]] = App().lifespan(managed)
with_lifespan = [App(lifespan=managed), App(lifespan=start_and_stop)]


# Registering without decorators, and looking at it.


def register(target: App = ws) -> list[RouteInfo]:
    target.add("/plain", Plain, max_connections=1)
    return target.route_infos


# Tests of one's own.


async def test_user_code(client: Client) -> str | bytes:
    async with connect(App(clock=ManualClock()), "/ws", headers={"Origin": "http://testserver"}) as connected:
        await connected.send("x")
        await connected.expect(b"x")
        await connected.expect_close(1001)
    return await client.receive()


# What the checkers must refuse. Each function is called by test_typing.py, and must raise at runtime as well.


def a_hook_of_the_wrong_signature() -> None:
    class Wrong(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
        async def on_connect(self, addr: Address) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            pass


def a_hook_that_is_not_async() -> None:
    class Wrong(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
        def on_disconnect(self, reason: DisconnectReason) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            pass


def a_hook_with_too_narrow_a_reason() -> None:
    class Wrong(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
        async def on_disconnect(self, reason: Close) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            pass


def a_hook_with_swapped_parameters() -> None:
    class Wrong(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
        async def on_connect(self, sink: Sink, addr: Address) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            pass


def a_reply_that_cannot_be_sent() -> None:
    class Wrong(WebSocketHandler):  # pyright: ignore[reportUnusedClass]
        async def on_message(self, text: str) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            return 1


def an_unknown_limit() -> None:
    app.handler("/wrong", max_conections=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def an_unknown_limit_of_add() -> None:
    app.add("/wrong", Plain, idle_time=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_limit_of_the_wrong_type() -> None:
    app.handler("/wrong", idle_timeout="5 minutes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_limit_that_is_no_choice() -> None:
    app.handler("/wrong", slow_consumer="wait")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_config_of_the_wrong_type() -> None:
    app.handler("/wrong", config={"max_connections": 5})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_decorator_without_parentheses() -> None:
    @app.handler  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    class Wrong:
        async def on_message(self, text: str) -> None: ...


def a_function_instead_of_a_class() -> None:
    @app.handler("/wrong")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
    async def wrong(text: str) -> None: ...


def an_instance_instead_of_a_class() -> None:
    app.add("/wrong", Plain())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_factory_of_the_wrong_signature() -> None:
    app.add("/wrong", Plain, factory=lambda: None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_factory_that_is_an_instance() -> None:
    websocket_route("/wrong", Plain())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_room_without_a_name() -> None:
    app.room(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_member_that_is_no_sink() -> None:
    app.room("lobby").join(Plain())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_broadcast_of_an_object() -> None:
    App().room("lobby").broadcast_nowait(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_lifespan_that_is_no_generator() -> None:
    @app.lifespan  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
    async def wrong(starlette: Starlette) -> None: ...


async def an_upgrade_that_may_be_none(upgrade: WebSocketUpgrade | None) -> None:
    await handle_upgrade(upgrade, Plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_message_that_cannot_be_sent(sink: Sink) -> None:
    await sink.send(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Messages with types.


@dataclass
class Say:
    text: str


@dataclass
class Said:
    name: str
    text: str


@app.handler("/typed")
class Typed(WebSocketHandler):
    async def on_message(self, message: Say | list[int]) -> Said | None:
        await self.sink.send(Said("me", "x"))
        await app.room("lobby").broadcast(Said("me", "x"))
        answer = await self.sink.ask(Say("sure?"), Said, timeout=5)
        return Said(answer.name, answer.text)


class a_reply_of_the_wrong_type(WebSocketHandler):  # noqa: N801
    async def on_message(self, message: Say) -> Said:
        return message  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


async def an_answer_of_another_type(sink: Sink) -> None:
    said: Say = await sink.ask(Say("sure?"), Said)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    await sink.send(said)


async def work_of_a_connection(sink: Sink) -> str:
    async def work() -> str:
        return "done"

    return await sink.create_task(work())
