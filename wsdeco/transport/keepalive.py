"""Pings for all connections of one server, by one timer.

A connection waits in up to three queues: for its next ping, for the deadline of the answer, and, past the deadline,
for its judgement. The delay of each queue is the same for all, so a queue is in order of time by itself, and
one deadline, set to the earliest of the three heads, serves ten thousand connections.

Any byte counts as life, not only the pong. And silence counts only while it could have been broken:

- A connection that is not being read (its inbox is full) is judged by what TCP says instead, as its pongs are not seen:
  the peer's system acknowledges our pings, or it has vanished. If the system does not tell (Linux does), such
  a connection is not judged, and ends when TCP gives up the ping.
- A deadline that runs out puts a connection in doubt for a moment, since a loop that has been busy runs its timers
  before it reads what has arrived meanwhile.
- When the timer itself is late the whole loop has stood still, perhaps before the pings got out. Then every
  deadline starts again.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from wsdeco.clock import Clock, Deadline
from wsdeco.transport.deadlines import take_due

__all__ = ["Keepalive", "Pinged"]

_DOUBT: Final = 0.1
"""Seconds between a deadline that has run out and the judgement: time to read what is there."""
_TICK: Final = 0.02
"""Least seconds between two runs of the timer: what is due by then is done in one go."""
_MAX_LATENESS: Final = 0.5
"""Seconds by which the timer may be late before the loop counts as having stood still."""


class Pinged(Protocol):
    """What `Keepalive` needs of a connection.

    Attributes:
        heard: Set when any byte arrives; reset here when a ping is sent.
    """

    heard: bool

    @property
    def is_reading(self) -> bool:
        """Whether bytes that arrive are read at once."""
        ...

    def has_vanished(self, seconds: float) -> bool:
        """Return whether the peer's system, in `seconds`, has not even acknowledged what was sent to it."""
        ...

    def send_keepalive_ping(self) -> None:
        """Send a ping."""

    def lose_keepalive(self) -> None:
        """End the connection: its peer has gone without a word."""


class Keepalive:
    """Pings connections at an interval, and ends those that stay silent.

    Args:
        clock: Where time and timers come from.
        interval: Seconds from one ping to the next.
        timeout: Seconds for an answer; `None` pings without judging.
    """

    def __init__(self, clock: Clock, interval: float, timeout: float | None) -> None:
        self._clock = clock
        self._interval = interval
        self._timeout = timeout
        self._max_lateness = _MAX_LATENESS if timeout is None else min(_MAX_LATENESS, timeout / 2)
        self._resting: dict[Pinged, float] = {}
        self._awaited: dict[Pinged, float] = {}
        self._doubted: dict[Pinged, float] = {}
        # Of all connections or of none: nothing is kept as long as nobody asks.
        self._sent: dict[Pinged, float] | None = None
        self._round_trips: dict[Pinged, float] = {}
        self._timer: Deadline | None = None
        self._timer_due = 0.0

    def __len__(self) -> int:
        return len(self._resting)

    def add(self, connection: Pinged) -> None:
        """Ping `connection` from one interval on."""
        self._resting[connection] = self._clock.time() + self._interval
        if self._timer is None:
            self._set_timer()

    def discard(self, connection: Pinged) -> None:
        """Ping `connection` no more."""
        for queue in (self._resting, self._awaited, self._doubted):
            queue.pop(connection, None)
        if self._sent is not None:
            self._sent.pop(connection, None)
            self._round_trips.pop(connection, None)
        if self._timer is not None and len(self) == 0:
            self._timer.cancel()
            self._timer = None

    def round_trip(self, connection: Pinged) -> float | None:
        """Return the seconds from the last ping to its answer; they are measured from the first call on."""
        if self._sent is None:
            self._sent = {}
        return self._round_trips.get(connection)

    def answered(self, connection: Pinged) -> None:
        """The last ping has been answered."""
        if self._sent is not None:
            sent = self._sent.pop(connection, None)
            if sent is not None:
                self._round_trips[connection] = self._clock.time() - sent

    def _set_timer(self) -> None:
        heads = [next(iter(queue.values())) for queue in (self._resting, self._awaited, self._doubted) if queue]
        if heads:
            now = self._clock.time()
            self._timer_due = max(min(heads), now + _TICK)
            self._timer = Deadline(self._clock, self._timer_due - now, self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._clock.time()
        if now - self._timer_due > self._max_lateness:
            self._start_deadlines_again(now)
        for connection in take_due(self._doubted, now):
            if connection.heard:
                continue
            if connection.is_reading or connection.has_vanished(cast(float, self._timeout)):
                connection.lose_keepalive()
        for connection in take_due(self._awaited, now):
            if not connection.heard:
                self._doubted[connection] = now + _DOUBT
        for connection in take_due(self._resting, now):
            self._resting[connection] = now + self._interval
            self._await_answer(connection, now)
            if self._sent is not None:
                self._sent[connection] = now
            connection.send_keepalive_ping()
        self._set_timer()

    def _await_answer(self, connection: Pinged, now: float) -> None:
        if self._timeout is None:
            return
        if connection.heard or (connection not in self._awaited and connection not in self._doubted):
            connection.heard = False
            self._awaited.pop(connection, None)
            self._doubted.pop(connection, None)
            self._awaited[connection] = now + self._timeout

    def _start_deadlines_again(self, now: float) -> None:
        if self._timeout is not None:
            self._awaited |= self._doubted
            self._doubted.clear()
            self._awaited = dict.fromkeys(self._awaited, now + self._timeout)
