"""The scope of a handshake request, and the request of an open connection, kept small until somebody looks at it.

A scope with its headers takes about 3 KiB, as much as all the rest of an idle connection. Hardly anybody looks at it
once the connection is open, and what it says can be told again from the bytes that the peer has sent.
"""

from __future__ import annotations

import weakref
from operator import itemgetter
from typing import Any, Final
from urllib.parse import unquote

from starlette.requests import HTTPConnection
from starlette.types import Scope

from wsdeco.handshake import Request, parse_request

__all__ = ["PackedRequest", "build_scope"]

_OF_SERVER: Final = ("scheme", "server", "client", "root_path", "asgi")
"""Keys of the scope whose values are not the peer's; those for proxies are, but the server decides."""

_ROUTED: Final = ("app", "router", "endpoint")
"""Keys that routing adds, besides the path parameters; their values are those of all connections of a route."""

_of_server: Final = itemgetter(*_OF_SERVER)
_routed: Final = itemgetter(*_ROUTED)


def build_scope(
    request: Request,
    *,
    scheme: str,
    server: tuple[str, int | None] | None,
    client: tuple[str, int] | None,
    root_path: str,
    asgi: dict[str, str],
    state: dict[str, Any],
) -> dict[str, Any]:
    """Return the ASGI scope of a handshake request, equal to that of uvicorn's own classes."""
    raw_path, _, query_string = request.target.partition(b"?")
    return {
        "type": "websocket",
        "asgi": asgi,
        "http_version": "1.1",
        "scheme": scheme,
        "server": server,
        "client": client,
        "root_path": root_path,
        "path": root_path + unquote(raw_path.decode("ascii")),
        "raw_path": root_path.encode("ascii") + raw_path,
        "query_string": query_string,
        "headers": request.headers,
        "subprotocols": request.subprotocols,
        "state": state.copy(),
        "extensions": {"websocket.http.response": {}},
    }


_NUMBER_OF_KEYS: Final = 18
"""Those of `build_scope`, and what routing adds."""


class PackedRequest:
    """A request, packed.

    Args:
        request: The request.
        parsed: What its scope was built from.
        state: The state of the lifespan, which is the state of each request to begin with.

    Raises:
        ValueError: The scope holds what could not be told again.
    """

    __slots__ = ("_head", "_of_server", "_path_params", "_routed", "_seen", "_state")

    def __init__(self, request: HTTPConnection, parsed: Request, state: dict[str, Any]) -> None:
        scope = request.scope
        if not (
            len(scope) == _NUMBER_OF_KEYS
            and scope["headers"] is parsed.headers
            and scope["subprotocols"] is parsed.subprotocols
            and scope["state"] == state
        ):
            raise ValueError("the scope holds what somebody has put there")
        self._head = parsed.head
        self._of_server: tuple[Any, ...] = _of_server(scope)
        self._routed: tuple[Any, ...] = _routed(scope)
        # An empty dictionary for each connection would be a waste.
        self._path_params: dict[str, Any] | None = scope["path_params"] or None
        self._state = state
        self._seen = weakref.ref(request)

    def unpack(self) -> HTTPConnection:
        """Return the request: the same object, if anybody still has it."""
        request = self._seen()
        return HTTPConnection(self._scope()) if request is None else request

    def _scope(self) -> Scope:
        of_server = dict(zip(_OF_SERVER, self._of_server, strict=True))
        routed = dict(zip(_ROUTED, self._routed, strict=True))
        scope = build_scope(parse_request(self._head), **of_server, state=self._state)
        return {**scope, **routed, "path_params": self._path_params or {}}
