"""The index of the routes: it changes nothing but the cost."""

import re
import tracemalloc
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Match, Mount, Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

from wsdeco import App
from wsdeco.routing.router import IndexedRouter
from wsdeco.routing.routes import HttpRoute, SocketRoute
from wsdeco.testing import connect

PARTS: Final = ("a", "b", "ab", "", "{x}", "a{x}", "{n:int}", "{rest:path}")
ASKED: Final = ("a", "b", "ab", "", "7", "a7", "c\n", "{x}")


class Anything(BaseRoute):
    """A route of somebody's own, which goes by no pattern."""

    def __init__(self, last: str) -> None:
        self.last = last

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if scope["path"].endswith(self.last) else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["endpoint"] = self


class Endpoint:
    """An ASGI app that does nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def http(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def add_numbers(path: str) -> str:
    """Return the path with another name for each parameter."""
    names = iter(range(9))
    return re.sub(r"{[a-z]+", lambda _: f"{{p{next(names)}", path)


paths = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map(lambda parts: add_numbers("/" + "/".join(parts)))


def made(kind: str, path: str) -> BaseRoute:
    """Return a new route of one kind."""
    patterned: dict[str, Callable[[str, Endpoint], BaseRoute]] = {
        "http": HttpRoute,
        "Route": Route,
        "socket": SocketRoute,
        "WebSocketRoute": WebSocketRoute,
    }
    match kind:
        case "POST":
            return Route(path, Endpoint(), methods=["POST"])
        case "Mount":
            return Mount("" if path == "/" else path, Endpoint())
        case "Host":
            return Host("a.example" if len(path) % 2 else "b.example", Endpoint())
        case "Anything":
            return Anything(path[-1])
        case _:
            return patterned[kind](path, Endpoint())


KINDS: Final = ("http", "Route", "socket", "WebSocketRoute", "POST", "Mount", "Host", "Anything")
routes = st.builds(made, st.sampled_from(KINDS), paths)

asked = st.lists(st.sampled_from(ASKED), max_size=4).map(lambda parts: "/".join(["", *parts]))


async def answer(router: Router, kind: str, path: str, root_path: str) -> object:
    """Return what a router makes of a request."""
    scope: Scope = {"type": kind, "path": root_path + path, "root_path": root_path, "method": "GET", "app": None}
    scope.update(headers=[(b"host", b"a.example")], query_string=b"", scheme="http", server=("a", 80))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def default(*_: object) -> None:
        sent.append("default")

    async def receive() -> Any:
        raise NotImplementedError

    router.default = default
    try:
        await router(scope, receive, send)
    except HTTPException as exc:
        sent.append(exc.status_code)
    assert scope.pop("router") is router
    return scope, sent


@given(
    st.lists(routes, max_size=8),
    st.lists(routes, max_size=2),
    asked,
    st.sampled_from(["http", "websocket"]),
    st.sampled_from(["", "/a", "/root"]),
)
async def test_it_answers_as_starlette_does(
    first: list[BaseRoute], added: list[BaseRoute], path: str, kind: str, root_path: str
) -> None:
    plain, indexed = Router(first), IndexedRouter(routes=first)
    for more in ([], added):
        for router in (plain, indexed):
            router.routes.extend(more)
        assert await answer(indexed, kind, path, root_path) == await answer(plain, kind, path, root_path)
        assert await answer(indexed, kind, path, root_path) == await answer(plain, kind, path, root_path)


def page(name: str) -> Route:
    return Route(f"/{name}", Endpoint(), name=name)


EDITS: Final[dict[str, Callable[[Router], object]]] = {
    "append": lambda router: router.routes.append(page("new")),
    "extend": lambda router: router.routes.extend([page("new")]),
    "insert": lambda router: router.routes.insert(0, page("new")),
    "item": lambda router: router.routes.__setitem__(0, page("new")),
    "slice": lambda router: router.routes.__setitem__(slice(0, 1), [page("new")]),
    "added": lambda router: router.routes.__iadd__([page("new")]),
    "assigned": lambda router: setattr(router, "routes", [page("new")]),
    "add_route": lambda router: router.add_route("/new", Endpoint()),  # type: ignore[arg-type]
    "mount": lambda router: router.mount("/new", Router([Route("/", Endpoint())])),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_a_route_added_by_hand_is_found_at_once(edit: Callable[[Router], object]) -> None:
    router = IndexedRouter(routes=[page("old")])
    assert [route.path for route in candidates(router, "/new/")] == []
    edit(router)
    assert [route.path for route in candidates(router, "/new/")] == ["/new"]


REMOVALS: Final[dict[str, Callable[[Router], object]]] = {
    "remove": lambda router: router.routes.remove(router.routes[0]),
    "pop": lambda router: router.routes.pop(0),
    "del": lambda router: router.routes.__delitem__(0),
    "clear": lambda router: router.routes.clear(),
    "assigned": lambda router: setattr(router, "routes", []),
}


@pytest.mark.parametrize("edit", REMOVALS.values(), ids=REMOVALS)
def test_a_route_removed_by_hand_is_gone_at_once(edit: Callable[[Router], object]) -> None:
    router = IndexedRouter(routes=[page("old")])
    assert len(candidates(router, "/old")) == 1
    edit(router)
    assert candidates(router, "/old") == []


def test_a_list_of_the_users_own_may_be_edited_too() -> None:
    router = IndexedRouter(routes=[])
    mine: list[BaseRoute] = []
    router.routes = mine
    assert candidates(router, "/new") == []
    mine.append(page("new"))
    assert len(candidates(router, "/new")) == 1
    mine[0] = page("other")
    assert candidates(router, "/new") == []


def test_a_pattern_of_the_users_own_is_asked_for_every_path() -> None:
    exact, folded, either = page("a"), page("b"), Route("/c/{x}", Endpoint())
    exact.path_regex = re.compile("^/z$")
    folded.path_regex = re.compile("^/b$", re.IGNORECASE)
    either.path_regex = re.compile("^/c/(?P<x>.*)|^/z$")
    assert candidates(IndexedRouter(routes=[exact, folded, either]), "/other") == [exact, folded, either]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"path": "/a\n"}, {"path": "/b"}, {"root_path": "/a"}, {"root_path": "/r", "path": "/r/a"}),
        *({"type": "websocket"}, {"path_params": {"outer": 1}}),
    ],
)
def test_a_path_without_parameters_matches_as_its_pattern_does(method: str, changes: dict[str, Any]) -> None:
    scope: Scope = {"type": "http", "path": "/a", "method": method, **changes}
    pairs: list[tuple[HttpRoute | SocketRoute, Route | WebSocketRoute]] = [
        (HttpRoute("/a", nothing), Route("/a", nothing)),
        (SocketRoute("/a", (endpoint := Endpoint())), WebSocketRoute("/a", endpoint)),
    ]
    for ours, theirs in pairs:
        # The first answer may have asked for the pattern.
        assert [ours.matches(scope), ours.matches(scope)] == [theirs.matches(scope)] * 2
        ours.path_regex = theirs.path_regex = re.compile("^/b$")
        assert ours.matches(scope) == theirs.matches(scope)


async def nothing(request: Request) -> Response:
    raise NotImplementedError


def test_the_pattern_of_a_path_without_parameters_is_compiled_when_it_is_asked_for() -> None:
    route = SocketRoute("/a.b", Endpoint(), name="dotted")
    scope: Scope = {"type": "websocket", "path": "/a.b"}
    assert candidates(IndexedRouter(routes=[route]), "/a.b") == [route]
    assert route.matches(scope)[0] is Match.FULL
    assert route.url_path_for("dotted") == "/a.b"
    assert route.is_literal
    assert route.matches({**scope, "path": "/a-b"})[0] is Match.NONE
    assert not route.is_literal
    assert route.path_regex.pattern == r"^/a\.b$"
    assert candidates(IndexedRouter(routes=[route]), "/a.b") == [route]
    assert route.matches(scope)[0] is Match.FULL
    with pytest.raises(AttributeError, match="'SocketRoute' object has no attribute 'method'"):
        route.method  # noqa: B018 - asked for because it is not there


def test_paths_that_peers_make_up_are_not_kept() -> None:
    router = IndexedRouter(routes=[page("old"), Route("/rooms/{room}", Endpoint())])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10_000):
            candidates(router, f"/made-up/{number}")
            candidates(router, f"/rooms/{number}")
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


def candidates(router: IndexedRouter, path: str) -> list[Any]:
    return list(router.candidates({"type": "http", "path": path}))


@pytest.mark.parametrize("path", ["/nothing", "/nothing/b", "/", "//", "/rooms-of-others/x"])
def test_what_matches_nothing_asks_no_route(path: str) -> None:
    app = App()
    for name in ("a", "b", "rooms/{room}"):
        app.add(f"/{name}", Echo)
    router = app.app.router
    assert isinstance(router, IndexedRouter)
    assert candidates(router, path) == []


class Echo:
    async def on_message(self, text: str) -> str:
        return text


async def test_a_router_of_the_users_own_serves_handlers_too() -> None:
    app = App()
    app.add("/ws", Echo)
    app.app.router = Router(app.app.router.routes)
    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.expect("x")


async def test_a_mounted_app_tells_a_browser_that_a_path_speaks_websocket() -> None:
    inner, outer = App(), App()
    inner.add("/ws", Echo)
    outer.app.mount("/inner", inner)
    async with http(outer) as client:
        assert (await client.get("/inner/ws")).status_code == 426
        assert (await client.get("/inner/other")).status_code == 404
        assert (await client.get("/inner")).status_code == 307
