"""Endpoints of `@ws.route`: what they are given, what they may answer, and which functions are refused."""

import asyncio
import functools
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import pytest
from fastapi import Depends
from httpx import ASGITransport, AsyncClient
from starlette.convertors import CONVERTOR_TYPES
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from tests.support.stacks import SANSIO
from wsdeco import App, HandlerError, RouteError, WebSocketUpgrade, handle_upgrade
from wsdeco.testing import HandshakeRefused, connect

if TYPE_CHECKING:
    from decimal import Decimal

HERE: Final = str(Path(__file__))


class Echo:
    async def on_message(self, text: str) -> str:
        return text


async def get(app: ASGIApp, url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    transport = ASGITransport(app)
    async with AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
        response = await client.request(method, url)
        return response.status_code, response.text


async def echoes(app: ASGIApp, path: str) -> bool:
    async with connect(app, path) as client:
        await client.send("x")
        return await client.receive() == "x"


async def refusal(app: ASGIApp, path: str, *, denial: bool = True) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app, path, denial=denial):
            pass
    return caught.value


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def fault(endpoint: Any, path: str = "/page", **options: Any) -> str:
    """Return why an endpoint is refused."""
    app = App()
    with pytest.raises(HandlerError) as caught:
        app.route(path, **options)(endpoint)
    assert app.route_infos == []
    return str(caught.value)


def faults(endpoint: Any, path: str = "/page") -> list[str]:
    """Return why an endpoint is refused, without its name and place."""
    heading, *lines = fault(endpoint, path).split("\n  - ")
    name = endpoint.__qualname__.rpartition("<locals>.")[2]
    assert heading == f"function {name} cannot answer requests on {path!r}:"
    place = f"[{HERE}:{endpoint.__code__.co_firstlineno}] "
    assert all(line.startswith(f"{name}(") and place in line for line in lines)
    return [line.partition(place)[2] for line in lines]


# What an endpoint is given.


async def test_parameters_are_filled_by_name() -> None:
    app = App()

    @app.route("/rooms/{room}/{seat:int}")
    async def page(room, request, seat, query_params, headers, upgrade):  # type: ignore[no-untyped-def]
        assert isinstance(request, Request)
        assert upgrade is None
        return JSONResponse([room, seat, request.method, query_params["x"], headers["x-name"]])

    status, text = await get(app, "/rooms/blue/7?x=1", **{"X-Name": "Ada"})
    assert (status, text) == (200, '["blue",7,"GET","1","Ada"]')


async def test_parameters_may_be_annotated() -> None:
    app = App()

    @app.route("/{a}/{b:str}/{c:int}/{d:float}/{e:uuid}/{f:path}")
    async def page(
        request: Request,
        headers: Headers,
        query_params: QueryParams,
        a: str,
        b: object,
        c: int,
        d: float,
        e: UUID,
        f: Any,
    ) -> Response:
        return JSONResponse([type(each).__name__ for each in (request, headers, query_params, a, b, c, d, e, f)])

    url = "/x/y/1/2.5/6ba7b810-9dad-11d1-80b4-00c04fd430c8/p/q"
    kinds = '["Request","Headers","QueryParams","str","str","int","float","UUID","str"]'
    assert await get(app, url) == (200, kinds)


async def test_a_float_parameter_takes_an_int() -> None:
    app = App()

    @app.route("/{n:int}")
    async def page(n: float) -> Response:
        return PlainTextResponse(str(n / 2))

    assert await get(app, "/5") == (200, "2.5")


@pytest.mark.parametrize("name", ["request", "req", "r", "connection", "_"])
async def test_the_request_comes_first_under_any_name(name: str) -> None:
    app = App()
    namespace: dict[str, Any] = {"Response": PlainTextResponse}
    exec(f"async def page({name}, n): return Response(f'{{{name}.method}} {{n}}')", namespace)  # noqa: S102
    app.route("/{n:int}")(namespace["page"])
    assert await get(app, "/5") == (200, "GET 5")


async def test_the_request_is_told_by_its_annotation() -> None:
    app = App()

    @app.route("/")
    async def page(incoming: HTTPConnection) -> Response:
        return PlainTextResponse(type(incoming).__name__)

    assert await get(app, "/") == (200, "Request")


async def test_the_upgrade_is_told_by_its_annotation() -> None:
    app = App()

    @app.route("/")
    async def page(socket: WebSocketUpgrade | None) -> Response | None:
        if socket is None:
            return PlainTextResponse("page")
        await handle_upgrade(socket, Echo)
        return None

    assert await get(app, "/") == (200, "page")
    assert await echoes(app, "/")


async def test_annotations_for_type_checkers_only_are_no_fault() -> None:
    app = App()

    @app.route("/{n:int}")
    async def page(n: "Decimal") -> Response:
        return PlainTextResponse(str(n))

    assert await get(app, "/5") == (200, "5")


async def test_defaults_and_catch_alls_are_left_alone() -> None:
    app = App()

    @app.route("/{room}")
    async def page(size: int = 3, *args: object, room: str, **keywords: object) -> Response:
        return JSONResponse([room, size, args, keywords])

    assert await get(app, "/blue") == (200, '["blue",3,[],{}]')


async def test_an_endpoint_without_parameters() -> None:
    app = App()

    @app.route("/")
    async def page() -> Response:
        return PlainTextResponse("page")

    assert await get(app, "/") == (200, "page")


# Which callables do.


async def test_a_plain_function_runs_in_a_thread() -> None:
    app = App()
    threads: list[threading.Thread] = []

    @app.route("/")
    def page(request: Request) -> Response:
        threads.append(threading.current_thread())
        return PlainTextResponse(request.method)

    assert await get(app, "/") == (200, "GET")
    assert threads != [threading.current_thread()]


async def test_a_plain_function_may_hand_on_a_coroutine() -> None:
    app = App()

    @app.route("/")
    def page(upgrade: WebSocketUpgrade) -> Awaitable[None]:
        return handle_upgrade(upgrade, Echo)

    assert await echoes(app, "/")


Endpoint = Callable[..., Any]


def passing_on(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await endpoint(*args, **kwargs)

    return wrapper


def plainly_passing_on(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return endpoint(*args, **kwargs)

    return wrapper


def answering_itself(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    def wrapper(*args: Any, **kwargs: Any) -> Response:
        return PlainTextResponse("not allowed: Ada", 403)

    return wrapper


@pytest.mark.parametrize(
    ("decorator", "expected"),
    [
        (passing_on, (200, "hello Ada")),
        (plainly_passing_on, (200, "hello Ada")),
        (answering_itself, (403, "not allowed: Ada")),
    ],
)
async def test_decorated_endpoints(decorator: Callable[[Endpoint], Endpoint], expected: tuple[int, str]) -> None:
    app = App()

    @app.route("/{name}")
    @decorator
    async def page(name: str) -> Response:
        return PlainTextResponse(f"hello {name}")

    assert await get(app, "/Ada") == expected


class Pages:
    async def page(self, name: str) -> Response:
        return PlainTextResponse(f"hello {name}")

    async def __call__(self, request: Request) -> Response:
        return PlainTextResponse(f"called with {request.method}")


async def test_methods_partials_and_instances() -> None:
    app = App()
    pages = Pages()
    app.route("/method/{name}")(pages.page)
    app.route("/partial")(functools.partial(pages.page, name="Grace"))
    app.route("/instance")(pages)
    assert await get(app, "/method/Ada") == (200, "hello Ada")
    assert await get(app, "/partial") == (200, "hello Grace")
    assert await get(app, "/instance") == (200, "called with GET")
    assert [info.name for info in app.route_infos] == ["page", "partial", "Pages"]


async def test_a_callable_that_does_not_say_what_it_takes() -> None:
    class Opaque:
        @property
        def __signature__(self) -> object:
            raise ValueError("unknown")

        def __call__(self) -> Response:
            return PlainTextResponse("page")

    app = App()
    app.route("/")(Opaque())
    assert await get(app, "/") == (200, "page")


def test_route_returns_the_function() -> None:
    def page() -> None: ...

    assert App().route("/")(page) is page


# What an endpoint answers.


async def stream() -> AsyncGenerator[str]:
    yield "a"
    yield "b"


async def app_response(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("any ASGI app", 202)(scope, receive, send)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: HTMLResponse("<p>"), (200, "<p>")),
        (lambda: Response(status_code=204), (204, "")),
        (lambda: StreamingResponse(stream()), (200, "ab")),
        (lambda: app_response, (202, "any ASGI app")),
    ],
)
async def test_responses_of_every_kind(make: Callable[[], Any], expected: tuple[int, str]) -> None:
    app = App()

    @app.route("/")
    async def page() -> Any:
        return make()

    assert await get(app, "/") == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [("text", "str"), (None, "NoneType"), ({"a": 1}, "dict"), (HTMLResponse, "the class HTMLResponse")],
)
async def test_what_is_no_response_is_an_error(value: object, shown: str) -> None:
    app = App()

    @app.route("/")
    async def page() -> object:
        return value

    with pytest.raises(HandlerError) as caught:
        await get(app, "/")
    assert str(caught.value) == (
        f"page returned {shown} for a plain HTTP request: "
        "return a Starlette response, such as HTMLResponse(...) or JSONResponse(...)"
    )


async def test_an_http_exception_is_a_response() -> None:
    app = App()

    @app.route("/")
    async def page() -> Response:
        raise HTTPException(418, "teapot")

    assert await get(app, "/") == (418, "teapot")


# Methods, names and URLs.


async def test_get_and_head_by_default() -> None:
    app = App()

    @app.route("/")
    async def page(request: Request) -> Response:
        return PlainTextResponse(request.method)

    assert await get(app, "/") == (200, "GET")
    assert (await get(app, "/", "HEAD"))[0] == 200
    assert (await get(app, "/", "POST"))[0] == 405


@pytest.mark.parametrize("methods", [["POST", "put"], ("POST", "PUT"), {"post", "put"}])
async def test_other_methods(methods: Any) -> None:
    app = App()

    @app.route("/", methods=methods)
    async def page(request: Request) -> Response:
        return PlainTextResponse(request.method)

    assert [await get(app, "/", method) for method in ("POST", "PUT")] == [(200, "POST"), (200, "PUT")]
    assert (await get(app, "/"))[0] == 405


async def test_get_and_post_on_one_path() -> None:
    app = App()

    @app.route("/")
    async def page() -> Response:
        return PlainTextResponse("page")

    @app.route("/", methods=["POST"])
    async def form(request: Request) -> Response:
        return PlainTextResponse(f"form of {len(await request.body())} bytes")

    assert await get(app, "/") == (200, "page")
    assert await get(app, "/", "POST") == (200, "form of 0 bytes")


def test_the_same_method_twice_on_one_path() -> None:
    app = App()

    def page() -> None: ...
    def other() -> None: ...

    app.route("/", methods=["GET", "POST"])(page)
    with pytest.raises(RouteError) as caught:
        app.route("/", methods=["POST", "PUT"])(other)
    message = str(caught.value)
    assert message.startswith("path '/' is taken: ")
    assert f"page ({HERE}:{page.__code__.co_firstlineno}) is registered there, so " in message
    assert f"other ({HERE}:{other.__code__.co_firstlineno}) cannot be; give one of them another path" in message


@pytest.mark.parametrize("methods", ["POST", b"POST", [], [1], ["GET POST"], [""], 5])
def test_methods_that_are_no_list_of_methods(methods: Any) -> None:
    def page() -> None: ...

    with pytest.raises(TypeError) as caught:
        App().route("/", methods=methods)(page)
    assert str(caught.value) == f"methods must be a list of HTTP methods such as ['GET', 'POST'], not {methods!r}"


def test_methods_for_an_endpoint_of_upgrades_only() -> None:
    async def socket(upgrade: WebSocketUpgrade) -> None: ...

    assert fault(socket, methods=["GET"]) == (
        "socket takes no plain HTTP requests, so methods=['GET'] means nothing: "
        "leave it out, or write `upgrade: WebSocketUpgrade | None`"
    )


async def test_names_and_url_path_for() -> None:
    app = App()
    app.add("/rooms/{room}", Echo)

    @app.route("/about")
    def about() -> None: ...

    @app.route("/items/{n:int}", name="thing")
    def item(n: int) -> None: ...

    @app.route("/both", name="either")
    def both(upgrade: WebSocketUpgrade | None) -> None: ...

    urls = [
        app.app.url_path_for("Echo", room="blue"),
        app.app.url_path_for("about"),
        app.app.url_path_for("thing", n=5),
        app.app.url_path_for("either"),
    ]
    assert [str(url) for url in urls] == ["/rooms/blue", "/about", "/items/5", "/both"]
    assert [info.name for info in app.route_infos] == ["Echo", "about", "item", "both"]


def test_the_kind_of_an_endpoint() -> None:
    app = App()

    @app.route("/http")
    def http() -> None: ...

    @app.route("/both")
    def both(upgrade: WebSocketUpgrade | None) -> None: ...

    @app.route("/bare")
    def bare(upgrade) -> None: ...  # type: ignore[no-untyped-def]

    @app.route("/anything")
    def anything(upgrade: Any) -> None: ...

    @app.route("/socket")
    def socket(upgrade: WebSocketUpgrade) -> None: ...

    kinds = [(info.path, info.kind, info.config) for info in app.route_infos]
    assert kinds == [
        ("/http", "http", None),
        ("/both", "http+ws", None),
        ("/bare", "http+ws", None),
        ("/anything", "http+ws", None),
        ("/socket", "ws", None),
    ]


async def test_an_endpoint_of_upgrades_only_answers_plain_http_with_426() -> None:
    app = App()

    @app.route("/")
    async def socket(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Echo)

    assert (await get(app, "/"))[0] == 426
    assert await echoes(app, "/")


async def test_an_endpoint_of_plain_http_answers_a_handshake_with_404() -> None:
    app = App()

    @app.route("/")
    async def page() -> None: ...

    assert (await refusal(app, "/")).status == 404


# Handshakes.


async def test_a_response_refuses_the_handshake() -> None:
    app = App()

    @app.route("/")
    async def page(upgrade: WebSocketUpgrade) -> Response:
        return JSONResponse({"error": "token"}, 401, {"WWW-Authenticate": "Bearer"})

    refused = await refusal(app, "/")
    assert (refused.status, refused.body) == (401, b'{"error":"token"}')
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (await refusal(app, "/", denial=False)).status == 403


@pytest.mark.parametrize(
    ("detail", "body", "kind"),
    [
        ("no token", b"no token", "text/plain; charset=utf-8"),
        ({"error": "token"}, b'{"error": "token"}', "application/json"),
    ],
)
async def test_an_http_exception_refuses_the_handshake(detail: Any, body: bytes, kind: str) -> None:
    async def for_pages(request: Request, exc: Exception) -> Response:
        return PlainTextResponse(request.method)

    app = App(exception_handlers={HTTPException: for_pages})

    @app.route("/")
    async def page(upgrade: WebSocketUpgrade) -> Response:
        raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})

    refused = await refusal(app, "/")
    assert (refused.status, refused.body, refused.headers["www-authenticate"]) == (401, body, "Bearer")
    assert refused.headers["content-type"] == kind
    assert (await refusal(app, "/", denial=False)).status == 403


@pytest.mark.parametrize(("reason", "body"), [("no token", b"no token"), (None, b"Forbidden")])
async def test_a_websocket_exception_refuses_the_handshake(reason: str | None, body: bytes) -> None:
    app = App()

    @app.route("/")
    async def page(upgrade: WebSocketUpgrade) -> Response:
        raise WebSocketException(1008, reason)

    refused = await refusal(app, "/")
    assert (refused.status, refused.body) == (403, body)
    assert (await refusal(app, "/", denial=False)).status == 403


@pytest.mark.parametrize("exception", [HTTPException(418, "too late"), WebSocketException(1008, "too late")])
async def test_an_exception_after_the_connection_comes_too_late(exception: Exception) -> None:
    app = App()

    @app.route("/")
    async def page(upgrade: WebSocketUpgrade) -> Response:
        await handle_upgrade(upgrade, Echo)
        raise exception

    with pytest.raises(RuntimeError) as caught:
        async with connect(app, "/") as client:
            await client.close()
    assert str(caught.value) == (
        f"page raised {type(exception).__name__} after the connection: "
        "raise it before handle_upgrade(), or in on_connect of the handler"
    )
    assert caught.value.__cause__ is exception


@pytest.mark.parametrize("value", [None, "text", HTMLResponse])
@pytest.mark.parametrize("denial", [True, False])
async def test_a_handshake_left_unanswered_is_a_500(
    value: object, denial: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @app.route("/")
    async def forgetful(upgrade: WebSocketUpgrade | None) -> object:
        return value

    refused = await refusal(app, "/", denial=denial)
    expected = (500, b"Internal Server Error") if denial else (403, b"")
    assert (refused.status, refused.body) == expected
    (error,) = errors_of(caplog)
    assert error.startswith(
        "forgetful left a WebSocket handshake unanswered: call `await handle_upgrade(upgrade, ...)`"
    )
    assert error.endswith(", or return a response that refuses it")


async def test_what_is_returned_after_the_connection_does_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    app = App()

    @app.route("/")
    async def page(upgrade: WebSocketUpgrade | None) -> Response:
        if upgrade is not None:
            await handle_upgrade(upgrade, Echo)
        return PlainTextResponse("page")

    assert await echoes(app, "/")
    assert await get(app, "/") == (200, "page")
    assert errors_of(caplog) == []


async def test_a_client_that_leaves_before_it_is_refused() -> None:
    app = App()

    @app.route("/")
    async def page(upgrade: WebSocketUpgrade) -> Response:
        return PlainTextResponse("no", 401)

    sent: list[object] = []

    async def receive() -> Any:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: object) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/", "headers": [], "extensions": {}}, receive, send)
    assert sent == []


async def test_the_upgrade_says_what_the_client_asks_for() -> None:
    app = App()
    seen: list[object] = []

    @app.route("/rooms/{room}")
    async def page(request: HTTPConnection, upgrade: WebSocketUpgrade | None, room: str) -> Response:
        assert upgrade is not None
        assert request is upgrade
        seen.extend([room, upgrade.path_params, upgrade.query_params["x"], upgrade.cookies, str(upgrade.url)])
        seen.append(upgrade.handled)
        return PlainTextResponse("no", 401)

    with pytest.raises(HandshakeRefused):
        async with connect(app, "/rooms/blue?x=1", headers={"Cookie": "a=b"}):
            pass
    assert seen == ["blue", {"room": "blue"}, "1", {"a": "b"}, "ws://testserver/rooms/blue?x=1", False]


async def test_both_on_a_real_server() -> None:
    app = App()

    @app.route("/")
    def page(upgrade: WebSocketUpgrade | None) -> Response | Awaitable[None]:
        return PlainTextResponse("page") if upgrade is None else handle_upgrade(upgrade, Echo)

    @app.route("/closed")
    def closed(upgrade: WebSocketUpgrade) -> Response:
        return PlainTextResponse("closed on sundays", 403)

    async with SANSIO.serve(app) as server:
        async with AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert (await client.get("/")).text == "page"
        async with server.connect("/") as peer:
            await peer.send("x")
            assert await peer.receive() == "x"
        with pytest.raises(HandshakeRefused) as caught:
            async with server.connect("/closed"):
                pass
    assert (caught.value.status, caught.value.body) == (403, b"closed on sundays")


async def test_a_page_is_served_while_a_connection_lives() -> None:
    app = App()

    @app.route("/")
    async def page(upgrade: WebSocketUpgrade | None) -> Response | None:
        if upgrade is None:
            return PlainTextResponse("page")
        await handle_upgrade(upgrade, Echo)
        return None

    async with connect(app, "/") as first, connect(app, "/") as second:
        assert list(await asyncio.gather(get(app, "/"), get(app, "/"))) == [(200, "page")] * 2
        for client in (first, second):
            await client.send("x")
            await client.expect("x")


# What is refused at definition.


@pytest.mark.parametrize("endpoint", [5, "page", None, Echo, HTMLResponse, PlainTextResponse("page").body])
def test_what_is_no_function(endpoint: Any) -> None:
    assert fault(endpoint) == (
        f"@ws.route('/page') takes a function of the request, not {endpoint!r}: "
        "a handler class goes to @ws.handler('/page')"
    )


SUPPLIED: Final = "It can be one of `request`, `headers`, `query_params`, `upgrade`"
DEFAULT: Final = "or a parameter of the path; give it a default"


def test_parameters_that_nothing_supplies() -> None:
    def page(request: Request, user: str, *, database: object) -> None: ...

    assert faults(page) == [
        f"needs `user`, which nothing supplies: {SUPPLIED}, {DEFAULT}",
        f"needs `database`, which nothing supplies: {SUPPLIED}, {DEFAULT}",
    ]


def test_a_route_with_depends_of_fastapi() -> None:
    def page(request: Request, db: object = Depends(object), user: Annotated[str, Depends(str)] = "") -> None: ...

    found = faults(page)
    assert [each.partition(":")[0] for each in found] == [
        "has Depends(...) for `db`, which FastAPI fills in its own endpoints only",
        "has Depends(...) for `user`, which FastAPI fills in its own endpoints only",
    ]
    assert "write one that takes `db`" in found[0]


def test_misspelt_parameters_and_what_may_be_meant() -> None:
    def page(rom, header, query_param, upgrad) -> None: ...  # type: ignore[no-untyped-def]

    assert faults(page, "/{room}") == [
        f"needs `{name}`, which nothing supplies: did you mean `{meant}`? {SUPPLIED}, `room`, {DEFAULT}"
        for name, meant in (
            ("rom", "room"),
            ("header", "headers"),
            ("query_param", "query_params"),
            ("upgrad", "upgrade"),
        )
    ]


def test_a_first_parameter_whose_annotation_is_no_request() -> None:
    def page(name: str) -> None: ...

    def socket(websocket: WebSocket) -> None: ...

    assert faults(page) == [f"needs `name`, which nothing supplies: {SUPPLIED}, {DEFAULT}"]
    assert faults(socket) == [f"needs `websocket`, which nothing supplies: {SUPPLIED}, {DEFAULT}"]


PARAMS: Final = "starlette.datastructures.QueryParams"
UPGRADE: Final = "wsdeco.routing.upgrade.WebSocketUpgrade"


def test_annotations_that_contradict_what_arrives() -> None:
    def page(
        request: str, headers: "dict[str, str]", query_params: int, upgrade: bool, n: int, x: bool, y: UUID
    ) -> None: ...

    assert faults(page, "/{n}/{x}/{y}") == [
        "annotates `request: str`, and gets starlette.requests.Request: write `request: Request`",
        "annotates `headers: dict[str, str]`, and gets starlette.datastructures.Headers: write `headers: Headers`",
        f"annotates `query_params: int`, and gets {PARAMS}: write `query_params: QueryParams`",
        f"annotates `upgrade: bool`, and gets {UPGRADE}: write `upgrade: WebSocketUpgrade`",
        "annotates `n: int`, and gets str: write `n: str`, or `{n:int}` in the path",
        "annotates `x: bool`, and gets str: write `x: str`",
        "annotates `y: uuid.UUID`, and gets str: write `y: str`, or `{y:uuid}` in the path",
    ]


async def test_positional_only_parameters() -> None:
    app = App()

    @app.route("/{room}")
    def page(request: Request, limit: int = 9, room: str = "", /) -> Response:
        return PlainTextResponse(f"{request.url.path} {limit} {room}")

    assert await get(app, "/lobby") == (200, "/lobby 9 lobby")


def test_an_asynchronous_generator() -> None:
    async def page() -> AsyncGenerator[str]:
        yield "part"

    assert faults(page) == ["has a `yield`: return a response, such as StreamingResponse(...)"]


@pytest.fixture
def silent_convertor() -> Iterator[None]:
    class Silent(type(CONVERTOR_TYPES["str"])):  # type: ignore[misc]
        def convert(self, value: str) -> Any:
            return [value]

    CONVERTOR_TYPES["silent"] = Silent()
    yield
    del CONVERTOR_TYPES["silent"]


async def test_a_convertor_that_does_not_say_what_it_gives(silent_convertor: None) -> None:
    app = App()

    @app.route("/{parts:silent}")
    async def page(parts: list[str]) -> Response:
        return JSONResponse(parts)

    assert await get(app, "/a") == (200, '["a"]')
