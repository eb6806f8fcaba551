"""A Starlette app that limits the bodies of those requests that have one."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["BodyLimitingApp"]

_VERSIONS: Final = frozenset({"1.0", "1.1"})
"""Versions of HTTP in which a request without the fields of `_FRAMING` has no body (RFC 9112, section 6.3)."""

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class BodyLimitingApp(Starlette):
    """Starlette, whose `max_body_size` costs a request without a body nothing: there it is a third of a request."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return what a request passes. Starlette calls it at the first one."""
        stack = super().build_middleware_stack()
        if getattr(self, "max_body_size", None) is not None:
            # Below the middleware for errors Starlette puts the one that counts bytes.
            errors = cast(Any, stack)
            errors.app = _WhereABodyIs(errors.app)
        return stack


class _WhereABodyIs:
    def __init__(self, limit: Any) -> None:
        self._limit: ASGIApp = limit
        self._unlimited: ASGIApp = limit.app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine, which would be a further frame of each request.
        has_body = scope["type"] == "http" and (
            scope.get("http_version") not in _VERSIONS or not _FRAMING.isdisjoint(dict(scope["headers"]))
        )
        return (self._limit if has_body else self._unlimited)(scope, receive, send)
