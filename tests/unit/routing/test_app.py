"""`App`: what the decorators register, what they refuse, and the ASGI app they make."""

import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

import wsdeco
from tests.support.stacks import MEMORY, SANSIO, Stack, soon
from wsdeco import (
    App,
    ConnectionConfig,
    DisconnectReason,
    HandlerError,
    RouteError,
    RouteInfo,
    ServerError,
    WebSocketUpgrade,
    handle_upgrade,
)
from wsdeco.routing.application import registry_of
from wsdeco.testing import HandshakeRefused, connect

HERE: Final = str(Path(__file__))


class Echo:
    async def on_message(self, text: str) -> str:
        return text


class Upper:
    async def on_message(self, text: str) -> str:
        return text.upper()


class Room:
    def __init__(self, room: object) -> None:
        self.room = room

    async def on_message(self, text: str) -> str:
        return f"{type(self.room).__name__} {self.room}"


def line_of(text: str) -> int:
    """Return the line of this file that holds `text` first."""
    lines = Path(__file__).read_text("utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def http(app: ASGIApp) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(app), base_url="http://testserver")


async def reply(app: ASGIApp, path: str, text: str = "x") -> str | bytes:
    async with connect(app, path) as client:
        await client.send(text)
        return await client.receive()


async def refusal(app: ASGIApp, path: str, *, denial: bool = True) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app, path, denial=denial):
            pass
    return caught.value


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Registering handlers.


async def test_handler_returns_the_class_unchanged() -> None:
    app = App()
    before = dict(vars(Echo))
    assert app.handler("/ws")(Echo) is Echo
    assert dict(vars(Echo)) == before
    assert await reply(app, "/ws") == "x"


async def test_handlers_can_be_stacked_for_several_paths() -> None:
    app = App()

    @app.handler("/strict", max_connections=1)
    @app.handler("/ws")
    @app.handler("/rooms/{room}")
    class Stacked(Echo): ...

    for path in ("/strict", "/ws", "/rooms/blue"):
        assert await reply(app, path) == "x"
    assert [(info.path, info.name) for info in app.route_infos] == [
        ("/rooms/{room}", "Stacked"),
        ("/ws", "Stacked"),
        ("/strict", "Stacked"),
    ]
    limits = [info.config.max_connections for info in app.route_infos if info.config is not None]
    assert limits == [None, None, 1]


async def test_add_does_what_handler_does() -> None:
    decorated, added = App(), App()
    decorated.handler("/ws", max_connections=3, config=ConnectionConfig(idle_timeout=5))(Echo)
    added.add("/ws", Echo, max_connections=3, config=ConnectionConfig(idle_timeout=5))
    assert decorated.route_infos == added.route_infos
    assert added.route_infos == [RouteInfo("/ws", "ws", "Echo", ConnectionConfig(max_connections=3, idle_timeout=5))]
    assert await reply(added, "/ws") == "x"


def test_keywords_go_on_top_of_config() -> None:
    app = App()
    app.add("/ws", Echo, config=ConnectionConfig(max_connections=1, idle_timeout=5), max_connections=2)
    assert app.route_infos[0].config == ConnectionConfig(max_connections=2, idle_timeout=5)


async def test_a_factory_makes_the_instances() -> None:
    app = App()
    seen: list[str] = []

    def make(headers: Headers) -> Echo:
        seen.append(headers["x-name"])
        return Echo()

    app.add("/ws", Echo, factory=make)
    async with connect(app, "/ws", headers={"X-Name": "Ada"}) as client:
        await client.send("x")
        await client.expect("x")
    assert seen == ["Ada"]


@pytest.mark.parametrize(
    ("path", "url", "shown"),
    [
        ("/{room}", "/blue", "str blue"),
        ("/{room:str}", "/caf%C3%A9", "str caf\u00e9"),
        ("/{room:path}", "/a/b/c", "str a/b/c"),
        ("/{room:int}", "/42", "int 42"),
        ("/{room:float}", "/4.5", "float 4.5"),
        ("/{room:uuid}", "/6ba7b810-9dad-11d1-80b4-00c04fd430c8", "UUID 6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    ],
)
async def test_path_parameters_of_every_convertor(path: str, url: str, shown: str) -> None:
    app = App()
    app.add(path, Room)
    assert await reply(app, url) == shown


async def test_routes_are_matched_in_the_order_of_their_registration() -> None:
    app = App()
    app.add("/rooms/lobby", Echo)
    app.add("/rooms/{room}", Room)
    assert await reply(app, "/rooms/lobby") == "x"
    assert await reply(app, "/rooms/blue") == "str blue"


# Registering again.


def redefined(text: str) -> type:
    """Return a class as a notebook cell makes it anew each time it runs."""

    class Cell:
        async def on_message(self, message: str) -> str:
            return text

    return Cell


async def test_a_class_of_the_same_name_takes_the_place_of_the_one_before() -> None:
    app = App()
    app.add("/ws", redefined("first"), max_connections=1)
    app.add("/ws", redefined("second"), max_connections=2)
    assert await reply(app, "/ws") == "second"
    assert app.route_infos == [RouteInfo("/ws", "ws", "Cell", ConnectionConfig(max_connections=2))]


async def test_the_new_class_is_matched_where_the_old_one_was() -> None:
    app = App()
    app.add("/rooms/{room}", redefined("first"))
    app.add("/rooms/{room:path}", Room)
    app.add("/rooms/{room}", redefined("second"))
    assert await reply(app, "/rooms/blue") == "second"
    assert [info.path for info in app.route_infos] == ["/rooms/{room}", "/rooms/{room:path}"]


async def test_a_renamed_path_parameter_takes_the_place_too() -> None:
    app = App()
    app.add("/{room}", redefined("first"))
    app.add("/{name}", redefined("second"))
    assert await reply(app, "/blue") == "second"
    assert [info.path for info in app.route_infos] == ["/{name}"]


async def test_a_function_of_the_same_name_takes_the_place_with_all_its_methods() -> None:
    app = App()

    def cell(text: str) -> Callable[..., Any]:
        async def page(upgrade: WebSocketUpgrade | None) -> Response | None:
            if upgrade is None:
                return PlainTextResponse(text)
            await handle_upgrade(upgrade, redefined(text))
            return None

        return page

    app.add("/other", Echo)
    app.route("/", methods=["GET", "POST"])(cell("first"))
    app.route("/about")(cell("about"))
    app.route("/", methods=["POST"])(cell("second"))
    async with http(app) as client:
        assert (await client.get("/")).status_code == 405
        assert (await client.post("/")).text == "second"
    assert await reply(app, "/") == "second"
    assert [info.path for info in app.route_infos] == ["/other", "/", "/about"]


def test_another_class_on_the_same_path_is_refused_and_both_places_are_named() -> None:
    app = App()
    app.add("/ws", Echo)
    with pytest.raises(RouteError) as caught:
        app.add("/ws", Upper)
    assert str(caught.value) == (
        f"path '/ws' is taken: {__name__}.Echo ({HERE}:{line_of('class Echo')}) is registered there, so "
        f"{__name__}.Upper ({HERE}:{line_of('class Upper')}) cannot be; give one of them another path"
    )
    assert [info.name for info in app.route_infos] == ["Echo"]


def test_another_name_for_the_parameter_makes_no_other_path() -> None:
    app = App()
    app.add("/{room}", Echo)
    with pytest.raises(RouteError, match=r"path '/\{name:str\}' is taken: .*Echo"):
        app.add("/{name:str}", Upper)


def test_an_upgrade_on_the_path_of_a_handler_is_refused() -> None:
    app = App()
    app.add("/ws", Echo)

    def endpoint(upgrade: object) -> None: ...

    with pytest.raises(RouteError) as caught:
        app.route("/ws")(endpoint)
    assert f"tests.unit.routing.test_app.Echo ({HERE}:{line_of('class Echo')})" in str(caught.value)
    assert f"endpoint ({HERE}:{endpoint.__code__.co_firstlineno})" in str(caught.value)
    assert [info.kind for info in app.route_infos] == ["ws"]


def test_places_without_source_are_said_to_be_unknown() -> None:
    app = App()
    namespace: dict[str, Any] = {"__name__": "typed_at_a_prompt"}
    source = "class Prompt:\n    async def on_message(self, text): ..."
    exec(source, namespace)  # noqa: S102 - as an interactive prompt does
    app.add("/ws", namespace["Prompt"])
    with pytest.raises(RouteError, match=r"typed_at_a_prompt\.Prompt \(source unknown\) is registered there"):
        app.add("/ws", Echo)
    app.route("/", methods=["GET"])(partial(str, "x"))
    with pytest.raises(RouteError, match=r"functools\.partial\(.* \(source unknown\) is registered there"):
        app.route("/", methods=["GET"])(partial(str, "y"))


async def test_a_handler_and_a_page_share_a_path() -> None:
    app = App()
    app.add("/", Echo)

    @app.route("/")
    def page() -> Response:
        return PlainTextResponse("page")

    @app.route("/", methods=["POST"])
    def form() -> Response:
        return PlainTextResponse("form")

    async with http(app) as client:
        assert (await client.get("/")).text == "page"
        assert (await client.post("/")).text == "form"
    assert await reply(app, "/") == "x"
    assert [(info.kind, info.name) for info in app.route_infos] == [("ws", "Echo"), ("http", "page"), ("http", "form")]


def test_routes_made_by_starlette_are_not_listed() -> None:
    app = App()
    app.add("/ws", Echo)
    app.app.mount("/static", Starlette())
    assert [info.path for info in app.route_infos] == ["/ws"]


# Wrong use.


@pytest.mark.parametrize("decorator", ["handler", "route"])
@pytest.mark.parametrize("target", [Echo, line_of], ids=["class", "function"])
def test_a_decorator_without_parentheses(decorator: str, target: object) -> None:
    with pytest.raises(RouteError) as caught:
        getattr(App(), decorator)(target)
    assert str(caught.value) == (f"the path comes first and is a str, not {target!r}: write @ws.{decorator}('/ws')")


@pytest.mark.parametrize("decorator", ["handler", "route"])
def test_a_bad_path_is_found_before_the_class(decorator: str) -> None:
    with pytest.raises(RouteError, match="path 'ws' must begin with a slash: write '/ws'"):
        getattr(App(), decorator)("ws")


def test_add_with_its_arguments_swapped() -> None:
    wrong: Any = (Echo, "/ws")
    with pytest.raises(RouteError, match=r"the path comes first and is a str, not <class .*Echo'>: write '/ws'"):
        App().add(*wrong)


def test_a_function_instead_of_a_class() -> None:
    async def on_message(text: str) -> None: ...

    wrong = cast(type, on_message)
    with pytest.raises(HandlerError) as caught:
        App().handler("/ws")(wrong)
    message = str(caught.value)
    assert f"on_message(text: str) -> None [{HERE}:{on_message.__code__.co_firstlineno}] is a function" in message
    assert "a handler is a class: write `class Handler:` with `async def on_message(self, text)` in it" in message
    assert "`@ws.route(path)`" in message


def test_an_instance_instead_of_a_class() -> None:
    with pytest.raises(HandlerError) as caught:
        App().add("/ws", cast(type, Echo()))
    assert str(caught.value) == "a handler is a class, and this is an instance of Echo: write a class in its place"


def test_a_class_instead_of_a_function() -> None:
    with pytest.raises(HandlerError) as caught:
        App().route("/ws")(Echo)
    assert str(caught.value) == (
        f"@ws.route('/ws') takes a function of the request, not {Echo!r}: a handler class goes to @ws.handler('/ws')"
    )


@pytest.mark.parametrize(
    ("keyword", "advice"),
    [
        ("max_conections", "did you mean 'max_connections'?"),
        ("idle_time", "did you mean 'idle_timeout'?"),
        ("colour", "the limits are max_connections, max_connections_total, max_connections_per_client, "),
    ],
)
def test_an_unknown_keyword_and_the_one_that_may_be_meant(keyword: str, advice: str) -> None:
    wrong: dict[str, Any] = {keyword: 1}
    for register in (App().handler, partial(App().add, cls=Echo)):
        with pytest.raises(TypeError) as caught:
            register("/ws", **wrong)
        assert str(caught.value).startswith(f"unknown limit {keyword!r}: {advice}")


@pytest.mark.parametrize("config", [{"max_connections": 1}, 5, "strict", ConnectionConfig])
def test_a_config_of_the_wrong_type(config: Any) -> None:
    with pytest.raises(TypeError) as caught:
        App().handler("/ws", config=config)
    assert str(caught.value) == (
        f"config must be a ConnectionConfig, not {type(config).__name__}: write ConnectionConfig(...)"
    )


def test_a_limit_out_of_range_is_found_before_the_class() -> None:
    with pytest.raises(ValueError, match="max_connections must be 1 or more, not 0"):
        App().handler("/ws", max_connections=0)


def test_nothing_is_registered_by_a_call_that_fails() -> None:
    app = App()

    class Faulty:
        def on_message(self, text: str) -> None: ...

    with pytest.raises(HandlerError, match=r"on_message.* is not async"):
        app.add("/ws", Faulty)
    assert app.route_infos == []
    assert app.app.routes == []


# While a server runs.


def test_a_handler_of_larger_messages_than_the_running_server_takes_is_refused() -> None:
    app = App()
    registry_of(app).message_size_cap = 1000
    app.add("/ws", Echo, max_message_size=1000)
    with pytest.raises(ServerError) as caught:
        app.add("/large", Echo, max_message_size=1001)
    assert str(caught.value) == (
        "max_message_size=1001 on '/large' cannot take effect: the server that runs was started for messages of up to "
        "1000 bytes; stop it, register the handler, then call run()"
    )
    registry_of(app).message_size_cap = None
    app.add("/large", Echo, max_message_size=1001)
    assert [info.path for info in app.route_infos] == ["/ws", "/large"]


async def test_a_handler_added_while_the_server_runs_takes_effect() -> None:
    app = App()
    async with SANSIO.serve(app) as server:
        app.add("/ws", Echo)
        async with server.connect("/ws") as peer:
            await peer.send("x")
            assert await peer.receive() == "x"


@pytest.mark.parametrize("name", ["module_of_a_server", None])
def test_run_does_nothing_while_its_module_is_imported(name: str | None) -> None:
    app = App()
    module: dict[str, Any] = {"app": app} if name is None else {"app": app, "__name__": name}
    line = compile("ended = app.run(port='nonsense')", "module.py", "exec")
    if name is None:
        with pytest.raises(TypeError, match=r"^port must be an int"):
            exec(line, module | {"__name__": "__main__"})  # noqa: S102 - the module is one line of this test
    else:
        exec(line, module)  # noqa: S102 - the module is one line of this test
        assert module["ended"] is None


# What a server cannot honour is said once.


async def test_idle_timeout_is_announced_at_the_first_connection_where_startup_cannot_tell(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wsdeco.protocol", sys)
    app = App()
    app.add("/a", Echo, idle_timeout=60)
    async with MEMORY.serve(app) as server:
        assert warnings_of(caplog) == []
        async with server.connect("/a"):
            assert len(warnings_of(caplog)) == 1


async def test_idle_timeout_is_announced_to_count_messages_only(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    app.add("/a", Echo, idle_timeout=60)
    app.add("/b", Echo)
    app.add("/c", Echo, idle_timeout=1)
    app.route("/")(page_of(PlainTextResponse("page")))
    for _ in range(2):
        assert await reply(app, "/a") == "x"
    announced = (
        "idle_timeout on /a, /c counts messages only: this server does not show pings to the app "
        "(uvicorn does with --ws wsdeco.protocol:WebSocketProtocol)"
    )
    assert warnings_of(caplog) == [announced]


async def test_an_app_without_a_handler_says_so_when_another_server_starts_it(caplog: pytest.LogCaptureFixture) -> None:
    async with MEMORY.serve(App()):
        assert [each.partition(":")[0] for each in warnings_of(caplog)] == [
            "no handler is registered in the app that is served here"
        ]
    caplog.clear()
    # Who registers at start-up is in time.
    app = App(lifespan=lambda inside: registering(app))
    async with MEMORY.serve(app):
        assert warnings_of(caplog) == []


@asynccontextmanager
async def registering(app: App) -> AsyncGenerator[None]:
    app.add("/ws", Echo)
    yield


def page_of(response: Response) -> Callable[[], Response]:
    def page() -> Response:
        return response

    return page


async def test_a_large_max_message_size_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    app.add("/a", Echo, max_message_size=16 * 1024 * 1024)
    app.add("/b", Echo, max_message_size=16 * 1024 * 1024 + 1)
    for _ in range(2):
        assert await reply(app, "/a") == "x"
    (warning,) = warnings_of(caplog)
    assert warning.startswith("max_message_size on /b is above what servers take by default: ")
    assert warning.endswith("raise the server's own limit too (uvicorn: --ws-max-size)")


async def test_a_limit_over_processes_is_announced_to_count_in_one(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    app.add("/a", Echo, max_connections_total=5)
    app.add("/b", Echo, max_connections=5)
    app.add("/c", Echo, max_connections_total=1)
    for _ in range(2):
        assert await reply(app, "/a") == "x"
    announced = (
        "max_connections_total on /a, /c counts the connections of this process only, since this server does not count "
        "over several: `wsdeco run app.py --workers 4` does"
    )
    assert warnings_of(caplog) == [announced]


async def test_a_limit_over_processes_is_not_announced_where_run_serves(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    app.add("/a", Echo, max_connections_total=5)
    registry_of(app).message_size_cap = 20_000_000
    assert await reply(app, "/a") == "x"
    assert warnings_of(caplog) == []


async def test_a_large_max_message_size_is_not_announced_where_run_serves(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    app.add("/a", Echo, max_message_size=20_000_000)
    registry_of(app).message_size_cap = 20_000_000
    assert await reply(app, "/a") == "x"
    assert warnings_of(caplog) == []


async def test_limits_are_announced_at_startup_and_not_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "wsdeco.protocol", raising=False)
    app = App()
    app.add("/a", Echo, idle_timeout=60)
    for served in (app.app, app):
        async with MEMORY.serve(served) as server:
            assert len(warnings_of(caplog)) == 1
            async with server.connect("/a"):
                pass
    assert len(warnings_of(caplog)) == 1


# The ASGI app.


async def test_a_plain_request_for_a_websocket_path_is_a_426() -> None:
    app = App()
    app.add("/n/{n:int}", Echo)
    async with http(app) as client:
        response = await client.get("/n/1")
    assert (response.status_code, response.headers["upgrade"]) == (426, "websocket")
    assert response.text == "This path speaks WebSocket: open it with a WebSocket client."


async def test_an_unknown_path_is_a_404() -> None:
    app = App()
    app.add("/n/{n:int}", Echo)
    for path in ("/other", "/n/x", "/n/1/"):
        refused = await refusal(app, path)
        assert (refused.status, refused.body) == (404, b"Not Found")
        assert (await refusal(app, path, denial=False)).status == 403
        async with http(app) as client:
            response = await client.get(path)
            assert (response.status_code, response.text) == (404, "Not Found")


async def test_the_exception_handler_for_404_serves_http_only() -> None:
    async def not_found(request: Request, exc: Exception) -> Response:
        return PlainTextResponse(f"no {request.method} here", 404)

    app = App(exception_handlers={404: not_found})
    assert (await refusal(app, "/other")).body == b"Not Found"
    async with http(app) as client:
        assert (await client.get("/other")).text == "no GET here"


async def test_a_client_that_leaves_before_the_404() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Scope = {"type": "websocket", "path": "/", "headers": [], "extensions": None}
    await App()(scope, receive, send)
    assert sent == []


async def test_middleware_sees_every_connection() -> None:
    paths: list[str] = []

    class Noting:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                paths.append(scope["path"])
            await self.app(scope, receive, send)

    app = App(middleware=[Middleware(Noting)])
    app.add("/ws", Echo)
    assert await reply(app, "/ws") == "x"
    later = App()
    later.app.add_middleware(Noting)
    later.add("/later", Echo)
    assert await reply(later, "/later") == "x"
    assert paths == ["/ws", "/later"]


async def test_debug_shows_tracebacks_of_http_routes() -> None:
    async def fails() -> Response:
        raise ZeroDivisionError("in a page")

    for debug in (False, True):
        app = App(debug=debug)
        app.route("/")(fails)
        transport = ASGITransport(app, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url="http://testserver") as client:
            response = await client.get("/")
        assert response.status_code == 500
        assert ("ZeroDivisionError" in response.text) is debug


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
@pytest.mark.parametrize("inner", ["ws", "ws.app"])
async def test_an_app_mounted_in_another_one(framework: Callable[[], Starlette], inner: str) -> None:
    app = App()
    app.add("/rooms/{room}", Room)

    @app.route("/page")
    def page(request: Request) -> Response:
        return JSONResponse({"room": str(request.url_for("Room", room="blue")), "root": request.scope["root_path"]})

    outer = framework()
    outer.mount("/live", app if inner == "ws" else app.app)
    assert await reply(outer, "/live/rooms/blue") == "str blue"
    assert (await refusal(outer, "/live/other")).status == 404
    async with http(outer) as client:
        assert (await client.get("/live/page")).json() == {"room": "ws://testserver/live/rooms/blue", "root": "/live"}
        assert (await client.get("/live/other")).status_code == 404


async def test_an_app_mounted_by_its_route() -> None:
    app = App()
    app.add("/ws", Echo)
    assert await reply(Starlette(routes=[Mount("/live", app=app)]), "/live/ws") == "x"


MODULE: Final = """
from wsdeco import ws

@ws.handler("/{place}")
class Echo:
    async def on_message(self, text):
        return text
"""


@pytest.mark.parametrize("name", ["ws", "ws.app"])
async def test_uvicorn_imports_the_app_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsdeco, "ws", App())
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module = f"served_{name.replace('.', '_')}"
    (tmp_path / f"{module}.py").write_text(MODULE, "utf-8")
    async with SANSIO.serve(cast(ASGIApp, f"{module}:{name}")) as server, server.connect("/ws") as peer:
        await peer.send("x")
        assert await peer.receive() == "x"


def test_the_default_app_is_an_app() -> None:
    assert isinstance(wsdeco.ws, App)


# Start-up and shutdown.


async def test_lifespan_around_everything() -> None:
    app = App()
    events: list[str] = []

    @app.lifespan
    async def start_and_stop(starlette: Starlette) -> AsyncIterator[dict[str, str]]:
        assert starlette is app.app
        events.append("start")
        yield {"name": "Ada"}
        events.append("stop")

    @app.handler("/ws")
    class Greeter:
        def __init__(self, request: HTTPConnection) -> None:
            self.name = request.state.name

        async def on_message(self, text: str) -> str:
            return f"{text}, {self.name}"

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            events.append(f"{self.name} left: {reason}")

    async with MEMORY.serve(app) as server:
        peer = server.connect("/ws")
        async with peer as opened:
            await opened.send("Hello")
            assert await opened.receive() == "Hello, Ada"
            await server.stop()
    assert events == ["start", "Ada left: closed by the server with 1012 (service restart)", "stop"]


async def test_lifespan_without_state() -> None:
    app = App()
    events: list[str] = []

    @app.lifespan
    async def start_and_stop(starlette: Starlette) -> AsyncGenerator[None]:
        events.append("start")
        yield
        events.append("stop")

    async with MEMORY.serve(app):
        assert events == ["start"]
    assert events == ["start", "stop"]


class Manager:
    def __init__(self, app: Starlette) -> None:
        self.events = app.state.events

    async def __aenter__(self) -> None:
        self.events.append("start")

    async def __aexit__(self, *exc_info: object) -> None:
        self.events.append("stop")


@asynccontextmanager
async def managed(app: Starlette) -> AsyncGenerator[None]:
    async with Manager(app):
        yield


async def generator(app: Starlette) -> AsyncGenerator[None]:
    async with Manager(app):
        yield


def manager(app: Starlette) -> AbstractAsyncContextManager[None]:
    return Manager(app)


@pytest.mark.parametrize("lifespan", [managed, generator, manager, Manager, partial(generator)])
@pytest.mark.parametrize("decorated", [False, True])
async def test_lifespans_of_every_form(lifespan: Any, decorated: bool) -> None:
    app = App() if decorated else App(lifespan=lifespan)
    if decorated:
        assert app.lifespan(lifespan) is lifespan
    events = app.app.state.events = []
    async with MEMORY.serve(app):
        assert events == ["start"]
    assert events == ["start", "stop"]


def plain_generator(app: Starlette) -> Iterator[None]:
    yield


@contextmanager
def plain_manager(app: Starlette) -> Generator[None]:
    yield


async def coroutine(app: Starlette) -> None: ...


async def without_app() -> AsyncGenerator[None]:
    yield


async def with_more(app: Starlette, settings: object) -> AsyncGenerator[None]:
    yield


@pytest.mark.parametrize(
    ("lifespan", "fault"),
    [
        (plain_generator, "plain_generator is no async generator"),
        (plain_manager, "plain_manager is no async generator"),
        (coroutine, "coroutine is no async generator"),
        (5, "int is no async generator"),
        (without_app, "without_app cannot be called with the app alone"),
        (with_more, "with_more cannot be called with the app alone"),
    ],
)
def test_lifespans_that_cannot_work(lifespan: Any, fault: str) -> None:
    for register in (lambda: App().lifespan(lifespan), lambda: App(lifespan=lifespan)):
        with pytest.raises(HandlerError) as caught:
            register()
        message = str(caught.value)
        assert message.startswith(f"{fault}, and @ws.lifespan takes an async generator of the app: write `async def ")
        assert message.endswith("(app):` with one `yield`")


async def test_a_lifespan_that_has_not_run_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    inner = App(lifespan=managed)
    inner.add("/ws", Echo)
    outer = Starlette(routes=[Mount("/live", inner)])
    for _ in range(2):
        assert await reply(outer, "/live/ws") == "x"
    (warning,) = warnings_of(caplog)
    assert warning.startswith("the lifespan of this app has not run: nothing runs that of a mounted app, so enter it ")
    assert warning.endswith(f"`{ADVICE}`")


ADVICE: Final = "async with ws.app.router.lifespan_context(ws.app) as state: yield state"


@pytest.mark.parametrize("yielded", [{"name": "Ada"}, None], ids=["state", "no state"])
async def test_who_follows_the_advice_has_the_state_of_a_mounted_app(
    stack: Stack, yielded: dict[str, str] | None
) -> None:
    inner = App()

    @inner.lifespan
    async def start_and_stop(_app: Starlette) -> AsyncIterator[dict[str, str] | None]:
        yield yielded

    @inner.handler("/ws")
    class Greeter:
        def __init__(self, request: HTTPConnection) -> None:
            self.name = getattr(request.state, "name", "nobody")

        async def on_message(self, text: str) -> str:
            return f"{text}, {self.name}"

    @inner.route("/page")
    def page(request: Request) -> Response:
        return PlainTextResponse(getattr(request.state, "name", "nobody"))

    names: dict[str, Any] = {"ws": inner}
    exec(f"async def around(app):\n    {ADVICE}", names)  # noqa: S102 - what the log says to write
    outer = Starlette(routes=[Mount("/live", inner)], lifespan=asynccontextmanager(names["around"]))
    expected = "nobody" if yielded is None else "Ada"
    async with stack.serve(outer) as server, server.connect("/live/ws") as peer:
        await peer.send("Hello")
        assert await peer.receive() == f"Hello, {expected}"
        async with server.http() as client:
            assert (await client.get("/live/page")).text == expected


async def test_the_lifespan_of_a_mounted_app_can_be_entered(caplog: pytest.LogCaptureFixture) -> None:
    inner = App(lifespan=managed)
    inner.add("/ws", Echo)
    events = inner.app.state.events = []

    @asynccontextmanager
    async def around(app: Starlette) -> AsyncGenerator[None]:
        async with inner.app.router.lifespan_context(inner.app):
            yield

    outer = Starlette(routes=[Mount("/live", inner)], lifespan=around)
    async with MEMORY.serve(outer) as server, server.connect("/live/ws") as peer:
        await peer.send("x")
        assert await peer.receive() == "x"
        assert events == ["start"]
        await server.stop()
        with pytest.raises(wsdeco.ConnectionClosed) as caught:
            await peer.receive()
        assert caught.value.reason == wsdeco.Close(1012, "service restart", by="server")
    assert events == ["start", "stop"]
    assert warnings_of(caplog) == []


async def test_an_app_can_be_started_again() -> None:
    app = App()
    app.add("/ws", Echo)
    for _ in range(2):
        async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
            await peer.send("x")
            assert await peer.receive() == "x"
        assert (await refusal(app, "/ws")).status == 503


async def test_shut_down_closes_everything_and_lets_nobody_in() -> None:
    app = App()
    reasons: list[DisconnectReason] = []

    @app.handler("/ws", close_timeout=3)
    class Quiet:
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            reasons.append(reason)

    @app.route("/upgrade")
    async def upgrade_only(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Quiet)

    assert app.shutdown_time == 0
    async with connect(app, "/ws") as first, connect(app, "/upgrade") as second:
        assert app.shutdown_time > 0
        await soon(app.shut_down())
        assert reasons == [wsdeco.Close(1012, "service restart", by="server")] * 2
        for client in (first, second):
            await client.expect_close(1012, "service restart")
    for path in ("/ws", "/upgrade"):
        refused = await refusal(app, path)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
