"""The time that each run of `on_message` has: `message_timeout`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from wsdeco.clock import Clock
from wsdeco.connection.limits import CANCEL_AGAIN

__all__ = ["TimedCalls"]

_ROUNDING: Final = 1e-6
"""Seconds that a sum of times may lack."""


class TimedCalls:
    """The calls under way. One deadline serves all of them.

    Args:
        clock: What the deadline reads.
        seconds: What each call has.
        wait: Sets the deadline: calls a function so many seconds later; `None` takes the deadline away.
        late: Told of a call that is over its time; again and again, if it goes on.
    """

    __slots__ = ("_calls", "_clock", "_late", "_over", "_seconds", "_wait")

    def __init__(
        self,
        clock: Clock,
        seconds: float,
        wait: Callable[[float | None, Callable[[], object]], None],
        late: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._wait = wait
        self._late = late
        self._calls: dict[asyncio.Task[None], float] = {}
        self._over: set[asyncio.Task[None]] = set()

    def begin(self, call: asyncio.Task[None]) -> None:
        """Give a call its time, from now on."""
        self._calls[call] = self._clock.time() + self._seconds
        if len(self._calls) == 1:
            self._wait(self._seconds, self._check)

    def end(self, call: asyncio.Task[None]) -> bool:
        """Forget a call; return whether it was over its time."""
        if self._calls.pop(call, None) is not None and not self._calls:
            self._wait(None, self._check)
        is_over = call in self._over
        self._over.discard(call)
        return is_over

    def _check(self) -> None:
        now = self._clock.time()
        for call, due in list(self._calls.items()):
            if due - now < _ROUNDING:
                self._calls[call] = now + CANCEL_AGAIN
                self._over.add(call)
                self._late(call)
        self._wait(min(self._calls.values()) - now, self._check)
