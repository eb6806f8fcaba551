"""The numbers of messages: by those of each publisher a receiver counts what it has missed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["Gaps", "Numbers"]

_LARGEST_GAP: Final = 1_000_000
"""Messages that one gap counts for at most. Whoever may publish may write any number of 64 bits."""


class Numbers:
    """The numbers of what one publisher publishes; those of the last `rooms` are kept, and others begin at 1 again."""

    def __init__(self, rooms: int) -> None:
        self._rooms = rooms
        self._last: OrderedDict[str, int] = OrderedDict()

    def next(self, subject: str) -> int:
        """Return the number of the next message to a room."""
        number = self._last[subject] = self._last.pop(subject, 0) + 1
        if len(self._last) > self._rooms:
            self._last.popitem(last=False)
        return number

    def forget(self, subject: str) -> None:
        """Begin at 1 again."""
        self._last.pop(subject, None)


class Gaps:
    """What a receiver finds missing in the numbers of others; it remembers the last `publishers` of each room."""

    def __init__(self, publishers: int) -> None:
        self._publishers = publishers
        self._seen: dict[str, dict[bytes, int]] = {}

    def before(self, subject: str, publisher: bytes, number: int) -> int:
        """Return how many messages of a publisher are missing between the last one that came and this one."""
        seen = self._seen.setdefault(subject, {})
        last = seen.pop(publisher, number - 1)
        seen[publisher] = number
        if len(seen) > self._publishers:
            del seen[next(iter(seen))]
        # A number that is not higher is that of a publisher that has forgotten the last one.
        return min(max(0, number - last - 1), _LARGEST_GAP)

    def forget(self, subject: str) -> None:
        """Begin anew: what was published while nobody was in a room is not missed."""
        self._seen.pop(subject, None)
