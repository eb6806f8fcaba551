"""The other worker processes at the same address: what waits for one that hangs or has died, others take."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from wsdeco.server.descriptors import Descriptors

__all__ = ["Neighbours"]


class Neighbours:
    """The sockets of the other workers, as one of them sees these.

    Args:
        shares: The sockets of each.
        protocol: Makes the protocol of a connection.
        tls: The arguments of the event loop for TLS.
        descriptors: Told if there are none left.
        at_once: How many connections are taken from a socket at a look.
    """

    def __init__(
        self,
        shares: Sequence[Sequence[socket.socket]],
        protocol: Callable[[], asyncio.BaseProtocol],
        tls: dict[str, Any],
        descriptors: Descriptors,
        at_once: int = 64,
    ) -> None:
        self._at_once = at_once
        self._sockets = {each.fileno(): each for each in chain(*shares)}
        for each in self._sockets.values():
            each.setblocking(False)
        self._protocol = protocol
        self._tls = tls
        self._descriptors = descriptors
        self._waiting: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def look(self) -> None:
        """Take the clients of a neighbour that has let some wait since the last look; from the event loop."""
        if not self._sockets:
            return
        poll = select.poll()
        for descriptor in self._sockets:
            poll.register(descriptor, select.POLLIN)
        # One that is not listened on yet reports its end.
        waiting = {descriptor for descriptor, events in poll.poll(0) if events == select.POLLIN}
        for descriptor in waiting & self._waiting:
            self._take_from(self._sockets[descriptor])
        self._waiting = waiting

    def _take_from(self, listener: socket.socket) -> None:
        try:
            for _ in range(self._at_once):
                accepted = listener.accept()[0]
                task = asyncio.create_task(self._serve(accepted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except BlockingIOError:
            # The neighbour has taken them itself.
            pass
        except OSError as exc:
            # Others say that a client has gone.
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                self._descriptors.missed(exc)

    async def _serve(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, accepted, **self._tls)
        except OSError:
            # A client may go before its connection is made, or not know TLS.
            accepted.close()

    def close(self) -> None:
        """Take no more of them."""
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()
