"""Proxies on the same machine that connect to a Unix socket: their peer has no address that could be trusted."""

from __future__ import annotations

from typing import Any, cast

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

__all__ = ["trust_local_peers"]


class _LocalPeers:
    """Trusts who has no address, and else those whom uvicorn trusts."""

    def __init__(self, others: Any) -> None:
        self._others = others
        self.get_trusted_client_address = others.get_trusted_client_address

    def __contains__(self, host: str | None) -> bool:
        return host is None or host in self._others


def trust_local_peers(config: uvicorn.Config) -> None:
    """Let X-Forwarded-* of a peer without an address count, as gunicorn does, unless `proxy_headers` is off.

    Only if all sockets are Unix sockets, and their permissions say who may connect: elsewhere a peer has no address
    if it has gone already.
    """
    app: Any = cast("Any", config).loaded_app
    if isinstance(app, ProxyHeadersMiddleware):
        cast("Any", app).trusted_hosts = _LocalPeers(app.trusted_hosts)
