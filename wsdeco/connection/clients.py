"""Who a client is, of whom `max_connections_per_client` limits the connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

__all__ = ["client_of", "network_of"]

_PREFIX: Final = 64
"""Bits of an IPv6 address that name a network; the rest a client chooses by itself (RFC 4291, section 2.5.1)."""


def client_of(scope: Scope, client: Callable[[HTTPConnection], object] | None) -> str:
    """Return what stands for the client behind a request: what `client` says, or its address by default.

    Raises:
        Exception: `client` has failed.
        TypeError: It has returned what stands for nobody.
    """
    if client is not None:
        return _checked(client(HTTPConnection(scope)))
    address = scope.get("client")
    return network_of(address[0]) if address else ""


def network_of(host: str) -> str:
    """Return what stands for the client at an address: an IPv4 address, the /64 of IPv6, or the text as it is."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    # On a socket for both, IPv4 clients come as ::ffff:192.0.2.1.
    mapped = address.ipv4_mapped
    return str(mapped if mapped is not None else int(address) >> _PREFIX)


def _checked(client: object) -> str:
    if isinstance(client, bool) or not isinstance(client, str | int):
        raise TypeError(
            f"client returned {type(client).__name__}, and not who the client is: return a str or an int, such as "
            "the id of a user, or request.client.host where there is none, or raise HTTPException(401)"
        )
    return str(client)
