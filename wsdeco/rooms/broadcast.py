"""Broadcasts: one message to all members of a room.

A broadcast is encoded once and put into the outbox of every local member before anything else happens, so all members
see one order, that of the calls, and none is waited for. One from another event loop than the members' is handed over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Iterable
from typing import TYPE_CHECKING, Final, cast

from wsdeco.backplanes.interface import PublishErrors
from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data, checked_data
from wsdeco.channels.sink import Sink, channel_of
from wsdeco.clock import running_loop
from wsdeco.reasons import BackplaneError, printable
from wsdeco.rooms.messages import Messages

if TYPE_CHECKING:
    from wsdeco.rooms.rooms import Rooms

__all__ = ["Broadcasts"]

logger: Final = logging.getLogger("wsdeco")

_MAX_BURST_BYTES: Final = 64 * 1024
"""Bytes broadcast in two turns of the loop after which `await` gives it two more, so that they are written."""

_MAX_BURST_MESSAGES: Final = 16 * 1024
"""Messages put into outboxes in two turns of the loop after which `await` gives it two more. A few milliseconds."""


class Broadcasts:
    """The broadcasts to the rooms of one app.

    Args:
        rooms: The rooms.
        publish_errors: Whether a broadcast that could not be published raises, or is only counted.

    Attributes:
        messages: How those with types are written.
    """

    def __init__(self, rooms: Rooms, publish_errors: PublishErrors) -> None:
        self.messages: Messages = Messages()
        self._rooms = rooms
        self._raises = publish_errors == "raise"
        self._burst_bytes = 0
        self._burst_messages = 0

    def _checked(self, key: str, data: object) -> Data:
        if not isinstance(data, str | bytes | bytearray | memoryview):
            return checked_data(self.messages.encode(key, data))
        return checked_data(cast(object, data))

    def send(self, key: str, data: object, exclude: object) -> Awaitable[int]:
        """Return what sends a message to all members once it is awaited: see `Room.broadcast`."""
        return self._rooms.at_home(0, self._broadcast, key, self._checked(key, data), _excluded(exclude))

    async def _broadcast(self, key: str, data: Data, excluded: Collection[Channel]) -> int:
        taken = 0
        try:
            taken = self._publish(key, data, excluded)
            if self._rooms.backplane is not None:
                await self._rooms.backplane.drained()
        finally:
            if self._is_turn_over(len(data), taken):
                # One turn for others, and one in which what goes to many is written.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        return taken

    def _is_turn_over(self, size: int, messages: int) -> bool:
        if not self._burst_messages:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._begin_burst)
        self._burst_bytes += size
        self._burst_messages += 1 + messages
        return self._burst_bytes >= _MAX_BURST_BYTES or self._burst_messages >= _MAX_BURST_MESSAGES

    def _begin_burst(self) -> None:
        self._burst_bytes = self._burst_messages = 0

    def send_nowait(self, key: str, data: object, exclude: object) -> None:
        """Send a message to all members: see `Room.broadcast_nowait`."""
        self._hand_over(key, self._checked(key, data), _excluded(exclude))

    def _hand_over(self, key: str, data: Data, excluded: Collection[Channel]) -> None:
        running = running_loop()
        home = self._rooms.home(running)
        if home is None:
            # A script, or a worker of a task queue: the members are in other processes.
            self._check_published(key, 0, published=self._rooms.publish_alone(key, data))
            return
        if home is running:
            self._publish(key, data, excluded)
            return
        try:
            home.call_soon_threadsafe(self._publish_or_log, key, data, excluded)
        except RuntimeError:
            # The loop was closed since it was asked.
            self._hand_over(key, data, excluded)

    def _publish_or_log(self, key: str, data: Data, excluded: Collection[Channel]) -> None:
        try:
            self._publish(key, data, excluded)
        except (BackplaneError, ValueError):
            logger.exception("a broadcast to %s from another thread failed", printable(key))

    def _publish(self, key: str, data: Data, excluded: Collection[Channel]) -> int:
        backplane = self._rooms.backplane
        if backplane is None:
            return self._rooms.deliver(key, data, excluded)
        is_published = backplane.publish_nowait(key, data)
        taken = self._rooms.deliver(key, data, excluded)
        self._check_published(key, taken, published=is_published)
        return taken

    def _check_published(self, key: str, taken: int, *, published: bool) -> None:
        if not published and self._raises:
            raise BackplaneError(
                f"a broadcast to {key!a} reached {taken} members in this process and no other process: "
                "the broker is not connected, or does not keep up"
            )


def _excluded(exclude: object) -> Collection[Channel]:
    if exclude == ():
        return ()
    sinks: Iterable[object] = (exclude,) if isinstance(exclude, Sink) else cast("Iterable[object]", exclude)
    if not isinstance(sinks, Iterable):
        raise TypeError(f"exclude must be a sink or several, not {type(exclude).__name__}: write exclude=sink")
    channels: set[Channel] = set()
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise TypeError(f"exclude must hold sinks, not {type(sink).__name__}: write exclude=[sink, ...]")
        channels.add(channel_of(sink))
    return channels
