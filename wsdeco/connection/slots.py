"""The slots of a route: its connections, and those of each client, counted in this process or in all workers."""

from __future__ import annotations

from typing import ClassVar, Protocol

__all__ = ["Share", "Slots"]


class Share(Protocol):
    """Counts the connections of this process among those of all worker processes."""

    def take(self, name: str, limit: int, /) -> bool:
        """Take a place of what is called `name`; return whether fewer than `limit` were taken in all processes."""
        ...

    def give_back(self, name: str, /) -> None:
        """Give one place of what is called `name` back."""


class Slots:
    """Counts the connections of a route against `max_connections` and `max_connections_total`.

    Attributes:
        share: Counts the connections of all worker processes; `None` if this process is the only one.
        limit: Connections at a time in this process; `None` for no limit.
        total: Connections at a time in all worker processes; `None` for no limit.
        name: What the route is called in all of them.
        taken: Connections of this process at present, handshakes in progress included.
        by_client: The same by client, if each of them is limited; only those that have any.
    """

    __slots__ = ("by_client", "limit", "name", "taken", "total")

    share: ClassVar[Share | None] = None

    def __init__(self, limit: int | None, total: int | None = None, name: str = "") -> None:
        self.limit: int | None = limit
        self.total: int | None = total
        self.name: str = name
        self.taken: int = 0
        self.by_client: dict[str, int] = {}

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

    def take_for(self, client: str, limit: int) -> bool:
        """Take one of the places of a client; return whether one was free."""
        taken = self.by_client.get(client, 0)
        if taken >= limit or (self.share is not None and not self.share.take(self._place_of(client), limit)):
            return False
        self.by_client[client] = taken + 1
        return True

    def give_back_for(self, client: str) -> None:
        """Give one place of a client back, and keep nothing of one that has none."""
        self.by_client[client] -= 1
        if not self.by_client[client]:
            del self.by_client[client]
        if self.share is not None:
            self.share.give_back(self._place_of(client))

    def _place_of(self, client: str) -> str:
        # A name that no route can have.
        return f"{self.name}\0{client}"

    def _take_of_total(self, total: int) -> bool:
        return self.taken < total if self.share is None else self.share.take(self.name, total)
