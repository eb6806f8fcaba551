"""Who is let in: slots counted per route, over one process or several."""

from __future__ import annotations

from typing import ClassVar, Protocol

__all__ = ["Share", "Slots"]


class Share(Protocol):
    """Counts the connections of this process among those of all worker processes."""

    def take(self, name: str, limit: int, /) -> bool:
        """Take a place of the route `name`; return whether fewer than `limit` were taken in all processes."""
        ...

    def give_back(self, name: str, /) -> None:
        """Give one place of the route `name` back."""


class Slots:
    """Counts the connections of a route against `max_connections` and `max_connections_total`.

    Attributes:
        share: Where those of all worker processes are counted; `None` where this process is the only one.
        limit: Connections at a time in this process; `None` for no limit.
        total: Connections at a time in all worker processes; `None` for no limit.
        name: What the route is called in all of them.
        taken: Connections of this process at present, handshakes in progress included.
    """

    __slots__ = ("limit", "name", "taken", "total")

    share: ClassVar[Share | None] = None

    def __init__(self, limit: int | None, total: int | None = None, name: str = "") -> None:
        self.limit = limit
        self.total = total
        self.name = name
        self.taken = 0

    def take(self) -> bool:
        """Take a slot; return whether one was free."""
        if self.limit is not None and self.taken >= self.limit:
            return False
        if self.total is not None and not self._take_of_total(self.total):
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        """Give one slot back."""
        self.taken -= 1
        if self.total is not None and self.share is not None:
            self.share.give_back(self.name)

    def _take_of_total(self, total: int) -> bool:
        return self.taken < total if self.share is None else self.share.take(self.name, total)
