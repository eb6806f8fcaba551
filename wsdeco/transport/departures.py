"""Notices peers that leave while nothing is read from them (Linux).

A connection whose inbox is full is not read, so the loop has it no longer in its selector: the FIN or RST of its peer
would be seen when somebody reads again, which a hook that hangs never lets anybody do. The kernel knows of it all the
same, whatever waits to be read in front of it, and an `epoll` of its own tells.

Nor can the answers of such a peer to pings be read. But its system acknowledges each ping, as long as there is one:
`has_vanished` asks TCP.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, Final, Protocol, cast

__all__ = ["Departures", "has_vanished"]

_EVENTS: Final[int] = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLONESHOT", 0)
"""EPOLLERR and EPOLLHUP are reported without being asked for."""

_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_INFO_HEAD: Final = struct.Struct("=xxBB52xI")
"""The head of Linux's `struct tcp_info`, of which three fields are read.

Those are `tcpi_retransmits` and `tcpi_probes`, time-outs of a segment or of a probe of the window that nothing has
answered yet, and `tcpi_last_ack_recv`, the milliseconds since anything was acknowledged.
"""


def has_vanished(transport: asyncio.BaseTransport, seconds: float) -> bool:
    """Return whether TCP has heard nothing of the peer for `seconds`, though it has asked again.

    `False` if the system does not tell.

    Args:
        transport: A transport to which something was written at least `seconds` ago.
        seconds: How long the peer may be silent.
    """
    opened: socket.socket | None = transport.get_extra_info("socket")
    if _TCP_INFO is None or opened is None:
        return False
    try:
        info = opened.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_HEAD.size)
    except OSError:
        # A Unix socket has no TCP, and its peer cannot vanish.
        return False
    retransmits, probes, since_ack = cast("tuple[int, int, int]", _INFO_HEAD.unpack(info))
    # Only the second probe is sent since the first one was not answered.
    return since_ack >= seconds * 1000 and (retransmits > 0 or probes > 1)


class Watched(Protocol):
    """A connection that is not read at present."""

    transport: asyncio.Transport

    def peer_left(self) -> None:
        """The peer has ended its side, behind what waits to be read."""


class Departures:
    """Notices which peers of one server leave.

    Args:
        loop: The event loop of the server.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll: Any = None
        self._watched: dict[Watched, int] = {}
        self._by_descriptor: dict[int, Watched] = {}
        self._left: set[Watched] = set()

    def watch(self, connection: Watched) -> None:
        """Tell `connection` when its peer leaves, which may be at once, until it is discarded."""
        if connection in self._left:
            connection.peer_left()
        elif connection not in self._watched and _EVENTS:
            opened: socket.socket | None = connection.transport.get_extra_info("socket")
            if opened is not None:
                self._register(connection, opened.fileno())

    def _register(self, connection: Watched, descriptor: int) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._look)
        with suppress(OSError):
            self._epoll.register(descriptor, _EVENTS)
            self._watched[connection] = descriptor
            self._by_descriptor[descriptor] = connection

    def discard(self, connection: Watched) -> None:
        """Watch `connection` no more."""
        self._left.discard(connection)
        descriptor = self._watched.pop(connection, None)
        if descriptor is None:
            return
        del self._by_descriptor[descriptor]
        with suppress(OSError):
            self._epoll.unregister(descriptor)
        if not self._watched:
            # A peer seldom floods a hook, so the next one may make a new epoll.
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _look(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            connection = self._by_descriptor[descriptor]
            self._left.add(connection)
            connection.peer_left()
