"""Who a client is, and the gate that counts the connections of each: `max_connections_per_client`."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

from wsdeco.connection.slots import Slots
from wsdeco.connection.tickets import Refusal, Ticket
from wsdeco.reasons import CloseCode

__all__ = ["PerClient", "network_of"]

_FULL: Final = Refusal("client", 429, CloseCode.TRY_AGAIN_LATER, retry_after=1)

_PREFIX: Final = 64
"""Bits of an IPv6 address that name a network; the rest a client chooses by itself (RFC 4291, section 2.5.1)."""


class PerClient:
    """Counts the connections of each client of a route.

    Args:
        slots: What counts them.
        limit: Connections of one client at a time.
        client: Returns who is behind a request; `None` counts by address.
    """

    def __init__(self, slots: Slots, limit: int, client: Callable[[HTTPConnection], object] | None) -> None:
        self._slots = slots
        self._limit = limit
        self._client = client

    def enter(self, scope: Scope) -> Ticket | Refusal:
        """Take a place of the client, if it has one left."""
        if self._client is None:
            address = scope.get("client")
            client = network_of(address[0]) if address else ""
        else:
            try:
                client = _checked(self._client(HTTPConnection(scope)))
            except Exception as exc:
                return Refusal("failure", 500, CloseCode.INTERNAL_ERROR, failure=exc)
        return _Place(self._slots, client) if self._slots.take_for(client, self._limit) else _FULL


class _Place:
    """The place of a client, and the slot that was taken before."""

    __slots__ = ("_client", "_slots")

    def __init__(self, slots: Slots, client: str) -> None:
        self._slots = slots
        self._client = client

    def give_back(self) -> None:
        self._slots.give_back_for(self._client)
        self._slots.give_back()


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
