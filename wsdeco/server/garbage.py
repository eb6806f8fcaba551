"""When the garbage collector looks for cycles, in a process that does nothing but serve."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from wsdeco.server.memory import STATM, Memory

__all__ = ["collect_garbage_rarely"]

_YOUNGEST: Final = 20_000
"""Objects made and not gone after which the garbage collector has a look."""

_GROWTH: Final = 32 * 1024 * 1024
"""Bytes by which the process may grow until young objects are looked at, however few there are."""

_OLD_GROWTH: Final = 1.5
"""Times the memory since all objects were looked at last, past which they are looked at again."""


@contextmanager
def collect_garbage_rarely(statm: Path = STATM) -> Generator[Callable[[], None]]:
    """Have the garbage collector look for cycles less often; what the context is must be called several times a second.

    What one turn of the loop makes for thousands of messages is gone with the next. But the collector counts what has
    been made, and would look at all connections again and again: a fifth of the time at 10,000 of them.

    The count says nothing of sizes: a cycle of three objects may hold a message of a megabyte. So the collector looks
    as well when the process has grown. A program that has chosen a higher threshold, or switched the collector off,
    keeps that, and so does one on a system that does not tell its memory.

    Args:
        statm: The file that says how much memory the process has.
    """
    youngest, *older = before = gc.get_threshold()
    with ExitStack() as stack:
        try:
            memory = stack.enter_context(Memory(statm))
        except OSError:
            memory = None
        if memory is None or not 0 < youngest < _YOUNGEST or not gc.isenabled():
            yield lambda: None
            return
        gc.set_threshold(_YOUNGEST, *older)
        stack.callback(gc.set_threshold, *before)
        yield _Watch(memory).look


class _Watch:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._least = self._least_since_all = memory.resident

    def look(self) -> None:
        now = self._memory.resident
        if now > self._least_since_all * _OLD_GROWTH + _GROWTH:
            gc.collect()
            self._least = self._least_since_all = self._memory.resident
        elif now > self._least + _GROWTH:
            gc.collect(1)
            self._least = self._memory.resident
        else:
            self._least = min(self._least, now)
            self._least_since_all = min(self._least_since_all, now)
