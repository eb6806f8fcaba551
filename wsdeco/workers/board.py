"""What each worker process shows to all others of one parent: some bytes, of which the last whole ones outlive it.

Each number of a worker has a block, which only the process that has the number writes into. It writes into two places
by turns, each with a checksum: one that is killed in the middle of it leaves the one before, and a reader sees nothing
half done, without a lock.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from wsdeco.workers.memory import Memory

__all__ = ["Board", "Place"]

_HEAD: Final = struct.Struct("<QII")
"""The head of a place: the number of the writing, how many bytes it has, and the checksum of both and of the bytes."""

_PLACE: Final = 16 * 1024
"""Bytes of a place, with its head."""

_BLOCK: Final = 1 + 2 * _PLACE
"""Bytes of a block: whether its process lives, and two places."""


class Board:
    """The blocks of all workers.

    Args:
        memory: Their memory, of `Board.create`.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    @classmethod
    def create(cls, workers: int) -> Board:
        """Return the blocks of so many workers, with nothing in them.

        Raises:
            ServerError: The system has no room.
        """
        return cls(Memory.create(workers * _BLOCK, "numbers"))

    def place(self, worker: int) -> Place:
        """Return what the worker of this number, from 1 on, writes into."""
        return Place(self._memory, worker)

    def note_death(self, worker: int) -> None:
        """Take in that the process of a worker is no more."""
        self._memory.bytes[(worker - 1) * _BLOCK] = 0

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()


class Place:
    """What one worker writes for all, and reads of all.

    Attributes:
        before: What the last process has left that had the number; empty for none.
    """

    def __init__(self, memory: Memory, worker: int) -> None:
        self._bytes = memory.bytes
        self._start = (worker - 1) * _BLOCK
        self.before: bytes
        self._count, self.before = self._read(self._start)

    def write(self, data: bytes) -> None:
        """Show these bytes from now on.

        Raises:
            ValueError: They are too many.
        """
        if len(data) > _PLACE - _HEAD.size:
            raise ValueError(f"no more than {_PLACE - _HEAD.size} bytes can be shown, not {len(data)}")
        count = self._count = self._count + 1
        start = self._start + 1 + count % 2 * _PLACE
        self._bytes[start : start + _HEAD.size + len(data)] = _HEAD.pack(count, len(data), _check(count, data)) + data
        self._bytes[self._start] = 1

    def read_all(self) -> list[tuple[bool, bytes]]:
        """Return whether each process lives, and what it shows or has shown last."""
        blocks = range(0, len(self._bytes), _BLOCK)
        return [(bool(self._bytes[start]), self._read(start)[1]) for start in blocks]

    def _read(self, block: int) -> tuple[int, bytes]:
        """Return the newest writing of a block that is whole: which it is, and its bytes."""
        return max(self._read_place(block + 1 + turn * _PLACE) for turn in (0, 1))

    def _read_place(self, start: int) -> tuple[int, bytes]:
        place = self._bytes[start : start + _PLACE]
        count, size, check = _HEAD.unpack_from(place)
        data = place[_HEAD.size : _HEAD.size + size]
        return (count, data) if check == _check(count, data) else (0, b"")


def _check(count: int, data: bytes) -> int:
    return zlib.crc32(data, count & 0xFFFFFFFF)
