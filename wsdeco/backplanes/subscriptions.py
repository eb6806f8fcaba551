"""Which subjects the connection to a broker has, and which it is to have.

Each connection is brought in line with a set of names, so a room that is left and joined in a tight loop costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wsdeco.backplanes.supervision import Supervision
from wsdeco.clock import Clock, Timer

__all__ = ["Subscriptions"]


class Subscriptions:
    """The subjects of one session.

    Args:
        wanted: Those of the rooms that have members, kept by the backplane.
        supervision: How long rooms that were left stay subscribed, and how many.
        clock: What measures that.
        tell: Called if `changes` has some.
    """

    def __init__(
        self, wanted: Mapping[str, str], supervision: Supervision, clock: Clock, tell: Callable[[], None]
    ) -> None:
        self._wanted = wanted
        self._supervision = supervision
        self._clock = clock
        self._tell = tell
        self._active: set[str] = set()
        self._changed: set[str] = set()
        self._leaving: dict[str, float] = {}
        self._timer: Timer | None = None

    def begin(self) -> None:
        """A connection begins, which has none."""
        self._active = set()
        self._changed = set(self._wanted)

    def end(self) -> None:
        """The connection is over."""
        self._leaving.clear()
        self._set_timer()

    def note(self, subject: str) -> None:
        """Look at a subject when there is another reason to: the caller is not in the event loop."""
        self._changed.add(subject)

    def join(self, subject: str) -> None:
        """A subject is wanted from now on."""
        if self._leaving.pop(subject, None) is None or subject not in self._active:
            self._changed.add(subject)
            self._tell()

    def leave(self, subject: str) -> None:
        """A subject is wanted no more."""
        if subject in self._active:
            # It costs the broker as much as the connection that has come and gone, and the next one would again.
            self._leaving[subject] = self._clock.time() + self._supervision.linger
            if self._timer is None:
                self._set_timer()
            elif len(self._leaving) > self._supervision.max_lingering:
                self._tell()

    def changes(self) -> tuple[list[str], list[str]]:
        """Return which subjects are to be unsubscribed, and which subscribed, as is done next."""
        # What changes meanwhile is more work.
        changed, self._changed = self._changed, set()
        wanted = changed & self._wanted.keys()
        left = ((changed - wanted) & self._active) | self._expired()
        self._active -= left
        joined = wanted - self._active
        self._active |= joined
        return sorted(left), sorted(joined)

    def _expired(self) -> set[str]:
        now = self._clock.time()
        expired: set[str] = set()
        for subject, due in tuple(self._leaving.items()):
            if due > now and len(self._leaving) <= self._supervision.max_lingering:
                break
            del self._leaving[subject]
            expired.add(subject)
        self._set_timer()
        return expired & self._active

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        first = next(iter(self._leaving.values()), None)
        self._timer = None if first is None else self._clock.call_at(first, self._tell)
