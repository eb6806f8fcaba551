"""The time that each run of `on_message` has: `message_timeout`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from wsdeco.connection.limits import CANCEL_AGAIN, LimitedConnection

__all__ = ["TimedCalls"]

_ROUNDING: Final = 1e-6
"""Seconds that a sum of times may lack."""


class TimedCalls:
    """The calls under way. One deadline serves all of them.

    Args:
        connection: Whose calls they are.
        seconds: What each call has.
        late: Told of a call that has had its time, and again and again if it goes on.
    """

    __slots__ = ("_calls", "_connection", "_late", "_over", "_seconds")

    def __init__(
        self, connection: LimitedConnection, seconds: float, late: Callable[[asyncio.Task[None]], None]
    ) -> None:
        self._connection = connection
        self._late = late
        self._seconds = seconds
        self._calls: dict[asyncio.Task[None], float] = {}
        self._over: set[asyncio.Task[None]] = set()

    def begin(self, call: asyncio.Task[None]) -> None:
        """Give a call its time, from now on."""
        self._calls[call] = self._connection.channel.clock.time() + self._seconds
        self._connection.check_calls_in(self._seconds, self._check)

    def end(self, call: asyncio.Task[None]) -> bool:
        """Forget a call; return whether it was over its time."""
        self._calls.pop(call, None)
        if not self._calls:
            self._connection.calls_over()
        is_over = call in self._over
        self._over.discard(call)
        return is_over

    def _check(self) -> None:
        connection, calls = self._connection, self._calls
        now = connection.channel.clock.time()
        for call, due in list(calls.items()):
            if due - now < _ROUNDING:
                calls[call] = now + CANCEL_AGAIN
                self._over.add(call)
                self._late(call)
        connection.check_calls_in(min(calls.values()) - now, self._check)
