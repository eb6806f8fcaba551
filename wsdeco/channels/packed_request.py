"""The request of an open connection, kept small until somebody looks at it.

A scope with its headers takes about 3 KiB, as much as all the rest of an idle connection. Hardly anybody looks at it
once the connection is open, and what it says can be told again from the bytes that the peer has sent.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

from wsdeco.wire.handshake import Request, parse_request
from wsdeco.wire.scope import build_scope

__all__ = ["PackedRequest"]

_ASGI: Final = {"version": "3.0", "spec_version": "2.4"}
_NUMBER_OF_KEYS: Final = 18
"""The keys of `build_scope`, and the four that routing adds."""


class PackedRequest:
    """A request, packed.

    Args:
        request: The request.
        parsed: What its scope was built from.
        state: The state of the lifespan, which is the state of each request to begin with.
        client: The peer's address as the scope has it.

    Raises:
        ValueError: The scope holds what could not be told again.
    """

    __slots__ = (
        *("_app", "_client", "_endpoint", "_head", "_path_params", "_root_path", "_router", "_scheme", "_seen"),
        *("_server", "_state"),
    )

    def __init__(
        self, request: HTTPConnection, parsed: Request, state: dict[str, Any], client: tuple[str, int] | None
    ) -> None:
        scope = request.scope
        if not (
            len(scope) == _NUMBER_OF_KEYS
            and scope["headers"] is parsed.headers
            and scope["subprotocols"] is parsed.subprotocols
            and scope["state"] == state
            and scope["client"] == client
            and scope["asgi"] == _ASGI
        ):
            raise ValueError("the scope holds what somebody has put there")
        self._head = parsed.head
        self._scheme: str = scope["scheme"]
        self._server: tuple[str, int | None] | None = scope["server"]
        # The object that the channel holds too: an equal one would take memory of its own.
        self._client = client
        self._root_path: str = scope["root_path"]
        self._app: object = scope["app"]
        self._router: object = scope["router"]
        self._endpoint: object = scope["endpoint"]
        # An empty dictionary takes 64 bytes.
        self._path_params: dict[str, Any] | None = scope["path_params"] or None
        self._state = state
        self._seen: weakref.ref[HTTPConnection] | None = weakref.ref(request)

    def drop_dead_reference(self) -> None:
        """Keep no reference to the request if nobody has it: to be called when this has taken its place."""
        if self._seen is not None and self._seen() is None:
            self._seen = None

    def unpack(self) -> HTTPConnection:
        """Return the request: the same object, if anybody still has it."""
        request = None if self._seen is None else self._seen()
        return HTTPConnection(self._scope()) if request is None else request

    def _scope(self) -> Scope:
        scope = build_scope(
            parse_request(self._head),
            scheme=self._scheme,
            server=self._server,
            client=None if self._client is None else (self._client[0], self._client[1]),
            root_path=self._root_path,
            asgi=_ASGI.copy(),
            state=self._state,
        )
        routed = {"app": self._app, "router": self._router, "endpoint": self._endpoint}
        return {**scope, **routed, "path_params": self._path_params or {}}
