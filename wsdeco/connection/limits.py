"""What the limits of a connection do: deadlines that close it, and the time that a hook still has afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Final, cast

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.clock import wheel_of
from wsdeco.reasons import Close, CloseCode, LimitName, Timeout

__all__ = ["AWAITS_FIRST", "CANCEL_AGAIN", "INTERRUPTED", "REDEFINED", "SHUTTING_DOWN", "LimitedConnection"]

INTERRUPTED: Final = 1
"""A deadline has cancelled the hook that runs."""

REDEFINED: Final = 2
"""The class of the handler has become another one."""

CANCEL_AGAIN: Final = 1.0
"""Seconds after which a hook that has swallowed its cancellation is cancelled again."""

_CONNECT: Final = "connect_timeout"

_FIRST: Final = "first_message_timeout"

_EXPIRY: Final = "expire_at"

_IDLE: Final = "idle_timeout"

_CALLS: Final = "message_timeout"

_DURATION: Final = "max_connection_duration"

SHUTTING_DOWN: Final = 1
"""The server stops."""

AWAITS_FIRST: Final = 2
"""No message has come yet, and there is a limit for that."""


class LimitedConnection:
    """A connection whose hooks are called one after the other in one task, as its subclass does, within its limits.

    It has any number of deadlines by name, and waits on the wheel of its clock for the first of them. Those of an open
    connection are computed from two times, so that an idle one keeps nothing else of them.

    Attributes:
        channel: The channel.
        due: The time of the first deadline; `None` while there is none.
    """

    __slots__ = (
        "_after_hook",
        "_deadlines",
        "_hook",
        "_hook_ended_at",
        "_hooks_task",
        "_opened_at",
        "_state",
        "channel",
        "due",
    )

    def __init__(self, channel: Channel) -> None:
        """Prepare to limit what happens on `channel`."""
        self.channel: Channel = channel
        self.due: float | None = None
        # `None` while it would be empty: nothing is kept of the deadlines that a connection begins with.
        self._deadlines: dict[str, tuple[float, Callable[[], object]]] | None = None
        self._opened_at: float | None = None
        self._hook: str | None = None
        self._hook_ended_at = channel.last_frame_at
        self._hooks_task: asyncio.Task[None] | None = None
        self._after_hook: int = 0
        self._state: int = 0

    def channel_accepted(self) -> None:
        """Start the deadlines of an open connection."""
        config = self.channel.config
        if config.first_message_timeout is not None:
            self._state |= AWAITS_FIRST
        if self._state & AWAITS_FIRST or config.max_connection_duration is not None or config.idle_timeout is not None:
            self._opened_at = self.channel.clock.time()
        self._drop_deadlines(_CONNECT)
        self._wait_for_first()

    def channel_ended(self) -> None:
        """Decide how long a hook that still runs may go on."""
        self._opened_at = None
        self._state &= ~AWAITS_FIRST
        self._drop_deadlines(_CONNECT, _EXPIRY)
        close_timeout = self.channel.config.close_timeout
        self.limit_closing(close_timeout)
        reason = self.channel.reason
        if isinstance(reason, Close) and reason.code == CloseCode.SERVICE_RESTART and reason.by == "server":
            self._state |= SHUTTING_DOWN
        if isinstance(reason, Timeout):
            self._limit_hook(0)
        else:
            self._limit_hook(close_timeout if self._state & SHUTTING_DOWN else self.channel.grace)

    def _limit_connecting(self) -> None:
        # Called behind the first step of the hooks' task, in which most are accepted: these need no deadline.
        task = self._hooks_task
        if not self.channel.accepted and self.channel.reason is None and task is not None and not task.done():
            seconds = self.channel.config.connect_timeout
            self._set_deadline(_CONNECT, seconds, partial(self._time_out, _CONNECT, seconds))

    def _first_message_there(self) -> None:
        self._state &= ~AWAITS_FIRST
        self._wait_for_first()

    async def first_message(self, seconds: float) -> Data:
        """Return the first message; close with 1008 if it does not come in so many seconds.

        Raises:
            ConnectionClosed: The connection ended before it came.
            RuntimeError: `on_connect` is over.
        """
        channel = self.channel
        if self._hook != "on_connect":
            raise RuntimeError("first_message() belongs into on_connect: what comes later goes to on_message")
        self._set_deadline("first_message", seconds, partial(self._time_out, _FIRST, seconds))
        try:
            await channel.accept()
            data = await channel.receive()
        finally:
            self._cancel_deadlines("first_message")
        if data is None:
            raise channel.closed_error()
        self._first_message_there()
        return data

    def _check_first_message(self, seconds: float) -> None:
        self._state &= ~AWAITS_FIRST
        # It may wait for the end of on_connect.
        if not self.channel.waiting:
            self._time_out(_FIRST, seconds)

    def expire_in(self, seconds: float | None) -> None:
        """Close with 4401 in so many seconds; `None` takes that back."""
        expire = partial(self.channel.close_by_server, CloseCode.TOKEN_EXPIRED, "token expired")
        self._set_deadline(_EXPIRY, seconds, expire)

    def _time_out(self, limit: LimitName, seconds: float) -> None:
        message = f"{limit} of {seconds:g} s is over"
        reason = Timeout(message, limit)
        self.channel.close(reason.code, message, reason)

    def _set_deadline(self, name: str, seconds: float | None, action: Callable[[], object]) -> None:
        """Call `action` in so many seconds; `None` takes the deadline of that name away."""
        if seconds is None:
            self._cancel_deadlines(name)
            return
        clock = self.channel.clock
        due = clock.time() + seconds
        if self._deadlines is None:
            self._deadlines = {}
        self._deadlines[name] = due, action
        if self.due is None or due < self.due:
            wheel_of(clock).set(self, due)

    def check_calls_in(self, seconds: float, check: Callable[[], object]) -> None:
        """Call `check` in so many seconds, unless there is a check already that has not come yet."""
        if self._deadlines is None or _CALLS not in self._deadlines:
            self._set_deadline(_CALLS, seconds, check)

    def calls_over(self) -> None:
        """No call is under way any more: no check is needed."""
        # The wheel is left alone: the next message may set the same deadline again.
        self._drop_deadlines(_CALLS)

    def _drop_deadlines(self, *names: str) -> bool:
        deadlines = self._deadlines
        if deadlines is None:
            return False
        before = len(deadlines)
        for name in names:
            deadlines.pop(name, None)
        if not deadlines:
            self._deadlines = None
        return len(deadlines) < before

    def _cancel_deadlines(self, *names: str) -> None:
        if self._drop_deadlines(*names):
            self._wait_for_first()

    def _cancel_all_deadlines(self) -> None:
        self._opened_at = self._deadlines = None
        self._wait_for_first()

    def _all_deadlines(self, now: float) -> dict[str, tuple[float, Callable[[], object]]]:
        found: dict[str, tuple[float, Callable[[], object]]] = {}
        if self._opened_at is not None:
            config = self.channel.config
            seconds = config.max_connection_duration
            if seconds is not None:
                found[_DURATION] = self._opened_at + seconds, partial(self._time_out, _DURATION, seconds)
            seconds = config.idle_timeout
            if seconds is not None:
                quiet_since = now if self._hook is not None else max(self.channel.last_frame_at, self._hook_ended_at)
                found[_IDLE] = quiet_since + seconds, partial(self._time_out, _IDLE, seconds)
            if self._state & AWAITS_FIRST:
                seconds = cast(float, config.first_message_timeout)
                found[_FIRST] = self._opened_at + seconds, partial(self._check_first_message, seconds)
        return found if self._deadlines is None else found | self._deadlines

    def _wait_for_first(self) -> None:
        if self._deadlines is None and self._opened_at is None:
            if self.due is not None:
                wheel_of(self.channel.clock).set(self, None)
            return
        clock = self.channel.clock
        first = min([due for due, _ in self._all_deadlines(clock.time()).values()], default=None)
        # To wait in vain once costs less than to wait for something else each time that a deadline is taken away.
        if first is None or self.due is None or first < self.due:
            wheel_of(clock).set(self, first)

    def time_over(self, now: float) -> None:
        """Call what is due, unless the call before has taken its deadline away.

        Args:
            now: The present time.
        """
        over = [(due, name) for name, (due, _) in self._all_deadlines(now).items() if due <= now]
        try:
            # Of limits that are over at the same time, the one counts that is looked at first.
            for _, name in sorted(over, key=itemgetter(0)):
                left = self._all_deadlines(now).get(name)
                if left is not None and left[0] <= now:
                    self._drop_deadlines(name)
                    left[1]()
        finally:
            self._wait_for_first()

    def _limit_hook(self, seconds: float | None) -> None:
        self._set_deadline("hook", seconds, self._interrupt)

    def _interrupt(self) -> None:
        # Called by a timer, never from inside a hook: the task is suspended, so its cancellation arrives in the hook.
        self.channel.discard_inbox()
        if self._hook is not None:
            self._after_hook |= INTERRUPTED
            cast("asyncio.Task[None]", self._hooks_task).cancel()
            self._limit_hook(CANCEL_AGAIN)

    def _limit_ending(self) -> None:
        grace, close_timeout = self.channel.config.disconnect_grace, self.channel.config.close_timeout
        if self._state & SHUTTING_DOWN:
            self._limit_hook(close_timeout)
        else:
            self._limit_hook(None if grace is None else max(grace, close_timeout))

    def _hook_over(self) -> bool:
        """Note that a hook has ended; return whether the hooks of its instance are others now."""
        self._hook = None
        if self.channel.config.idle_timeout is not None:
            self._hook_ended_at = self.channel.clock.time()
        happened, self._after_hook = self._after_hook, 0
        if happened & INTERRUPTED:
            self._cancel_deadlines("hook")
        task = self._hooks_task
        while task is not None and task.cancelling():
            task.uncancel()
        return happened >= REDEFINED

    @property
    def shutdown_time(self) -> float:
        """Seconds after `shut_down` in which all is over, unless a hook goes on ignoring its cancellation."""
        return 2 * (self.channel.config.close_timeout + CANCEL_AGAIN)

    def shut_down(self, text: str = "service restart") -> None:
        """Close with 1012; a hook that still runs, and then `on_disconnect`, get `close_timeout` each.

        Args:
            text: The reason that goes with the code.
        """
        if self._state & SHUTTING_DOWN:
            return
        self._state |= SHUTTING_DOWN
        self.channel.close_by_server(CloseCode.SERVICE_RESTART, text)
        self._limit_hook(self.channel.config.close_timeout)

    def limit_closing(self, seconds: float) -> None:
        """Wait so long for the peer, which has been sent a close frame."""
        self._set_deadline("close", seconds, self._stop)

    def _stop(self) -> None:
        # The closing handshake has had its time.
        self.channel.abort()
        self._stop_reading()

    def _stop_reading(self) -> None:
        """End what reads the channel: nothing, if it reads by itself."""
