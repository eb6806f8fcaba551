"""Deadlines of HTTP connections: one serves all connections of a server that have the same delay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from wsdeco.clock import Clock, Deadline

__all__ = ["BODY_TIMEOUT", "HEAD_TIMEOUT", "RESPONSE_TIMEOUT", "Deadlines", "HttpDeadlines", "take_due"]

T = TypeVar("T")

HEAD_TIMEOUT: Final = 10.0
"""Seconds for the head of a request."""
BODY_TIMEOUT: Final = 10.0
"""Seconds in which a body brings as much as it must, or ends."""
RESPONSE_TIMEOUT: Final = 60.0
"""Seconds in which a peer takes as much of a response as it must, or all: what `send_timeout` is to a WebSocket."""
_LINGER: Final = 2.0
"""Seconds for a refused peer to read the refusal and to close, and for a body or a response once the server stops."""
_NO_AGE: Final = 0.25
"""Seconds since a connection was accepted that its first head has besides."""
_TICK: Final = 0.02
"""Least seconds between two deadlines: what is due by then is done in one go."""


class Bounded(Protocol):
    """A connection with deadlines."""

    def expire(self) -> None:
        """End it: its head has taken too long, or what was to follow a refusal."""

    def expire_body(self) -> None:
        """End it, unless the body of its request makes progress."""

    def expire_response(self) -> None:
        """End it, unless its peer reads the response."""


class Deadlines:
    """One delay for all connections of a server, so that their order is that of time, and one deadline serves them.

    Attributes:
        seconds: The delay.
    """

    def __init__(self, clock: Clock, seconds: float, expire: Callable[[Bounded], None]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._expire = expire
        self._due: dict[Bounded, float] = {}
        self._next: Deadline | None = None

    def add(self, connection: Bounded) -> bool:
        """Let `connection` expire one delay from now, unless it waits for that already; return whether it did not."""
        if connection in self._due:
            return False
        self._due[connection] = self._clock.time() + self.seconds
        if self._next is None:
            self._set_next(self._due[connection])
        return True

    def discard(self, connection: Bounded) -> bool:
        """Forget `connection`; return whether it waited. The deadline stays: to cancel it each time would cost more."""
        return self._due.pop(connection, None) is not None

    def _set_next(self, when: float) -> None:
        self._next = Deadline(self._clock, max(when - self._clock.time(), _TICK), self._run)

    def _run(self) -> None:
        now = self._clock.time()
        due = iter(take_due(self._due, now))
        try:
            for connection in due:
                self._expire(connection)
        finally:
            # One that cannot be ended must not keep those behind it alive, nor all that come later.
            left = dict.fromkeys(due, now)
            if left:
                self._due = left | self._due
            self._next = None
            if self._due:
                self._set_next(next(iter(self._due.values())))


def take_due(queue: dict[T, float], now: float) -> list[T]:
    """Take what is due by `now` out of a queue in order of time."""
    due: list[T] = []
    for each, when in queue.items():
        if when > now:
            break
        due.append(each)
    for each in due:
        del queue[each]
    return due


class HttpDeadlines:
    """The deadlines of the HTTP connections of one server.

    Attributes:
        clock: Time and timers.
        heads: For a head of which the first byte has come.
        bodies: For a body that makes no progress.
        last_bodies: The same, while the server stops.
        responses: For a response that the peer does not read.
        last_responses: The same, while the server stops.
        lingering: For a peer that has been refused.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.heads: Deadlines = Deadlines(clock, HEAD_TIMEOUT, _expire)
        self.bodies: Deadlines = Deadlines(clock, BODY_TIMEOUT, _expire_body)
        self.last_bodies: Deadlines = Deadlines(clock, _LINGER, _expire_body)
        self.responses: Deadlines = Deadlines(clock, RESPONSE_TIMEOUT, _expire_response)
        self.last_responses: Deadlines = Deadlines(clock, _LINGER, _expire_response)
        self.lingering: Deadlines = Deadlines(clock, _LINGER, _expire)

    def first_heads(self, accepted_at: float) -> Deadlines:
        """Return the deadline for the first head of a connection, which counts from `accepted_at`.

        A connection that has spent time on TLS has one of its own, as each keeps its connections in the order of time.
        """
        age = self.clock.time() - accepted_at
        return self.heads if age < _NO_AGE else Deadlines(self.clock, HEAD_TIMEOUT - age, _expire)


def _expire(connection: Bounded) -> None:
    connection.expire()


def _expire_body(connection: Bounded) -> None:
    connection.expire_body()


def _expire_response(connection: Bounded) -> None:
    connection.expire_response()
