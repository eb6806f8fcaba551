"""The time that each run of `on_message` has: `message_timeout`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from wsdeco.channels.base import Channel
from wsdeco.connection.limits import CANCEL_AGAIN

__all__ = ["TimedCalls"]

_ROUNDING: Final = 1e-6
"""Seconds that a sum of times may lack."""


class Limited(Protocol):
    """What `TimedCalls` needs of a connection.

    Attributes:
        channel: Its channel.
    """

    channel: Channel

    def check_calls_in(self, seconds: float, check: Callable[[], object]) -> None:
        """Call `check` in so many seconds, unless there is a check already that has not come yet."""

    def calls_over(self) -> None:
        """No call is under way any more: no check is needed."""

    def call_late(self, call: asyncio.Task[None]) -> None:
        """A call is over its time; told again and again, if it goes on."""


class TimedCalls:
    """The calls under way. One deadline serves all of them.

    Args:
        connection: Whose calls they are.
        seconds: What each call has.
    """

    __slots__ = ("_calls", "_connection", "_over", "_seconds")

    def __init__(self, connection: Limited, seconds: float) -> None:
        self._connection = connection
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
                connection.call_late(call)
        connection.check_calls_in(min(calls.values()) - now, self._check)
