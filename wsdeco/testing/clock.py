"""A clock that stands still until a test advances it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["ManualClock"]

_SETTLE_TURNS: Final = 50


class ManualClock:
    """A clock that stands still until a test advances it; pass it as `App(clock=...)`."""

    def __init__(self, start: float = 0.0) -> None:
        """Start at `start` seconds."""
        self._now = start
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def time(self) -> float:
        """Return the present time in seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> _ManualTimer:
        """Call `callback` once the clock has been advanced to `when`; soon, if it has been already."""
        timer = _ManualTimer(when, callback)
        if when <= self._now:
            asyncio.get_running_loop().call_soon(timer.fire)
        else:
            heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: every timer due in them fires at its time, and what it wakes runs on.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock advances by 0 seconds or more, not by {seconds!r}")
        end = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            timer.fire()
            await self.settle()
        self._now = end
        await self.settle()

    async def settle(self) -> None:
        """Let the tasks of the event loop run until, as a rule, all of them wait."""
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)

    @property
    def pending(self) -> int:
        """How many timers wait."""
        return sum(not timer.cancelled for _, _, timer in self._timers)


@dataclass(eq=False, slots=True)
class _ManualTimer:
    when: float
    callback: Callable[[], object] | None

    @property
    def cancelled(self) -> bool:
        return self.callback is None

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()
