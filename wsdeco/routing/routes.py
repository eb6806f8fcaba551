"""Starlette's routes, which do not match if a path parameter cannot be converted."""

from __future__ import annotations

from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
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


class SocketRoute(_Unmatched, WebSocketRoute):
    """A Starlette route for WebSocket connections that does not match if a path parameter cannot be converted."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether the route serves a connection, and what it adds to its scope."""
        if scope["path"] == self.path and not self.param_convertors and not scope.get("root_path"):
            # What the pattern of a path without parameters would say, and four times as fast.
            if scope["type"] == "websocket":
                return Match.FULL, {"endpoint": self.endpoint, "path_params": dict(scope.get("path_params", ()))}
            return Match.NONE, {}
        return super().matches(scope)
