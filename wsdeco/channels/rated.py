"""Channels whose peer may send at a rate: `message_rate` and `byte_rate`.

A message over the rate that is dropped, or ends the connection, is judged as it arrives. If the peer is slowed
down, it is judged as it is taken: messages wait in the inbox, and once that is full the peer is not read.

Each rate is a token bucket, kept as the one time at which it is full again (the generic cell rate algorithm of ITU-T
I.371), so an idle connection has two numbers for both.
"""

from __future__ import annotations

from typing import Any, Final

from wsdeco.channels.asgi import AsgiChannel
from wsdeco.channels.base import Channel, wake
from wsdeco.channels.data import Data, wire_size
from wsdeco.channels.direct import DirectChannel
from wsdeco.clock import Timer
from wsdeco.config import ConnectionConfig
from wsdeco.rates import pace_of
from wsdeco.reasons import CloseCode

__all__ = ["RatedAsgiChannel", "RatedDirectChannel", "channel_types"]

_LEAST_WAIT: Final = 0.001
"""Seconds: what is less is the rounding of numbers, and event loops round timers to this."""


_NONE: Final[tuple[str, ...]] = ()

_SLOTS: Final[tuple[str, ...]] = ("_bytes_full_at", "_messages_full_at", "_timer")


class _Rated(Channel):
    """What rates add to a channel: a base in front of the channel's own class.

    The times are those of the clock at which the peer may send as much at once as ever. The timer ends the time that it
    has to wait; `None` while it has none.
    """

    # One of two bases alone may have any, so these are slots of the subclasses.
    __slots__ = _NONE

    _messages_full_at: float
    _bytes_full_at: float
    _timer: Timer | None
    undelivered: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what the channel behind it takes."""
        super().__init__(*arguments, **options)
        self._messages_full_at = self._bytes_full_at = 0.0
        self._timer = None

    def _count(self, data: Data) -> tuple[float, str, str] | None:
        """Count a message; or return the seconds by which it is too early, the limit it exceeds, and its rate."""
        config, now = self.config, self.clock.time()
        messages, size = max(self._messages_full_at, now), max(self._bytes_full_at, now)
        early, limit, rate = 0.0, "", ""
        if config.message_rate is not None:
            pace = pace_of(config.message_rate, config.burst)
            messages += pace.each
            early, limit, rate = messages - now - pace.burst, "message_rate", config.message_rate
        if config.byte_rate is not None:
            pace = pace_of(config.byte_rate)
            takes = wire_size(data) * pace.each
            # What is larger than the burst comes when nothing else did, and what follows waits for it.
            longer = size - now + min(takes, pace.burst) - pace.burst
            size += takes
            if longer > early or not limit:
                early, limit, rate = longer, "byte_rate", config.byte_rate
        if early >= _LEAST_WAIT:
            if self.observer is not None:
                self.observer.message_over_rate(self)
            return early, limit, rate
        self._messages_full_at, self._bytes_full_at = messages, size
        return None

    def take(self) -> Data | None:
        """Return the next message in order, no sooner than the rate of the peer allows."""
        inbox = self._inbox
        # After the end no more than a full inbox is left, which needs no rate.
        if inbox is None or inbox[-1] is None or self.reason is not None or self.config.over_rate != "slow":
            return super().take()
        if self._timer is not None:
            return None
        over = self._count(inbox[-1])
        if over is None:
            return super().take()
        self._timer = self.clock.call_at(self.clock.time() + over[0], self._go_on)
        return None

    def _go_on(self) -> None:
        self._timer = None
        wake(self._message_waiter)

    def messages_received(self, messages: list[Data]) -> None:
        """Take messages, in order, unless they are too many."""
        messages = self._let_in(messages)
        if messages:
            super().messages_received(messages)

    def _let_in(self, messages: list[Data]) -> list[Data]:
        """Return the messages within the rate; end the connection if that is what follows one over it."""
        if self.config.over_rate == "slow" or self.reason is not None:
            return messages
        kept: list[Data] = []
        for data in messages:
            over = self._count(data)
            if over is None:
                kept.append(data)
            elif self.config.over_rate == "close":
                _, limit, rate = over
                self.close_by_server(CloseCode.POLICY, f"{limit} of {rate} is exceeded")
                return messages
            else:
                self.undelivered += 1
                if self.message_observer is not None:
                    self.message_observer.messages_received(self, [data])
        return kept

    @property
    def last_frame_at(self) -> float:
        """The time of the last frame; a peer that is slowed down is not idle."""
        return super().last_frame_at if self._timer is None else self.clock.time()

    def release(self) -> None:
        """Let go of the timer as well."""
        super().release()  # type: ignore[safe-super]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class RatedDirectChannel(_Rated, DirectChannel):
    """A direct channel with rates."""

    __slots__ = _SLOTS


class RatedAsgiChannel(_Rated, AsgiChannel):
    """An ASGI channel with rates."""

    __slots__ = _SLOTS

    async def event(self) -> bool | None:
        """Wait while the server's task reads: a message may have to wait though the hooks are idle."""
        return await self.next_event()


def channel_types(config: ConnectionConfig) -> tuple[type[DirectChannel], type[AsgiChannel]]:
    """Return the channels for these limits."""
    if config.message_rate is None and config.byte_rate is None:
        return DirectChannel, AsgiChannel
    return RatedDirectChannel, RatedAsgiChannel
