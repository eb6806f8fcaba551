"""What the limits of a connection do: deadlines that close it, and the time that a hook still has afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.config import ConnectionConfig
from wsdeco.connection.deadlines import Deadlines
from wsdeco.reasons import Close, CloseCode, LimitName, Timeout

__all__ = ["CANCEL_AGAIN", "INTERRUPTED", "REDEFINED", "LimitedConnection"]

INTERRUPTED: Final = 1
"""A deadline has cancelled the hook that runs."""

REDEFINED: Final = 2
"""The class of the handler has become another one."""

CANCEL_AGAIN: Final = 1.0
"""Seconds after which a hook that has swallowed its cancellation is cancelled again."""

_FIRST: Final = "first_message_timeout"

_EXPIRY: Final = "expire_at"

_LIMITS: Final = ("connect_timeout", _FIRST, "idle_timeout", "max_connection_duration", _EXPIRY)
"""The deadlines of a connection that has not ended."""


class LimitedConnection:
    """A connection whose hooks are called one after the other in one task, as its subclass does, within its limits.

    Attributes:
        channel: The channel.
    """

    __slots__ = (
        "_after_hook",
        "_config",
        "_deadlines",
        "_hook",
        "_hook_ended_at",
        "_hooks_task",
        "_shutting_down",
        "channel",
    )

    def __init__(self, channel: Channel) -> None:
        """Prepare to limit what happens on `channel`."""
        self.channel: Channel = channel
        self._config: ConnectionConfig = channel.config
        self._deadlines: Deadlines | None = None
        self._hook: str | None = None
        self._hook_ended_at = channel.last_frame_at
        self._hooks_task: asyncio.Task[None] | None = None
        self._after_hook: int = 0
        self._shutting_down = False

    def channel_accepted(self) -> None:
        """Start the deadlines of an open connection."""
        config = self._config
        self._cancel_deadlines("connect_timeout")
        if config.max_connection_duration is not None:
            self._set_deadline("max_connection_duration", config.max_connection_duration, self._duration_over)
        if config.idle_timeout is not None:
            self._set_deadline("idle_timeout", config.idle_timeout, self._check_idle)
        if config.first_message_timeout is not None:
            self._set_deadline(_FIRST, config.first_message_timeout, self._check_first_message)

    def channel_ended(self) -> None:
        """Decide how long a hook that still runs may go on."""
        self._cancel_deadlines(*_LIMITS)
        self._set_deadline("close", self._config.close_timeout, self._stop)
        reason = self.channel.reason
        if isinstance(reason, Close) and reason.code == CloseCode.SERVICE_RESTART and reason.by == "server":
            self._shutting_down = True
        if isinstance(reason, Timeout):
            self._limit_hook(0)
        elif self._shutting_down:
            self._limit_hook(self._config.close_timeout)
        elif (grace := self.channel.grace) is not None:
            self._limit_hook(grace)

    def _connect_over(self) -> None:
        self._time_out("connect_timeout", self._config.connect_timeout)

    def _duration_over(self) -> None:
        self._time_out("max_connection_duration", cast(float, self._config.max_connection_duration))

    def _check_idle(self) -> None:
        seconds = cast(float, self._config.idle_timeout)
        now = self.channel.clock.time()
        quiet_since = now if self._hook is not None else max(self.channel.last_frame_at, self._hook_ended_at)
        if quiet_since + seconds > now:
            self._set_deadline("idle_timeout", quiet_since + seconds - now, self._check_idle)
        else:
            self._time_out("idle_timeout", seconds)

    @property
    def _awaits_first_message(self) -> bool:
        return self._deadlines is not None and _FIRST in self._deadlines

    async def _first_message_there(self) -> None:
        """Wait until a message is there to be taken, or the connection has ended."""
        channel = self.channel
        while not channel.waiting and channel.reason is None:
            await channel.event()
        self._cancel_deadlines(_FIRST)

    async def first_message(self, seconds: float) -> Data:
        """Return the first message; close with 1008 if it does not come in so many seconds.

        Raises:
            ConnectionClosed: The connection has ended before.
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
        self._cancel_deadlines(_FIRST)
        return data

    def _check_first_message(self) -> None:
        # It may wait for the end of on_connect.
        if not self.channel.waiting:
            self._time_out(_FIRST, cast(float, self._config.first_message_timeout))

    def expire_in(self, seconds: float | None) -> None:
        """Close with 4401 in so many seconds; `None` takes that back."""
        self._set_deadline(_EXPIRY, seconds, self._expire)

    def _expire(self) -> None:
        self.channel.close_by_server(CloseCode.TOKEN_EXPIRED, "token expired")

    def _time_out(self, limit: LimitName, seconds: float) -> None:
        message = f"{limit} of {seconds:g} s is over"
        reason = Timeout(message, limit)
        self.channel.close(reason.code, message, reason)

    def _set_deadline(self, name: str, seconds: float | None, action: Callable[[], object]) -> None:
        """Call `action` in so many seconds; `None` takes the deadline of that name away."""
        if seconds is None:
            self._cancel_deadlines(name)
            return
        if self._deadlines is None:
            self._deadlines = Deadlines(self.channel.clock)
        self._deadlines.set(name, seconds, action)

    def _cancel_deadlines(self, *names: str) -> None:
        if self._deadlines is not None:
            self._deadlines.cancel(*names)
            if len(self._deadlines) == 0:
                # An idle connection without limits keeps nothing of those it began with.
                self._deadlines = None

    def _limit_hook(self, seconds: float) -> None:
        self._set_deadline("hook", seconds, self._interrupt)

    def _interrupt(self) -> None:
        # Called by a timer, never from inside a hook: the task is suspended, so its cancellation arrives in the hook.
        self.channel.discard_inbox()
        if self._hook is not None:
            self._after_hook |= INTERRUPTED
            cast("asyncio.Task[None]", self._hooks_task).cancel()
            self._limit_hook(CANCEL_AGAIN)

    def _limit_ending(self) -> None:
        self._cancel_deadlines("hook")
        grace, close_timeout = self._config.disconnect_grace, self._config.close_timeout
        if self._shutting_down:
            self._limit_hook(close_timeout)
        elif grace is not None:
            self._limit_hook(max(grace, close_timeout))

    def _hook_over(self) -> bool:
        """Note that a hook has ended; return whether the hooks of its instance are others now."""
        self._hook = None
        if self._config.idle_timeout is not None:
            self._hook_ended_at = self.channel.clock.time()
        is_redefined = False
        if self._after_hook:
            is_redefined = self._after_hook >= REDEFINED
            if self._after_hook & INTERRUPTED:
                self._cancel_deadlines("hook")
            self._after_hook = 0
        task = self._hooks_task
        while task is not None and task.cancelling():
            task.uncancel()
        return is_redefined

    @property
    def shutdown_time(self) -> float:
        """Seconds after `shut_down` in which all is over, unless a hook goes on ignoring its cancellation."""
        return 2 * (self._config.close_timeout + CANCEL_AGAIN)

    def shut_down(self, text: str = "service restart") -> None:
        """Close with 1012; a hook that still runs, and then `on_disconnect`, get `close_timeout` each.

        Args:
            text: The reason that goes with the code.
        """
        if self._shutting_down:
            return
        self._shutting_down = True
        self.channel.close_by_server(CloseCode.SERVICE_RESTART, text)
        self._limit_hook(self._config.close_timeout)

    def limit_closing(self, seconds: float) -> None:
        """Wait so long for the peer, which has been sent a close frame."""
        self._set_deadline("close", seconds, self._stop)

    def _stop(self) -> None:
        # The closing handshake has had its time.
        self.channel.abort()
        self._stop_reading()

    def _stop_reading(self) -> None:
        """End what reads the channel: nothing, if it reads by itself."""
