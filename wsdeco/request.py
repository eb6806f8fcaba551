"""The handshake request of an open connection, kept in a few hundred bytes until somebody looks at it.

A scope with its headers takes about 3 KiB, as much as all the rest of an idle connection. Hardly anybody looks at it
once the connection is open, and what it says can be told again.
"""

from __future__ import annotations

import marshal
import weakref
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

__all__ = ["PackedRequest"]

_PLAIN: Final = (
    *("type", "asgi", "http_version", "scheme", "server", "client", "root_path", "path", "raw_path", "query_string"),
    *("headers", "subprotocols"),
)
"""Keys of the scope whose values are made of strings, bytes, numbers, lists, tuples and dictionaries."""

_ROUTED: Final = ("app", "router", "endpoint")
"""Keys that routing adds, besides the path parameters; their values are those of all connections of a route."""

_REBUILT: Final = frozenset({*_PLAIN, *_ROUTED, "path_params", "state", "extensions"})


class PackedRequest:
    """A request, packed.

    Args:
        request: The request.
        state: The state of the lifespan, which is the state of each request to begin with.

    Raises:
        ValueError: The scope holds what could not be told again.
    """

    __slots__ = ("_path_params", "_plain", "_routed", "_seen", "_state")

    def __init__(self, request: HTTPConnection, state: dict[str, Any]) -> None:
        scope = request.scope
        if not _REBUILT.issuperset(scope) or scope["state"] != state:
            raise ValueError("the scope holds what somebody has put there")
        self._plain = marshal.dumps([scope[key] for key in _PLAIN])
        self._routed = tuple(scope[key] for key in _ROUTED)
        # An empty dictionary for each connection would be a waste.
        self._path_params: dict[str, Any] | None = scope["path_params"] or None
        self._state = state
        self._seen = weakref.ref(request)

    def unpack(self) -> HTTPConnection:
        """Return the request: the same object, if anybody still has it."""
        request = self._seen()
        return HTTPConnection(self._scope()) if request is None else request

    def _scope(self) -> Scope:
        values = marshal.loads(self._plain)  # noqa: S302 - our own bytes, which have never left the process
        plain = zip(_PLAIN, values, strict=True)
        routed = zip(_ROUTED, self._routed, strict=True)
        return {
            **dict(plain),
            **dict(routed),
            "path_params": self._path_params or {},
            "state": self._state.copy(),
            "extensions": {"websocket.http.response": {}},
        }
