"""Starlette's routes, which do not match if a path parameter cannot be converted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from starlette.routing import BaseRoute, Match, Route, WebSocketRoute, compile_path
from starlette.types import Scope

__all__ = ["HttpRoute", "SocketRoute"]


class _Unmatched(BaseRoute):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        try:
            return super().matches(scope)
        except ValueError:
            # What fits the pattern of a parameter may be more than its type takes: a number of 5,000 digits.
            return Match.NONE, {}


class HttpRoute(_Unmatched, Route):
    """A Starlette route that does not match if a path parameter cannot be converted."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Make a route with the options of Starlette's."""
        super().__init__(path, endpoint, **options)
        self._literal = None if "{" in path else self.path_regex

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether the route serves a request, and what it adds to its scope."""
        if (
            scope["path"] == self.path
            and self.path_regex is self._literal
            and scope["type"] == "http"
            and not scope.get("root_path")
        ):
            # What the pattern would say, and three times as fast.
            is_partial = self.methods and scope["method"] not in self.methods
            child_scope = {"endpoint": self.endpoint, "path_params": dict(scope.get("path_params", ()))}
            return Match.PARTIAL if is_partial else Match.FULL, child_scope
        return super().matches(scope)


class SocketRoute(_Unmatched, WebSocketRoute):
    """A Starlette route for WebSocket connections that does not match if a path parameter cannot be converted."""

    _literal: re.Pattern[str] | None = None

    def __init__(self, path: str, endpoint: Callable[..., Any], *, name: str | None = None) -> None:
        """Make a route as Starlette does, but for the pattern of a path without parameters.

        Args:
            path: A Starlette path.
            endpoint: What serves the connections.
            name: The name of the route, for `url_path_for`; by default that of the endpoint.
        """
        if "{" in path:
            super().__init__(path, endpoint, name=name)
            return
        # Compiling it takes a tenth of the time that the definition of a handler takes, and hardly any is asked for.
        super().__init__("/", endpoint, name=name)
        self.path: str = path
        self.path_format: str = path
        del self.path_regex

    def __getattr__(self, name: str) -> Any:
        """Return the pattern of the path, if that is missing: it is compiled as soon as it is asked for."""
        if name != "path_regex":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        pattern: re.Pattern[str] = compile_path(self.path)[0]
        self.path_regex: re.Pattern[str] = pattern
        self._literal = pattern
        return pattern

    @property
    def is_literal(self) -> bool:
        """Whether it matches its path alone, and nobody has asked for a pattern or set one."""
        return "path_regex" not in vars(self)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether the route serves a connection, and what it adds to its scope."""
        literal = self._literal
        if (
            scope["path"] == self.path
            and vars(self).get("path_regex", literal) is literal
            and not scope.get("root_path")
        ):
            # What the pattern of a path without parameters would say, and four times as fast.
            if scope["type"] == "websocket":
                return Match.FULL, {"endpoint": self.endpoint, "path_params": dict(scope.get("path_params", ()))}
            return Match.NONE, {}
        return super().matches(scope)
