"""Small reads, for connections of which little may be held.

An event loop reads 256 KiB at once. Of a flood of tiny messages nearly all of that waits for hooks, on each connection:
more than all the limits of a small route together. Smaller reads leave it to the system, and so to the peer. Each costs
a further call, so no other connection has them.
"""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["READ_SIZE", "SmallReads"]

READ_SIZE: Final = 16 * 1024
"""Bytes of one read."""


class SmallReads(asyncio.BufferedProtocol):
    """Stands between a transport and its protocol.

    Args:
        protocol: Gets all calls.
        buffer: What is read into; one for all connections of an event loop, as each read is passed on at once.
    """

    __slots__ = ("_buffer", "_protocol")

    def __init__(self, protocol: asyncio.Protocol, buffer: bytearray) -> None:
        self._protocol = protocol
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return the buffer for the next read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes from the peer are in the buffer."""
        self._protocol.data_received(bytes(memoryview(self._buffer)[:nbytes]))

    def eof_received(self) -> bool | None:
        """The peer has ended its stream."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is lost."""
        self._protocol.connection_lost(exc)
