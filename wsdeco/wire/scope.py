"""The ASGI scope of a handshake request."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from wsdeco.wire.handshake import Request

__all__ = ["build_scope"]


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
    path = raw_path.decode("ascii")
    return {
        "type": "websocket",
        "asgi": asgi,
        "http_version": "1.1",
        "scheme": scheme,
        "server": server,
        "client": client,
        "root_path": root_path,
        "path": root_path + (unquote(path) if "%" in path else path),
        "raw_path": root_path.encode("ascii") + raw_path if root_path else raw_path,
        "query_string": query_string,
        "headers": request.headers,
        "subprotocols": request.subprotocols,
        "state": state.copy(),
        "extensions": {"websocket.http.response": {}},
    }
