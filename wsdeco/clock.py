"""The clock that every deadline of a connection reads: the event loop's, or one that a test advances."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol, cast
from weakref import WeakValueDictionary, ref

from wsdeco.values import wrong_type

__all__ = [
    "Clock",
    "Deadline",
    "Due",
    "Timer",
    "Wheel",
    "running_loop",
    "seconds_until",
    "sleep",
    "wheel_of",
    "whole_seconds",
]

_MAX_LATENESS: Final = 0.5
"""Seconds by which a timer may be late before the event loop counts as having stood still."""
_SECOND_LOOK: Final = 0.1
"""Seconds that a loop which has stood still gets to read what has arrived meanwhile."""
_AT_ONCE: Final = 256
"""How many are told in one turn of the loop that their time has come: others wait for that."""
_FEW_TIMES: Final = 64
"""Times that may be kept although nobody waits for them any more."""


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


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that the caller runs in, if it does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


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
        raise wrong_type("a time", "seconds since 1970, such as time.time() + 3600, or a datetime", when)
    if not math.isfinite(when):
        raise ValueError(f"a time must be finite, not {when!r}: write None for no end")
    return max(0.0, when - time.time())


def whole_seconds(seconds: float) -> int:
    """Return `seconds` rounded up to whole ones, 1 at least, as header fields have them and uvicorn takes them.

    The fields are those of RFC 9110, section 10.2.3.
    """
    return max(1, math.ceil(seconds))


class Due(Protocol):
    """What waits for a time of a clock, on its `Wheel`.

    Attributes:
        due: The time; `None` while it waits for none. Set by the wheel alone.
    """

    due: float | None

    def time_over(self, now: float) -> None:
        """The time has come, and `due` is `None` again.

        Args:
            now: The present time, and no less than what was waited for: timers may be early by a rounding.
        """


class Wheel:
    """Tells everything that waits for a time of one clock, by one timer.

    What waits takes about 60 bytes here, a twelfth of a timer of the event loop. Times are exact: nobody is told
    early, or later than the timer comes.

    A loop that stood still (a stopped process, a hook that blocked) runs its timers before it reads what has arrived
    meanwhile, so a peer would be judged by a silence that was not its own. When the timer is late, the wheel therefore
    gives the loop a moment to read, once. It tells everything that is due afterwards, even if it is late again then.

    Args:
        clock: Where time and the timer come from.
        loop: The event loop that runs, if one does.

    Attributes:
        clock: The clock.
        loop: The event loop.
    """

    __slots__ = ("__weakref__", "_has_read", "_ready", "_timer", "_timer_due", "_times", "_waiting", "clock", "loop")

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.clock: Clock = clock
        # Held, so that no other one gets its number while the wheel is found by it.
        self.loop: asyncio.AbstractEventLoop | None = loop
        # Mostly one object waits for a time. Nothing is kept of one that waits no more: it may be an ended connection.
        self._waiting: dict[float, Due | dict[Due, None]] = {}
        # A heap of the keys above, with some that are there no more.
        self._times: list[float] = []
        # What is due and has yet to be told, the last one first.
        self._ready: dict[Due, None] = {}
        self._timer: Timer | None = None
        self._timer_due: float = math.inf
        # Whether the timer is one that gave the loop a moment to read.
        self._has_read = False

    def set(self, waiting: Due, due: float | None) -> None:
        """Tell `waiting` at the time `due`, and not at the one it has waited for; `None` tells it no more."""
        if waiting.due == due:
            return
        if waiting.due is not None:
            self._remove(waiting, waiting.due)
        waiting.due = due
        if due is None:
            if self._timer is not None and not self._waiting and not self._ready:
                self._timer.cancel()
                self._timer, self._timer_due, self._has_read = None, math.inf, False
                self._times.clear()
            return
        others = self._waiting.get(due)
        if others is None:
            self._waiting[due] = waiting
            self._add_time(due)
        elif isinstance(others, dict):
            others[waiting] = None
        else:
            self._waiting[due] = {others: None, waiting: None}
        if due < self._timer_due:
            self._set_timer(due)

    def _remove(self, waiting: Due, due: float) -> None:
        others = self._waiting.get(due)
        if others is waiting:
            del self._waiting[due]
        elif isinstance(others, dict) and waiting in others:
            del others[waiting]
            if not others:
                del self._waiting[due]
        else:
            # It waits for the turn in which it is told, or on a wheel that has gone with its event loop.
            self._ready.pop(waiting, None)

    def _add_time(self, due: float) -> None:
        times = self._times
        if len(times) > _FEW_TIMES and 4 * len(times) > 5 * len(self._waiting):
            # A dictionary keeps the room of what was in it, until it is copied.
            self._waiting = dict(self._waiting)
            times[:] = self._waiting
            heapq.heapify(times)
        else:
            heapq.heappush(times, due)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self.clock.call_at(due, self._run)

    def _run(self) -> None:
        self._timer = None
        now = max(self.clock.time(), self._timer_due)
        self._has_read = not self._has_read and now - self._timer_due > _MAX_LATENESS
        if self._has_read:
            self._set_timer(now + _SECOND_LOOK)
            return
        # No timer is set meanwhile.
        self._timer_due = -math.inf
        ready = self._ready
        if not ready:
            self._take_due(now)
        try:
            for _ in range(_AT_ONCE):
                if not ready:
                    break
                waiting, _ = ready.popitem()
                waiting.due = None
                waiting.time_over(now)
        finally:
            self._set_next_timer(now)

    def _take_due(self, now: float) -> None:
        times = self._times
        due: list[Due] = []
        while times and times[0] <= now:
            who = self._waiting.pop(heapq.heappop(times), None)
            if isinstance(who, dict):
                due.extend(who)
            elif who is not None:
                due.append(who)
        self._ready.update(dict.fromkeys(reversed(due)))

    def _set_next_timer(self, now: float) -> None:
        times = self._times
        while times and times[0] not in self._waiting:
            heapq.heappop(times)
        self._timer_due = math.inf
        if self._ready:
            self._set_timer(now)
        elif times:
            self._set_timer(times[0])


_wheels: Final[WeakValueDictionary[tuple[int, int], Wheel]] = WeakValueDictionary()

_newest: Final[list[Callable[[], Wheel | None]]] = [lambda: None]
"""Of those above, the one that was found last: a connection asks several times, and mostly there is one."""


def wheel_of(clock: Clock) -> Wheel:
    """Return the wheel of a clock in the event loop that runs. It lives as long as somebody waits.

    A clock that is no event loop may serve several of them, one after the other or in several threads. The timers that
    it has set in one end with that.
    """
    newest = _newest[0]()
    if newest is not None and newest.clock is clock and newest.loop is clock:
        return newest
    loop = running_loop()
    # A wheel that lives holds both, so no other object can have the number of one.
    place = id(clock), id(loop)
    wheel = _wheels.get(place)
    if wheel is None:
        wheel = _wheels[place] = Wheel(clock, loop)
    _newest[0] = ref(wheel)
    return wheel


class Deadline:
    """A single call at a time of a clock, on its `Wheel`.

    Args:
        clock: Where time comes from.
        seconds: Time until the deadline.
        action: Called once the deadline is over.

    Attributes:
        due: The time it waits for; `None` when it is over or cancelled.
    """

    __slots__ = ("_action", "_wheel", "due")

    def __init__(self, clock: Clock, seconds: float, action: Callable[[], object]) -> None:
        self._wheel = wheel_of(clock)
        # Dropped when it is over: it refers to an object that may refer to this one.
        self._action: Callable[[], object] | None = action
        self.due: float | None = None
        self._wheel.set(self, clock.time() + seconds)

    @property
    def left(self) -> float:
        """Seconds until it is over, 0 at least."""
        return 0.0 if self.due is None else max(0.0, self.due - self._wheel.clock.time())

    def cancel(self) -> None:
        """Make sure that the action is not called any more."""
        self._action = None
        if self.due is not None:
            self._wheel.set(self, None)

    def time_over(self, now: float) -> None:
        """Call the action."""
        action, self._action = cast("Callable[[], object]", self._action), None
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
