"""The members of one room in this process."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from wsdeco.backplanes.interface import ROUTE
from wsdeco.channels.base import Channel
from wsdeco.channels.sink import Sink
from wsdeco.reasons import printable
from wsdeco.wire.outgoing import Encoded

if TYPE_CHECKING:
    from wsdeco.rooms.rooms import Rooms

__all__ = ["Members", "route_key"]

logger: Final = logging.getLogger("wsdeco")


class Members:
    """The local members of one room.

    Attributes:
        key: What the room is called among those of all names and routes.
        channels: The members in the order in which they joined, each with its sink if it joined by that.
    """

    __slots__ = ("_rooms", "channels", "key")

    def __init__(self, key: str, rooms: Rooms) -> None:
        self.key: str = key
        self.channels: dict[Channel, Sink | None] = {}
        self._rooms = rooms

    def add(self, channel: Channel) -> None:
        """Take in a connection of the route whose upgrade is being accepted."""
        if self._rooms.settle(channel.loop):
            self.enter(channel, None)
        else:
            logger.warning(
                "%s gets no broadcast to %s: the members of rooms live in one event loop, which is another one now",
                channel.addr,
                printable(self.key),
            )

    def enter(self, channel: Channel, sink: Sink | None) -> None:
        """Take in a member, which lives in the home of the rooms."""
        is_first = not self.channels
        self.channels[channel] = sink
        if is_first:
            self._rooms.open(self)

    def discard(self, channel: Channel) -> None:
        """Let go of a member; does nothing if it is none."""
        if channel in self.channels:
            del self.channels[channel]
            if not self.channels:
                self._rooms.shut(self)

    def send(self, message: Encoded, excluded: Collection[Channel]) -> int:
        """Put a message into the outbox of each but the excluded; return how many have taken it."""
        # Copied, because a member that is closed for being slow leaves at once.
        channels = list(self.channels)
        if excluded:
            channels = [channel for channel in channels if channel not in excluded]
        # One loop for those with a shortcut: a chain of calls for each member costs more than all else but the write.
        connections = [channel.shortcut for channel in channels]
        first = next(filter(None, connections), None)
        if first is None:
            return sum([channel.send_encoded(message) for channel in channels])
        left = first.send_to_all(connections, message)
        taken = channels
        if left:
            skipped = set(left)
            taken = [channel for position, channel in enumerate(channels) if position not in skipped]
        for channel in taken:
            if channel.message_observer is not None:
                channel.message_observer.message_sent(channel, message.size)
        return len(taken) + sum([channels[position].send_encoded(message) for position in left])


def route_key(path: str) -> str:
    """Return what the room of a route is called."""
    return f"{ROUTE}{path}"
