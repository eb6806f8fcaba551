"""Starlette's routes, which do not match where a path parameter cannot be converted."""

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
    """A Starlette route that does not match where a path parameter cannot be converted."""


class SocketRoute(_Unmatched, WebSocketRoute):
    """A Starlette route for WebSocket connections that does not match where a path parameter cannot be converted."""
