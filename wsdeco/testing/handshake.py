"""How a test connects: the handshake of a client in memory, or of one over a real server."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Scope

from wsdeco.channels.data import HeaderItems, header_pairs
from wsdeco.clock import Clock
from wsdeco.testing.client import Client

__all__ = ["connect"]

_TIMEOUT: Final = 5.0


def connect(
    app: ASGIApp,
    path: str,
    *,
    headers: HeaderItems = (),
    subprotocols: Iterable[str] = (),
    client: tuple[str, int] | None = ("127.0.0.1", 50000),
    scheme: str = "ws",
    denial: bool = True,
    timeout: float = _TIMEOUT,
    clock: Clock | None = None,
    live: bool = False,
) -> Client:
    """Return a client that `async with` connects to an ASGI app, without a server.

    Args:
        app: The app as it is decorated, `ws` for instance, or one that has handlers somewhere in it.
        path: Path and query, such as `/rooms/1?token=x`.
        headers: Fields of the handshake request, besides those that every client sends; `Host` is `testserver` unless
            given.
        subprotocols: What the client offers.
        client: The peer's address; `None` as over a Unix socket.
        scheme: `"ws"` or `"wss"`.
        denial: Whether the server has the denial response extension of ASGI.
        timeout: Seconds of real time after which a wait fails.
        clock: What the limits of the connection read, a `ManualClock` for instance; by default that of the app.
        live: Whether a server on 127.0.0.1 that serves just this client takes the place of memory: the same messages
            over a real socket. The app is told `client` and `scheme` as in memory.
    """
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in header_pairs(headers)]
    offered = list(subprotocols)
    if offered:
        fields.append((b"sec-websocket-protocol", ", ".join(offered).encode("latin-1")))
    given = {name for name, _ in fields}
    defaults = [(b"host", b"testserver"), (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
    defaults += [(b"sec-websocket-key", b64encode(os.urandom(16))), (b"sec-websocket-version", b"13")]
    defaults += [(b"user-agent", b"wsdeco.testing")]
    fields[:0] = [field for field in defaults if field[0] not in given]
    # Servers join the values of all fields of the name.
    names = [name.strip() for key, value in fields if key == b"sec-websocket-protocol" for name in value.split(b",")]
    raw_path, _, query = path.partition("?")
    scope: Scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": scheme,
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": fields,
        "client": list(client) if client is not None else None,
        "server": ["testserver", 80],
        "subprotocols": [name.decode("latin-1") for name in names],
        "state": {},
        "extensions": {"websocket.http.response": {}} if denial else {},
    }
    if clock is not None:
        scope["wsdeco.clock"] = clock
    if live:
        from wsdeco.testing.live import LiveClient  # noqa: PLC0415 - in memory no server is loaded

        return LiveClient(app, scope, timeout, clock)
    return Client(app, scope, timeout, clock)
