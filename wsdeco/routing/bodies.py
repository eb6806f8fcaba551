"""A Starlette app that limits the bodies of those requests that have one."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any, ClassVar, Final, cast

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["MAX_BODY_SIZE", "BodyLimitingApp"]

MAX_BODY_SIZE: Final = 16 * 1024 * 1024
"""Bytes of the body of an HTTP request, unless the app says otherwise."""

_VERSIONS: Final = frozenset({"1.0", "1.1"})
"""Versions of HTTP in which a request without the fields of `_FRAMING` has no body (RFC 9112, section 6.3)."""

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class BodyLimitingApp(Starlette):
    """Starlette, whose `max_body_size` costs a request without a body nothing: there it is a third of a request.

    Attributes:
        limits_bodies: Whether this Starlette limits bodies, which it does from 1.6 on.
    """

    limits_bodies: ClassVar[bool] = "max_body_size" in inspect.signature(Starlette).parameters

    def limit_bodies(self, size: int | None) -> None:
        """Let no body have more bytes than `size`; `None` for any number.

        Raises:
            ValueError: `size` is no size, or this Starlette cannot see to it.
        """
        if size is not None and size < 0:
            raise ValueError(f"max_body_size must be 0 or more bytes, or None for no limit, not {size!r}")
        if self.limits_bodies:
            self.max_body_size: int | None = size
        elif size is not None and size != MAX_BODY_SIZE:
            raise ValueError(f"max_body_size={size} needs Starlette 1.6: pip install 'starlette>=1.6'")

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
