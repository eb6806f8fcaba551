"""The clock that every deadline of a connection reads: the event loop's, or one that a test advances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "Timer"]


class Timer(Protocol):
    """A callback that waits for its time; `asyncio.TimerHandle` is one."""

    def cancel(self) -> None:
        """Make sure that the callback is not called any more."""


class Clock(Protocol):
    """The part of `asyncio.AbstractEventLoop` that deadlines need, so that any event loop is a clock."""

    def time(self) -> float:
        """Return the present time in seconds of a monotonic scale."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call `callback` once `time()` has reached `when`."""
        ...
