"""From an address to sockets that listen, or to one line that says why they cannot."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import chain
from typing import Final, TypeAlias, cast

from wsdeco.origins import is_loopback
from wsdeco.reasons import ServerError
from wsdeco.server.inherited import activated_descriptors, socket_of
from wsdeco.server.local import listen_on_path, remove
from wsdeco.values import within

__all__ = ["Listeners", "check_address", "inherit", "inherit_activated", "listen", "listen_on"]

_SocketAddress: TypeAlias = tuple[str | int, ...]
"""Host, port and, for IPv6, what else `socket.getaddrinfo` gives."""

_Address: TypeAlias = tuple[socket.AddressFamily, _SocketAddress]

_TRIES: Final = 5

_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""What the addresses of a machine fail with elsewhere, and those of a family that this machine does not have."""

_DEALS_OUT: Final = sys.platform == "linux"
"""Whether SO_REUSEPORT deals connections out to all sockets of an address, and not to the last one alone."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of one server: a name such as `localhost` may stand for several addresses.

    Attributes:
        host: The host to put into a URL; empty if the first socket is a Unix socket.
        port: The port of all of them, or of the first; 0 if that is a Unix socket.
        sockets: The sockets.
        others: Those of the other worker processes, which have sockets of their own at the same addresses.
        process: The process that has opened them. Workers have them as well, and so do children that hooks fork.
        path: The file of the first one, if it is a Unix socket.
        is_inherited: Another program has opened them, and goes on listening when this one has ended.
    """

    host: str
    port: int
    sockets: list[socket.socket]
    others: list[list[socket.socket]] = field(default_factory=list[list[socket.socket]])
    process: int = field(default_factory=os.getpid)
    path: str = ""
    is_inherited: bool = False

    def url(self, scheme: str) -> str:
        """Return the address of the first one; nginx writes that of a Unix socket the same way."""
        return f"unix:{self.path}" if self.path else f"{scheme}://{self.host}:{self.port}"

    @property
    def names(self) -> list[str]:
        """The addresses of all of them."""
        return [_address_of(each) for each in self.sockets]

    @property
    def are_local(self) -> bool:
        """Whether all of them are Unix sockets: whoever connects is a program of this machine."""
        return bool(self.sockets) and all(map(_is_local, self.sockets))

    @property
    def are_on_loopback(self) -> bool:
        """Whether browsers of this machine reach them, and those of no other."""
        return bool(self.sockets) and all(
            not _is_local(each) and is_loopback(each.getsockname()[0]) for each in self.sockets
        )

    def refuse(self) -> None:
        """Take no more connections, also if a forked child holds the sockets; no worker can refuse for all."""
        # Sockets of another program would be shut down for its next server too.
        if self.process == os.getpid() and not self.is_inherited:
            for each in self.sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def of_worker(self, place: int) -> Listeners:
        """Return the same from the view of one of the worker processes.

        Args:
            place: Which of them, from 0 on.
        """
        if not self.others:
            return self
        shares = [self.sockets, *self.others]
        return replace(self, sockets=shares.pop(place), others=shares)

    def close(self) -> None:
        """Close the sockets."""
        for each in chain(self.sockets, *self.others):
            each.close()

    def remove(self) -> None:
        """Close the sockets, and remove the file of a Unix socket that is no more listened on."""
        self.close()
        if self.path and self.process == os.getpid() and not self.is_inherited:
            remove(self.path)


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
    within("port", port, 0, 65535)


def listen(host: str, port: int, backlog: int, processes: int = 1) -> Listeners:
    """Listen on every address that `host` stands for.

    On Linux each of several processes has sockets of its own, to which the kernel deals out the clients evenly: with a
    socket for all of them, whoever wakes first takes what comes. One that is not listened on yet gets none.

    Args:
        host: A name or an IP address.
        port: The TCP port; 0 for any that is free.
        backlog: Connections that may wait to be accepted.
        processes: How many processes are to accept them.

    Raises:
        ServerError: That is not possible; the text is one line.
    """
    try:
        addresses = _addresses(host, port)
        sockets = _listen_on_any_port(addresses, backlog) if port == 0 else _listen_on_all(addresses, port, backlog)
        # Now nobody else has the port, which sockets that may share it would not tell.
        sockets, *others = _dealt_out(sockets, processes, backlog) if processes > 1 and _DEALS_OUT else (sockets,)
    except OSError as exc:
        raise ServerError(_explain(exc, host, port)) from exc
    if not sockets:
        raise ServerError(
            f"{host} is no address of this machine: write 127.0.0.1 for this machine alone, "
            "0.0.0.0 for all its addresses, or one of these"
        )
    name = sockets[0].getsockname()
    return Listeners(_url_host(host, name[0]), name[1], sockets, others)


def _dealt_out(sockets: list[socket.socket], processes: int, backlog: int) -> list[list[socket.socket]]:
    """Close the sockets, and return others at their addresses for each process; those of the first one listen."""
    places = [(each.family, each.getsockname()) for each in sockets]
    for each in sockets:
        each.close()
    shares: list[list[socket.socket]] = [[] for _ in range(processes)]
    try:
        for share in shares:
            for family, place in places:
                share.append(made := socket.socket(family))
                _let_share(made)
                made.bind(place)
        for each in shares[0]:
            each.listen(backlog)
    except OSError:
        for each in chain(*shares):
            each.close()
        raise
    return shares


def _let_share(made: socket.socket) -> None:
    """Let a socket be bound to the same address as others of this user."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if made.family == socket.AF_INET6:
        # As `create_server` has it: IPv4 is an address of its own.
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _listen_on_any_port(addresses: list[_Address], backlog: int) -> list[socket.socket]:
    for _ in range(_TRIES):
        try:
            return _listen_on_all(addresses, 0, backlog)
        except OSError as exc:
            # The system picks a port that is free on the first address; another program may have it on the next one.
            if exc.errno != errno.EADDRINUSE:
                raise
    return _listen_on_all(addresses, 0, backlog)


def _listen_on_all(addresses: list[_Address], port: int, backlog: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            # Port 0 has become another one with the first address.
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(socket.create_server((address[0], chosen, *address[2:]), family=family, backlog=backlog))
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    raise
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def listen_on(path: str, permissions: int, backlog: int) -> Listeners:
    """Listen on a Unix socket, as `listen_on_path` does.

    Raises:
        ServerError: As `listen_on_path`.
    """
    return Listeners("", 0, [listen_on_path(path, permissions, backlog)], path=path)


def inherit(descriptor: int) -> Listeners:
    """Return the socket behind a descriptor, which stays open when the server ends.

    Raises:
        ServerError: It is no socket that can listen.
    """
    try:
        # It may belong to an object that closes it.
        copy = os.dup(descriptor)
    except OSError as exc:
        raise ServerError(f"fd={descriptor} is no open file: nobody has handed it to this process") from exc
    return _inherited([socket_of(copy, f"fd={descriptor}")])


def inherit_activated() -> Listeners | None:
    """Return the sockets that systemd has opened for this process; `None` if there are none, or they are taken already.

    Raises:
        ServerError: One of them is no socket that can listen.
    """
    sockets = [socket_of(each, f"descriptor {each}, which systemd has opened,") for each in activated_descriptors()]
    return _inherited(sockets) if sockets else None


def _inherited(sockets: list[socket.socket]) -> Listeners:
    first = sockets[0].getsockname()
    if _is_local(sockets[0]):
        return Listeners("", 0, sockets, path=_path(first), is_inherited=True)
    return Listeners(_url_host(first[0], first[0]), first[1], sockets, is_inherited=True)


def _is_local(listener: socket.socket) -> bool:
    return listener.family == getattr(socket, "AF_UNIX", None)


def _path(name: str | bytes) -> str:
    # As `ss` and systemd write a name that is no file.
    return name if isinstance(name, str) else f"@{name[1:].decode(errors='replace')}"


def _address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{_path(name)}" if _is_local(listener) else f"{_url_host(name[0], name[0])}:{name[1]}"


def _addresses(host: str, port: int) -> list[_Address]:
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
