"""Connections counted over all worker processes of one machine: of routes in total, and of their clients.

Each worker has a cell of its own for each name that is counted, in memory that all of them share. Only one process at
a time writes into a cell, its worker, or the parent once that has died, so giving back needs no lock. To take, a worker
looks at the cells of all, under a lock that the system lets go of if its holder dies. If nobody has taken any of
a name, another one may have its cells: a name has one set of cells at most, among those that its hash allows.
"""

from __future__ import annotations

import importlib.util
import logging
import struct
import time
from functools import partial
from hashlib import blake2b
from typing import Any, Final

from wsdeco.reasons import ServerError
from wsdeco.workers.memory import Memory

__all__ = ["CLIENTS", "ROUTES", "NoShare", "Share", "Totals", "has_locks", "no_locks"]

logger: Final = logging.getLogger("wsdeco")

_CELL: Final = struct.Struct("I")

_KEY: Final = 16
"""Bytes of the hash of a name that stand in front of its cells."""

_KEY_CELLS: Final = _KEY // _CELL.size

ROUTES: Final = 1024
"""How many names can be counted at a time, if no route limits its clients."""

CLIENTS: Final = 128 * 1024
"""How many names can be counted at a time, if a route limits its clients."""

_WINDOW: Final = 128
"""Among how many sets of cells a name looks for its own."""

_ATTEMPTS: Final = 500
"""How often the lock is tried for, which is held for microseconds, unless its holder has been stopped."""

_POLL: Final = 0.0005
"""Seconds between two attempts."""


class Totals:
    """The cells of all workers. They reach a worker with the arguments of its process, and end with the last one."""

    def __init__(self, workers: int, names: int, memory: Memory) -> None:
        self._workers = workers
        self._names = names
        self._memory = memory
        self._cells = memoryview(memory.bytes).cast("I")

    @classmethod
    def create(cls, workers: int, names: int = ROUTES) -> Totals:
        """Return the cells of so many workers, with nothing taken.

        Args:
            workers: How many there are.
            names: How many names can be counted at a time.

        Raises:
            ServerError: The system has no room.
        """
        size = names * (_KEY + workers * _CELL.size)
        return cls(workers, names, Memory.create(size, "counting connections"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Totals, (self._workers, self._names, self._memory)

    def share(self, worker: int) -> Share:
        """Return what the worker of this number, from 1 on, takes."""
        return Share(self._memory, self._cells, self._workers, worker)

    def note_death(self, worker: int) -> None:
        """Give back whatever a worker has taken, which has died."""
        size = _KEY_CELLS + self._workers
        for index in range(_KEY_CELLS + worker - 1, self._names * size, size):
            self._cells[index] = 0

    def close(self) -> None:
        """Let go of the memory."""
        self._cells.release()
        self._memory.close()


class Share:
    """What one worker has of the totals."""

    def __init__(self, memory: Memory, cells: memoryview[int], workers: int, worker: int) -> None:
        from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf  # noqa: PLC0415 - not everywhere

        self._memory = memory.bytes
        self._cells = cells
        self._workers = workers
        self._worker = worker
        self._size = _KEY_CELLS + workers
        self._held: dict[str, int] = {}
        self._attempts = _ATTEMPTS
        self._is_full = False
        # Unlike a lock of flock, this one is not inherited by the children of a worker, which may outlive it.
        self._try_lock = partial(lockf, memory.descriptor, LOCK_EX | LOCK_NB)
        self._unlock = partial(lockf, memory.descriptor, LOCK_UN)

    def take(self, name: str, total: int) -> bool:
        """Take one, if all workers have less than `total` of `name`; return whether that was so."""
        if not self.lock():
            return False
        try:
            first = self._held.get(name)
            if first is None:
                first = self._find(name)
            if first is None or sum(self._cells[first : first + self._workers]) >= total:
                return False
            self._cells[first + self._worker - 1] += 1
            self._held[name] = first
        finally:
            self._unlock()
        return True

    def give_back(self, name: str) -> None:
        """Give one back."""
        cell = self._held[name] + self._worker - 1
        if self._cells[cell] == 1:
            # From here on another name may take these cells.
            del self._held[name]
        self._cells[cell] -= 1

    def lock(self) -> bool:
        """Have the lock, unless another process does not let go of it; return whether that was so."""
        for _ in range(self._attempts):
            try:
                self._try_lock()
            except OSError:
                time.sleep(_POLL)
            else:
                self._attempts = _ATTEMPTS
                return True
        if self._attempts > 1:
            logger.warning("connections over all workers cannot be counted: is a worker process stopped?")
            # This blocks the event loop, once for each worker.
            self._attempts = 1
        return False

    def _find(self, name: str) -> int | None:
        """Return the first cell of a name, or of one that nobody has any of; `None` if there is no room."""
        key = blake2b(name.encode(errors="surrogatepass"), digest_size=_KEY).digest()
        names = len(self._cells) // self._size
        first = int.from_bytes(key[:4], "little") % max(1, names - _WINDOW)
        begin, end = (each * self._size * _CELL.size for each in (first, min(names, first + _WINDOW)))
        found = self._memory.find(key, begin, end)
        if found >= 0:
            return found // _CELL.size + _KEY_CELLS
        for start in range(begin // _CELL.size + _KEY_CELLS, end // _CELL.size, self._size):
            if not any(self._cells[start : start + self._workers]):
                self._memory[(start - _KEY_CELLS) * _CELL.size : start * _CELL.size] = key
                return start
        if not self._is_full:
            self._is_full = True
            logger.warning("no more than %d clients and routes can be counted over all workers at a time", names)
        return None


class NoShare(Share):
    """Stands in for one that a worker cannot have."""

    def __init__(self) -> None:
        """Need nothing."""

    def take(self, name: str, total: int) -> bool:
        """Refuse to count.

        Raises:
            ServerError: Always.
        """
        raise no_locks(name)


def has_locks() -> bool:
    """Return whether the system has the locks for it; Windows has not."""
    return importlib.util.find_spec("fcntl") is not None


def no_locks(name: str) -> ServerError:
    """Return what is said of limits over all workers without them."""
    return ServerError(
        f"the connections of {name} cannot be counted over several processes on this system, which has no fcntl locks: "
        "leave out workers, or write max_connections in the place of max_connections_total and "
        "max_connections_per_client"
    )
