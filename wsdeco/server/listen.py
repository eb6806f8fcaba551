"""From a host and a port to sockets that listen, or to one line that says why they cannot."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, TypeAlias, cast

from wsdeco.reasons import ServerError

__all__ = ["Listeners", "check_address", "listen"]

_SocketAddress: TypeAlias = tuple[str | int, ...]
"""Host, port and, for IPv6, what else `socket.getaddrinfo` gives."""

_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""What the addresses of a machine fail with elsewhere, and those of a family that this machine does not have."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of one server: a name such as `localhost` may stand for several addresses.

    Attributes:
        host: The host to put into a URL.
        port: The port of all of them.
        sockets: The sockets.
        process: The process that has opened them. Workers have them as well, and so do children that hooks fork.
    """

    host: str
    port: int
    sockets: list[socket.socket]
    process: int = field(default_factory=os.getpid)

    def refuse(self) -> None:
        """Take no more connections, also if a forked child holds the sockets; no worker can refuse for all."""
        if self.process == os.getpid():
            for each in self.sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the sockets."""
        for each in self.sockets:
            each.close()


def check_address(host: object, port: object) -> None:
    """Refuse what is no host or no port.

    Raises:
        TypeError: One of them has the wrong type.
        ValueError: The host is empty, or the port out of range.
    """
    if not isinstance(host, str):
        raise TypeError(
            f"host must be a str such as '127.0.0.1', not {type(host).__name__} {host!r}: "
            "for a port alone write run(port=...)"
        )
    if not host:
        raise ValueError(
            'host must not be empty: write "127.0.0.1" for this machine alone, "0.0.0.0" for all addresses'
        )
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an int such as 8000, not {type(port).__name__} {port!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 (any that is free) to 65535, not {port}")


def listen(host: str, port: int, backlog: int) -> Listeners:
    """Listen on every address that `host` stands for.

    Args:
        host: A name or an IP address.
        port: The TCP port; 0 for any that is free.
        backlog: Connections that may wait to be accepted.

    Raises:
        ServerError: That is not possible; the text is one line.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            # Port 0 has become another one with the first address.
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(socket.create_server((address[0], chosen, *address[2:]), family=family, backlog=backlog))
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    raise
    except OSError as exc:
        for each in sockets:
            each.close()
        raise ServerError(_explain(exc, host, port)) from exc
    if not sockets:
        raise ServerError(
            f"{host} is no address of this machine: write 127.0.0.1 for this machine alone, "
            "0.0.0.0 for all its addresses, or one of these"
        )
    name = sockets[0].getsockname()
    return Listeners(_url_host(host, name[0]), name[1], sockets)


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, _SocketAddress]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, ValueError) as exc:
        raise ServerError(
            f"host {host!r} does not resolve to an address: write 127.0.0.1 for this machine alone, "
            "0.0.0.0 for all its addresses, or a name of this machine"
        ) from exc
    return list(dict.fromkeys((family, cast("_SocketAddress", address)) for family, _, _, _, address in found))


def _explain(exc: OSError, host: str, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return f"port {port} on {host} is taken: stop what uses it, or write ws.run(port={other})"
    if isinstance(exc, PermissionError):
        return (
            f"port {port} on {host} needs privileges that this user does not have, as ports below 1024 do: "
            f"write ws.run(port={port + 8000 if port < 1024 else 8000}), with a proxy in front if it must be {port}"
        )
    return f"cannot listen on port {port} of {host}: {os.strerror(exc.errno or 0)}"


def _url_host(host: str, address: str) -> str:
    if ip_address(address).is_unspecified:
        host = "::1" if ":" in address else "127.0.0.1"
    return f"[{host}]" if ":" in host else host
