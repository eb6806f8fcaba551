"""The rooms of one app: which have members, and what can be done with all of these."""

from __future__ import annotations

from collections.abc import Callable

from wsdeco.backplanes.interface import Backplane, PublishErrors
from wsdeco.channels.data import Data
from wsdeco.clock import Clock
from wsdeco.rooms.broadcast import Broadcasts
from wsdeco.rooms.control import Control
from wsdeco.rooms.registry import Registry

__all__ = ["Rooms"]


class Rooms(Registry):
    """The rooms of one app.

    Args:
        backplane: Carries broadcasts to other processes; `None` if there are none.
        publish_errors: Whether what could not be published raises, or is only counted.
        find_backplane: Asked for a backplane, if there is none, as soon as an event loop becomes the home.
        clock: What the answers of other processes are waited for by; by default the event loop.

    Attributes:
        backplane: What carries broadcasts to other processes.
        broadcasts: What sends to their members.
        people: What closes and counts their members.
    """

    def __init__(
        self,
        backplane: Backplane | None = None,
        publish_errors: PublishErrors = "count",
        find_backplane: Callable[[], Backplane | None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(backplane, find_backplane)
        self.broadcasts: Broadcasts = Broadcasts(self, publish_errors)
        self.people: Control = Control(self, clock, raises=publish_errors == "raise")

    def begin(self) -> None:
        """Take part in what processes tell each other, in a new event loop."""
        self.people.begin()

    def end(self) -> None:
        """Take part no longer."""
        self.people.end()

    def control(self, data: Data) -> None:
        """Take what another process tells."""
        self.people.receive(data)
