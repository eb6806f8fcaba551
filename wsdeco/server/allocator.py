"""Memory for large messages, if the allocator is glibc's: kept while they come, given back when they are over.

glibc returns the pages of what is freed at the top of its heap, and maps what is larger than 128 KiB each time. A
message of 1 MiB is read, handed over, answered and freed within a millisecond; 400 of its pages came from the kernel
again for the next one, which was half of all its time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from wsdeco.server.memory import STATM, Memory

__all__ = ["keep_pages"]

_M_TOP_PAD: Final = -2
"""For `mallopt(3)`: bytes that stay at the top of the heap, and by which it grows beyond what is needed."""
_M_MMAP_THRESHOLD: Final = -3
"""For `mallopt(3)`: bytes from which what is allocated gets a mapping of its own."""
_DEFAULT: Final = 128 * 1024
_MOST: Final = 32 * 1024 * 1024
"""Two of the largest messages, and the most that glibc takes for a threshold."""

_TICKS: Final = 50
"""Calls between two looks, ten of which come in a second."""
_GROWTH: Final = 2 * 1024 * 1024
"""Bytes by which the process may grow until the allocator is asked to give pages back."""


@contextmanager
def keep_pages(statm: Path = STATM) -> Generator[Callable[[], None]]:
    """Have glibc keep the pages of large messages; what the context is must be called ten times a second.

    Someone who has set up the allocator in the environment (`mallopt(3)`) keeps that.

    Args:
        statm: The file that says how much memory the process has.
    """
    libc = _libc()
    if libc is None:
        yield lambda: None
        return
    _set(libc, _MOST)
    try:
        with Memory(statm) as memory:
            yield _Watch(libc, memory).look
    finally:
        _set(libc, _DEFAULT)
        libc.malloc_trim(0)


def _libc() -> Any:
    is_set_up = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or is_set_up:
        return None
    # Not at the top: only a server on Linux needs it.
    import ctypes  # noqa: PLC0415

    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _set(libc: Any, size: int) -> None:
    libc.mallopt(_M_TOP_PAD, size)
    libc.mallopt(_M_MMAP_THRESHOLD, size)


class _Watch:
    def __init__(self, libc: Any, memory: Memory) -> None:
        self._libc = libc
        self._memory = memory
        self._ticks = 0
        self._least = memory.resident

    def look(self) -> None:
        self._ticks += 1
        if self._ticks % _TICKS:
            return
        now = self._memory.resident
        if now > self._least + _GROWTH:
            self._libc.malloc_trim(0)
            self._least = self._memory.resident
        else:
            self._least = min(self._least, now)
