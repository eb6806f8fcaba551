"""Deadlines of HTTP connections: one timer serves all connections that have the same delay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

from wsdeco.clock import Clock, Timer

__all__ = ["BODY_TIMEOUT", "HEAD_TIMEOUT", "Deadlines", "HttpDeadlines", "deadlines_of"]

HEAD_TIMEOUT: Final = 10.0
"""Seconds for the head of a request."""
BODY_TIMEOUT: Final = 10.0
"""Seconds in which a body brings as much as it must, or ends."""
_LINGER: Final = 2.0
"""Seconds for a refused peer to read the refusal and to close, and for a body once the server stops."""
_AGE_STEP: Final = 0.5
"""Seconds in steps of which the age of a connection counts that has spent time on TLS."""
_TICK: Final = 0.02
"""Least seconds between two runs of a timer: what is due by then is done in one go."""
_MAX_LATENESS: Final = 0.5
"""Seconds by which a timer may be late before the loop counts as having stood still."""
_DOUBT: Final = 0.1
"""Seconds to read what has arrived while the loop stood still."""


class Bounded(Protocol):
    """A connection with deadlines."""

    def expire(self) -> None:
        """End it: its head has taken too long, or what was to follow a refusal."""

    def expire_body(self) -> None:
        """End it, unless the body of its request makes progress."""


class Deadlines:
    """One delay for all connections of a server, so that their order is that of time, and one timer serves them.

    Attributes:
        seconds: The delay.
    """

    def __init__(self, clock: Clock, seconds: float, expire: Callable[[Bounded], None]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._expire = expire
        self._due: dict[Bounded, float] = {}
        self._timer: Timer | None = None
        self._timer_due = 0.0

    def add(self, connection: Bounded) -> bool:
        """Let `connection` expire one delay from now, unless it waits for that already; return whether it did not."""
        if connection in self._due:
            return False
        self._due[connection] = self._clock.time() + self.seconds
        if self._timer is None:
            self._set_timer(self._due[connection])
        return True

    def discard(self, connection: Bounded) -> bool:
        """Forget `connection`; return whether it waited. The timer stays: to cancel it each time would cost more."""
        return self._due.pop(connection, None) is not None

    def _set_timer(self, when: float) -> None:
        self._timer_due = max(when, self._clock.time() + _TICK)
        self._timer = self._clock.call_at(self._timer_due, self._run)

    def _run(self) -> None:
        now = self._clock.time()
        if now - self._timer_due > _MAX_LATENESS:
            # A loop that has been busy runs its timers before it reads what has arrived meanwhile.
            self._set_timer(now + _DOUBT)
            return
        due: list[Bounded] = []
        for connection, when in self._due.items():
            if when > now:
                break
            due.append(connection)
        for connection in due:
            del self._due[connection]
        for connection in due:
            self._expire(connection)
        self._timer = None
        if self._due:
            self._set_timer(next(iter(self._due.values())))


class HttpDeadlines:
    """Those that the connections of one server share.

    Attributes:
        clock: Time and timers.
        heads: For a head of which the first byte has come.
        bodies: For a body that makes no progress.
        last_bodies: The same, while the server stops.
        lingering: For a peer that has been refused.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.heads = Deadlines(clock, HEAD_TIMEOUT, _expire)
        self.bodies = Deadlines(clock, BODY_TIMEOUT, _expire_body)
        self.last_bodies = Deadlines(clock, _LINGER, _expire_body)
        self.lingering = Deadlines(clock, _LINGER, _expire)
        self._first_heads: dict[int, Deadlines] = {0: self.heads}

    def first_heads(self, accepted_at: float) -> Deadlines:
        """Return the deadline for the first head of a connection, which counts from `accepted_at`.

        Those of about one age share it, since each must keep its connections in the order of time.
        """
        steps = min(round((self.clock.time() - accepted_at) / _AGE_STEP), round(HEAD_TIMEOUT / _AGE_STEP) - 1)
        found = self._first_heads.get(steps)
        if found is None:
            found = self._first_heads[steps] = Deadlines(self.clock, HEAD_TIMEOUT - steps * _AGE_STEP, _expire)
        return found


def _expire(connection: Bounded) -> None:
    connection.expire()


def _expire_body(connection: Bounded) -> None:
    connection.expire_body()


_of_servers: Final[WeakKeyDictionary[ServerState, HttpDeadlines]] = WeakKeyDictionary()


def deadlines_of(server_state: ServerState, clock: Clock) -> HttpDeadlines:
    """Return what the connections of `server_state` share; `clock` is that of the first."""
    found = _of_servers.get(server_state)
    if found is None:
        found = _of_servers[server_state] = HttpDeadlines(clock)
    return found
