"""The deadlines of one connection, each by its name, so that a further limit is a few lines."""

from __future__ import annotations

from collections.abc import Callable

from wsdeco.clock import Clock, Deadline

__all__ = ["Deadlines"]


class Deadlines:
    """Those that are set at present.

    Args:
        clock: Where time and timers come from.
    """

    __slots__ = ("_clock", "_set")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set: dict[str, Deadline] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._set)

    def __contains__(self, name: str) -> bool:
        """Return whether the deadline of this name was set, and not cancelled since."""
        return name in self._set

    def set(self, name: str, seconds: float, action: Callable[[], object]) -> None:
        """Call `action` in `seconds`, unless the deadline of this name is set again or cancelled before."""
        self.cancel(name)
        self._set[name] = Deadline(self._clock, seconds, action)

    def cancel(self, *names: str) -> None:
        """Cancel the deadlines of these names, those that are set."""
        for name in names:
            deadline = self._set.pop(name, None)
            if deadline is not None:
                deadline.cancel()

    def cancel_all(self) -> None:
        """Cancel every deadline."""
        self.cancel(*self._set)
