"""Connections counted over all worker processes of one machine, for `max_connections_total`.

Each worker has a cell of its own for each thing that is counted, in memory that all of them share. Only one process at
a time writes into a cell, its worker, or the parent once that has died, so giving back needs no lock. To take, a worker
looks at the cells of all, under a lock that the system lets go of where its holder dies.
"""

from __future__ import annotations

import importlib.util
import logging
import mmap
import multiprocessing.reduction
import os
import struct
import tempfile
import time
from functools import partial
from hashlib import blake2b
from typing import Any, Final

from wsdeco.reasons import ServerError

__all__ = ["NoShare", "Share", "Totals", "has_locks", "no_locks"]

logger = logging.getLogger("wsdeco")

_CELL: Final = struct.Struct("I")

_KEY: Final = struct.Struct("4I")
"""What stands in front of the cells of a name: a hash of it, or zeros where there is none yet."""

_KEY_CELLS: Final = _KEY.size // _CELL.size

_NAMES: Final = 1024
"""How many names have cells of their own. Those beyond are counted together: that lets in too few, never too many."""

_ATTEMPTS: Final = 500
"""How often the lock is tried for, which is held for microseconds, unless its holder has been stopped."""

_POLL: Final = 0.0005
"""Seconds between two attempts."""


class Totals:
    """The cells of all workers. They reach a worker with the arguments of its process, and end with the last one."""

    def __init__(self, workers: int, descriptor: int) -> None:
        self._workers = workers
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _size(workers))
        self._cells = memoryview(self._memory).cast("I")

    @classmethod
    def create(cls, workers: int) -> Totals:
        """Return the cells of so many workers, with nothing taken.

        Raises:
            ServerError: The system has no room.
        """
        try:
            # Without a name, so that nobody has to remove it.
            with tempfile.TemporaryFile(buffering=0) as file:
                # No holes: a process ends where the disk is full when it writes into one.
                file.write(bytes(_size(workers)))
                return cls(workers, os.dup(file.fileno()))
        except OSError as exc:
            raise ServerError(f"there is no room for counting connections over all workers: {exc}") from exc

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self._workers, multiprocessing.reduction.DupFd(self._descriptor))

    def share(self, worker: int) -> Share:
        """Return what the worker of this number, from 1 on, takes."""
        return Share(self._cells, self._workers, worker, self._descriptor)

    def clear(self, worker: int) -> None:
        """Give back whatever a worker has taken, which has died."""
        mine = self._cells[_KEY_CELLS + worker - 1 :: _KEY_CELLS + self._workers]
        for index in range(_NAMES):
            mine[index] = 0

    def close(self) -> None:
        """Let go of the memory."""
        self._cells.release()
        self._memory.close()
        os.close(self._descriptor)


class Share:
    """What one worker has of the totals."""

    def __init__(self, cells: memoryview[int], workers: int, worker: int, descriptor: int) -> None:
        from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf  # noqa: PLC0415 - not everywhere

        self._cells = cells
        self._workers = workers
        self._worker = worker
        self._found: dict[str, int] = {}
        self._attempts = _ATTEMPTS
        # Unlike a lock of flock, this one is not inherited by the children of a worker, which may outlive it.
        self._try_lock = partial(lockf, descriptor, LOCK_EX | LOCK_NB)
        self._unlock = partial(lockf, descriptor, LOCK_UN)

    def take(self, name: str, total: int) -> bool:
        """Take one, if all workers have less than `total` of `name`; return whether that was so."""
        if not self.lock():
            return False
        try:
            first = self._found.get(name) or self._find(name)
            if sum(self._cells[first : first + self._workers]) >= total:
                return False
            self._cells[first + self._worker - 1] += 1
        finally:
            self._unlock()
        return True

    def give_back(self, name: str) -> None:
        """Give one back."""
        self._cells[self._found[name] + self._worker - 1] -= 1

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
            # This blocks the event loop: once, and not for each connection.
            self._attempts = 1
        return False

    def _find(self, name: str) -> int:
        key = memoryview(blake2b(name.encode(), digest_size=_KEY.size).digest()).cast("I")
        size = _KEY_CELLS + self._workers
        starts = range(0, _NAMES * size, size)
        start = next((each for each in starts if self._key_at(each) in (key, _NO_KEY)), starts[-1])
        if self._key_at(start) == _NO_KEY:
            self._cells[start : start + _KEY_CELLS] = key
        self._found[name] = start + _KEY_CELLS
        return start + _KEY_CELLS

    def _key_at(self, start: int) -> memoryview[int]:
        return self._cells[start : start + _KEY_CELLS]


class NoShare(Share):
    """Stands where a worker cannot have one."""

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
    """Return what is said of `max_connections_total` without them."""
    return ServerError(
        f"max_connections_total of {name} cannot be kept over several processes on this system, which has no fcntl "
        "locks: leave out workers, or write max_connections for each of them"
    )


_NO_KEY: Final = memoryview(bytes(_KEY.size)).cast("I")


def _size(workers: int) -> int:
    return _NAMES * (_KEY.size + workers * _CELL.size)


def _attach(workers: int, duplicate: Any) -> Totals:
    descriptor = duplicate.detach()
    # Programs that the worker starts have no business with it.
    os.set_inheritable(descriptor, False)
    return Totals(workers, descriptor)
