"""The clock that every deadline of a connection reads: the event loop's, or one that a test advances."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol, cast

__all__ = ["Clock", "Deadline", "Timer", "seconds_until", "sleep"]

_MAX_LATENESS: Final = 0.5
"""Seconds by which a timer may be late before the event loop counts as having stood still."""
_SECOND_LOOK: Final = 0.1
"""Seconds that a loop which has stood still gets to read what has arrived meanwhile."""


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


def seconds_until(when: float | datetime) -> float:
    """Return the seconds until a time of the calendar; 0 if it is over.

    Args:
        when: Seconds since 1970, or a `datetime` with a time zone.

    Raises:
        TypeError: It is no time.
        ValueError: It has no time zone, or is not finite.
    """
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise ValueError(f"a time needs its zone, such as datetime.now(UTC) + timedelta(hours=1), not {when!r}")
        when = when.timestamp()
    elif isinstance(when, bool) or not isinstance(when, int | float):
        raise TypeError(
            f"a time must be seconds since 1970, such as time.time() + 3600, or a datetime, not "
            f"{type(when).__name__}: {when!r}"
        )
    if not math.isfinite(when):
        raise ValueError(f"a time must be finite, not {when!r}: write None for no end")
    return max(0.0, when - time.time())


class Deadline:
    """A timer that is not fooled by a loop that stood still: a stopped process, a hook that blocked.

    Such a loop runs its timers before it reads what has arrived meanwhile, so a peer would be judged by a silence that
    was not its own. A late timer therefore gives the loop a moment to read, and only then calls its action.

    Args:
        clock: Where time and timers come from.
        seconds: Time until the deadline.
        action: Called once the deadline is over.
    """

    __slots__ = ("_action", "_clock", "_due", "_timer")

    def __init__(self, clock: Clock, seconds: float, action: Callable[[], object]) -> None:
        self._clock = clock
        self._due = clock.time() + seconds
        # Gone when it is over: each refers to an object that may refer to this one.
        self._action: Callable[[], object] | None = action
        self._timer: Timer | None = clock.call_at(self._due, self._judge)

    @property
    def left(self) -> float:
        """Seconds until it is over, 0 at least."""
        return max(0.0, self._due - self._clock.time())

    def cancel(self) -> None:
        """Make sure that the action is not called any more."""
        timer, self._timer, self._action = self._timer, None, None
        if timer is not None:
            timer.cancel()

    def _judge(self) -> None:
        now = self._clock.time()
        if now - self._due > _MAX_LATENESS:
            self._due = now + _SECOND_LOOK
            self._timer = self._clock.call_at(self._due, self._judge)
            return
        action, self._action, self._timer = cast("Callable[[], object]", self._action), None, None
        action()


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait until `seconds` of `clock` are over."""
    over = asyncio.Event()
    wake: Callable[[], object] = over.set
    timer = clock.call_at(clock.time() + seconds, wake)
    try:
        await over.wait()
    finally:
        timer.cancel()
