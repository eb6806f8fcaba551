"""Starlette's router with an index of its routes, so that a request costs the same with one route and with thousands.

The index only leaves out routes that cannot match; all others are asked in their order, by Starlette's own code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from operator import is_
from types import CoroutineType
from typing import Any, Final, cast

from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match, Mount, Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

from wsdeco.routing.routes import HttpRoute, SocketRoute

__all__ = ["IndexedRouter", "first_match"]

_MATCH_BY_PATTERN: Final = {kind.matches for kind in (HttpRoute, Mount, Route, SocketRoute, WebSocketRoute)}
"""How routes match that go by their `path_regex` alone."""


_serve: Final[Callable[..., Any]] = Router.app


class IndexedRouter(Router):
    """A router that asks only those routes of a request whose path begins as its own does.

    Its `routes` may be edited, or replaced by another list, at any time.
    """

    def __init__(self, **options: Any) -> None:
        """Make a router with the options of Starlette's."""
        super().__init__(**options)
        self.routes: list[BaseRoute] = _RouteList(self.routes)
        self._index = _Index(self.routes)

    def candidates(self, scope: Scope) -> Sequence[BaseRoute]:
        """Return the routes that may match, with or without a slash at the end of the path, in their order."""
        index = self._index
        if not index.is_of(self.routes):
            index = self._index = _Index(self.routes)
        path: str = get_route_path(scope) if scope.get("root_path") else scope["path"]
        known = index.known.get(path)
        return index.candidates(path) if known is None else known

    def app(self, scope: Scope, receive: Receive, send: Send) -> CoroutineType[Any, Any, None]:
        """Hand a request to its route, as Starlette does."""
        # No coroutine, which would be a further frame of each request.
        if "router" not in scope:
            scope["router"] = self
        narrowed: Any = self if scope["type"] == "lifespan" else _Narrowed(self, self.candidates(scope))
        serving: CoroutineType[Any, Any, None] = _serve(narrowed, scope, receive, send)
        return serving


def first_match(routes: Iterable[BaseRoute], scope: Scope) -> tuple[BaseRoute | None, Scope]:
    """Return the first of the routes that serves a request, and what it adds to the scope."""
    for route in routes:
        match, child_scope = route.matches(scope)
        if match is Match.FULL:
            return route, child_scope
    return None, {}


class _Narrowed:
    """A router as Starlette's code sees it during one request: with the routes that may match."""

    __slots__ = ("_router", "routes")

    def __init__(self, router: Router, routes: Sequence[BaseRoute]) -> None:
        self._router = router
        self.routes = routes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)


class _RouteList(list[BaseRoute]):
    """Routes, with an `edition` that is another object after each edit."""

    edition: object = object()


def _editing(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def edit(self: _RouteList, *args: Any, **keywords: Any) -> Any:
        try:
            return method(self, *args, **keywords)
        finally:
            # Behind the edit, which a thread of its own may make: whoever has read the list before must read it again.
            self.edition = object()

    return edit


for _name in (
    *("append", "extend", "insert", "remove", "pop", "clear", "reverse", "sort"),
    *("__setitem__", "__delitem__", "__iadd__", "__imul__"),
):
    setattr(_RouteList, _name, _editing(getattr(list, _name)))


class _Index:
    """The routes of one edition of a list, by the segments that their paths begin with.

    It grows with the routes alone, never with what peers ask for.

    Attributes:
        known: What `candidates` returned for paths of routes.
    """

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._edition = routes.edition if isinstance(routes, _RouteList) else None
        self._routes = routes.copy()
        self._anywhere: list[int] = []
        self._below: dict[str, list[int]] = {}
        self.known: dict[str, Sequence[BaseRoute]] = {}
        for position, route in enumerate(self._routes):
            found = self._anywhere
            for prefix in _prefixes(_literal_start(route)):
                found = self._below.setdefault(prefix, [])
            found.append(position)

    def is_of(self, routes: list[BaseRoute]) -> bool:
        """Return whether these are the routes, as they are now."""
        if isinstance(routes, _RouteList):
            return routes.edition is self._edition
        # A plain list, put in the place of ours, does not tell when it is edited.
        return len(routes) == len(self._routes) and all(map(is_, routes, self._routes))

    def candidates(self, path: str) -> Sequence[BaseRoute]:
        """Return the routes that may match `path`, in their order."""
        positions = self._anywhere
        # The `$` that ends the pattern of a route matches in front of a last newline too.
        for prefix in _prefixes(path.removesuffix("\n") or "/"):
            below = self._below.get(prefix)
            if below is None:
                break
            if below:
                positions = sorted([*positions, *below]) if positions else below
        found = [self._routes[position] for position in positions]
        if path in self._below:
            # A path that matches no route is not kept: peers can make up any number.
            self.known[path] = found
        return found


def _prefixes(path: str) -> Iterable[str]:
    """Yield the first segment of `path`, the first two, and so on."""
    end = path.find("/", 1)
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)
    if path:
        yield path


def _literal_start(route: BaseRoute) -> str:
    """Return the segments that every path begins with that `route` matches, or an empty string."""
    if getattr(route.matches, "__func__", None) not in _MATCH_BY_PATTERN:
        return ""
    if isinstance(route, SocketRoute) and route.is_literal:
        return route.path.rstrip("/") or "/"
    known = cast("Route | WebSocketRoute | Mount", route)
    pattern = known.path_regex
    path = f"{known.path}/{{" if isinstance(known, Mount) else known.path
    literal, _, parameters = path.partition("{")
    escaped = re.escape(literal)
    # A program may have replaced the pattern that Starlette made of the path.
    if pattern.flags != re.UNICODE:
        return ""
    if parameters or isinstance(known, Mount):
        begins = pattern.pattern.startswith(f"^{escaped}") and "|" not in pattern.pattern
        return literal[: literal.rfind("/")] if begins else ""
    return literal.rstrip("/") or "/" if pattern.pattern == f"^{escaped}$" else ""
