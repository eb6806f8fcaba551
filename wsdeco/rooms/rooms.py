"""The rooms of one app: which have members, and what can be done with all of these."""

from __future__ import annotations

from collections.abc import Callable

from wsdeco.backplanes.interface import Backplane, PublishErrors
from wsdeco.rooms.broadcast import Broadcasts
from wsdeco.rooms.registry import Registry

__all__ = ["Rooms"]


class Rooms(Registry):
    """The rooms of one app.

    Args:
        backplane: Carries broadcasts to other processes; `None` where there are none.
        publish_errors: Whether a broadcast that could not be published raises, or is only counted.
        find_backplane: Asked for a backplane, where there is none, as soon as an event loop becomes the home.

    Attributes:
        backplane: What carries broadcasts to other processes.
        broadcasts: What sends to them.
    """

    def __init__(
        self,
        backplane: Backplane | None = None,
        publish_errors: PublishErrors = "count",
        find_backplane: Callable[[], Backplane | None] = lambda: None,
    ) -> None:
        super().__init__(backplane, find_backplane)
        self.broadcasts = Broadcasts(self, publish_errors)
