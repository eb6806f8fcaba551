"""Rooms: connections that get the same messages.

A broadcast is encoded once and put into the outbox of every local member before anything else happens, so all members
see one order, that of the calls, and none is waited for. Members live in one event loop at a time, the home of the
rooms; a broadcast from anywhere else is handed over to it.

A room without members is nothing but its name. What else there is of it, its `Members`, is made by the first one that
joins and forgotten with the last one that leaves. Those of a route are kept, since its connections enter them unasked.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from typing import Any, Final, cast

from wsdeco.backplanes.interface import Backplane, PublishErrors
from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data, checked_data
from wsdeco.channels.sink import Sink, channel_of
from wsdeco.reasons import BackplaneError
from wsdeco.wire.outgoing import Encoded

__all__ = ["Members", "Room", "Rooms", "route_key"]

logger = logging.getLogger("wsdeco")

_MAX_BURST_BYTES: Final = 64 * 1024
"""Bytes broadcast in one turn of the loop after which `await` gives it another one, so that they are written."""

_MAX_BURST_MESSAGES: Final = 16 * 1024
"""Messages put into outboxes in one turn of the loop after which `await` gives it another one. About 5 ms."""

_LOOK_AGAIN: Final = 0.5
"""Seconds after which a broadcast that was handed over looks whether the event loop is still there."""


class Members:
    """The local members of one room.

    Attributes:
        key: What the room is called among those of all names and routes.
        channels: The members in the order in which they joined, each with its sink where it joined by that.
    """

    __slots__ = ("_rooms", "channels", "key")

    def __init__(self, key: str, rooms: Rooms) -> None:
        self.key = key
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
                self.key,
            )

    def enter(self, channel: Channel, sink: Sink | None) -> None:
        """Take in a member, which lives in the home of the rooms."""
        is_first = not self.channels
        self.channels[channel] = sink
        if is_first:
            self._rooms.open(self)

    def discard(self, channel: Channel) -> None:
        """Let go of a member; does nothing where it is none."""
        if channel in self.channels:
            del self.channels[channel]
            if not self.channels:
                self._rooms.shut(self)


class Rooms:
    """The rooms of one app.

    Args:
        backplane: Carries broadcasts to other processes; `None` where there are none.
        publish_errors: Whether a broadcast that could not be published raises, or is only counted.
        find_backplane: Asked for a backplane, where there is none, as soon as an event loop becomes the home.

    Attributes:
        backplane: What carries broadcasts to other processes.
    """

    def __init__(
        self,
        backplane: Backplane | None = None,
        publish_errors: PublishErrors = "count",
        find_backplane: Callable[[], Backplane | None] = lambda: None,
    ) -> None:
        self.backplane = backplane
        self._raises = publish_errors == "raise"
        self._find_backplane = find_backplane
        self._loop: asyncio.AbstractEventLoop | None = None
        self._moving = threading.Lock()
        self._open: dict[str, Members] = {}
        self._of_routes: dict[str, Members] = {}
        self._burst_bytes = 0
        self._burst_messages = 0

    # Where members live.

    def start(self) -> None:
        """Make the running event loop the home, unless members live in another one."""
        self.settle(asyncio.get_running_loop())

    def settle(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Make `loop`, which runs, the home unless members live in another one; return whether it is the home."""
        if self._loop is loop:
            return True
        with self._moving:
            home = self._loop
            if self._open and home is not None and not home.is_closed():
                return False
            self.find_backplane()
            self._loop = loop
            left_behind = self._forget_members()
        if self.backplane is not None:
            self.backplane.start(self._receive)
            for key in left_behind:
                self.backplane.unsubscribe(key)
        return True

    def find_backplane(self) -> None:
        """Ask for a backplane, where there is none."""
        if self.backplane is None:
            self.backplane = self._find_backplane()

    def _forget_members(self) -> list[str]:
        # Of an event loop that was closed under them: they can end no more.
        forgotten = list(self._open.values())
        self._open.clear()
        for members in forgotten:
            members.channels.clear()
        return [members.key for members in forgotten]

    async def close(self) -> None:
        """Let go of the event loop, and end the backplane; the next use begins anew."""
        if not self._open:
            self._loop = None
        if self.backplane is not None:
            await self.backplane.close()

    def _home(self, running: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop | None:
        home = self._loop
        if home is None or home is running or home.is_closed() or not (self._open or home.is_running()):
            # Free to take, unless another thread is faster.
            return running if running is None or self.settle(running) else self._loop
        return home

    # Who they are.

    def of_route(self, path: str) -> Members:
        """Return the members that the connections of a route enter."""
        members = self._of_routes.get(path)
        if members is None:
            members = self._of_routes[path] = Members(route_key(path), self)
        return members

    def find(self, key: str) -> Members | None:
        """Return the members of a room that has some."""
        return self._open.get(key)

    def join(self, key: str, sink: Sink) -> None:
        """Make a connection a member: see `Room.join`."""
        channel = channel_of(sink)
        _check_loop(channel, "join")
        if channel.closed or channel.reason is not None:
            raise channel.closed_error()
        if not self.settle(channel.loop):
            raise RuntimeError(
                f"{sink!r} belongs to another event loop than the members of rooms, which live in one at a time: "
                "serve the app in one event loop, or give the other one an App of its own"
            )
        members = self._open.get(key)
        if members is None:
            members = Members(key, self)
        elif channel in members.channels:
            return
        members.enter(channel, sink)
        channel.rooms = (*channel.rooms, members)

    def leave(self, key: str, sink: Sink) -> None:
        """Make a connection a member no more: see `Room.leave`."""
        channel = channel_of(sink)
        members = self._open.get(key)
        if members is None or channel not in members.channels:
            return
        _check_loop(channel, "leave")
        channel.rooms = tuple(room for room in channel.rooms if room is not members)
        members.discard(channel)

    def open(self, members: Members) -> None:
        """Note that a room has members."""
        self._open[members.key] = members
        if self.backplane is not None:
            self.backplane.subscribe(members.key)

    def shut(self, members: Members) -> None:
        """Note that a room has no members any more."""
        del self._open[members.key]
        if self.backplane is not None:
            self.backplane.unsubscribe(members.key)

    # What they get.

    async def broadcast(self, key: str, data: object, exclude: object) -> int:
        """Send a message to all members: see `Room.broadcast`."""
        checked, excluded = checked_data(data), _excluded(exclude)
        running = asyncio.get_running_loop()
        home = self._home(running)
        if home is None or home is running:
            return await self._broadcast(key, checked, excluded)
        return await _run_in(home, self._broadcast(key, checked, excluded))

    async def _broadcast(self, key: str, data: Data, excluded: Collection[Channel]) -> int:
        taken = 0
        try:
            taken = self._publish(key, data, excluded)
            if self.backplane is not None:
                await self.backplane.drained()
        finally:
            await self._end_turn(len(data), taken)
        return taken

    async def _end_turn(self, size: int, messages: int) -> None:
        if not self._burst_messages:
            asyncio.get_running_loop().call_soon(self._begin_burst)
        self._burst_bytes += size
        self._burst_messages += 1 + messages
        if self._burst_bytes >= _MAX_BURST_BYTES or self._burst_messages >= _MAX_BURST_MESSAGES:
            await asyncio.sleep(0)

    def _begin_burst(self) -> None:
        self._burst_bytes = self._burst_messages = 0

    def broadcast_nowait(self, key: str, data: object, exclude: object) -> None:
        """Send a message to all members: see `Room.broadcast_nowait`."""
        self._hand_over(key, checked_data(data), _excluded(exclude))

    def _hand_over(self, key: str, data: Data, excluded: Collection[Channel]) -> None:
        running = _running_loop()
        home = self._home(running)
        if home is None or home is running:
            self._publish(key, data, excluded)
            return
        try:
            home.call_soon_threadsafe(self._publish_or_log, key, data, excluded)
        except RuntimeError:
            # Closed since it was asked.
            self._hand_over(key, data, excluded)

    def _publish_or_log(self, key: str, data: Data, excluded: Collection[Channel]) -> None:
        try:
            self._publish(key, data, excluded)
        except (BackplaneError, ValueError):
            logger.exception("a broadcast to %s from another thread failed", key)

    def _publish(self, key: str, data: Data, excluded: Collection[Channel]) -> int:
        backplane = self.backplane
        if backplane is None:
            return self._deliver(key, data, excluded)
        is_published = backplane.publish_nowait(key, data)
        taken = self._deliver(key, data, excluded)
        if not is_published and self._raises:
            raise BackplaneError(
                f"a broadcast to {key!r} reached {taken} members in this process and no other process: "
                "the broker is not connected, or does not keep up"
            )
        return taken

    def _receive(self, key: str, data: Data) -> None:
        self._deliver(key, data, ())

    def _deliver(self, key: str, data: Data, excluded: Collection[Channel]) -> int:
        members = self._open.get(key)
        if members is None or _running_loop() is not self._loop:
            return 0
        message = Encoded(data)
        # Copied, because a member that is closed for being slow leaves at once.
        channels = list(members.channels)
        if excluded:
            channels = [channel for channel in channels if channel not in excluded]
        return sum([channel.send_encoded(message) for channel in channels])


class Room:
    """A group of connections that get the same messages, found by its name. Made by `App.room`.

    Rooms of one app that have the same name are equal, and are one room. A connection may be in any number of them, and
    leaves them all the moment it ends, or its handshake is refused. `len(room)`, `iter(room)` and `sink in room` tell
    about the members in this process; a room without any takes no memory.
    """

    __slots__ = ("_key", "_name", "_rooms")

    def __init__(self, name: str, rooms: Rooms) -> None:
        """Stand for the room `name` of `rooms`.

        Raises:
            TypeError: `name` is not a `str`.
            ValueError: `name` is empty.
        """
        if not isinstance(name, str):
            raise TypeError(
                f"the name of a room must be a str, not {type(name).__name__} {name!r}: write room('lobby')"
            )
        if not name:
            raise ValueError("the name of a room must not be empty: write room('lobby'), for instance")
        self._name = name
        self._key = f"room:{name}"
        self._rooms = rooms

    @property
    def name(self) -> str:
        """The name."""
        return self._name

    def join(self, sink: Sink) -> None:
        """Make a connection a member; does nothing where it is one.

        In `on_connect` a connection may join before its upgrade is accepted: what is broadcast meanwhile waits, and
        follows the upgrade.

        Args:
            sink: The sink of the connection, as `on_connect` receives it.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call does not come from the event loop of the connection, or members of rooms live in
                another one.
            TypeError: `sink` is none.
        """
        self._rooms.join(self._key, _checked_sink(sink, "join"))

    def leave(self, sink: Sink) -> None:
        """Make a connection a member no more; does nothing where it is none.

        What was broadcast before still reaches it, what is broadcast afterwards does not.

        Args:
            sink: The sink of the connection.

        Raises:
            RuntimeError: The call does not come from the event loop of the connection.
            TypeError: `sink` is none.
        """
        self._rooms.leave(self._key, _checked_sink(sink, "leave"))

    async def broadcast(self, data: str | bytes, exclude: Sink | Iterable[Sink] = ()) -> int:
        """Send one message to every member, `str` as text and `bytes` as binary, and wait for none of them.

        All members get the messages of a room in the order of the calls. Each has an outbox of its own: where a
        message would exceed `max_outbox`, also by itself, `slow_consumer` decides whether that member is closed with
        1013 or the message dropped for it and counted; the others get it.

        Any event loop may await it: the members' own does the work, and is given a turn now and then.

        Args:
            data: The message.
            exclude: Who is not to get it: a sink, or several; often the sender.

        Returns:
            How many members in this process have taken it; 0 also where their event loop ends meanwhile.

        Raises:
            BackplaneError: It could not be published to other processes, and `publish_errors` is "raise"; members in
                this process have got it.
            TypeError: `data` is neither text nor bytes, or `exclude` something else than sinks.
            ValueError: `data` is text with a lone surrogate, or more than the backplane takes; nobody has got it.
        """
        return await self._rooms.broadcast(self._key, data, exclude)

    def broadcast_nowait(self, data: str | bytes, exclude: Sink | Iterable[Sink] = ()) -> None:
        """Do what `broadcast` does, from synchronous code of any thread.

        In the members' own event loop it is done at once; elsewhere it is handed over, and done soon. What it raises
        then is logged instead, under `wsdeco`.

        Args:
            data: The message.
            exclude: Who is not to get it: a sink, or several.

        Raises:
            BackplaneError: As `broadcast`.
            TypeError: As `broadcast`.
            ValueError: As `broadcast`.
        """
        self._rooms.broadcast_nowait(self._key, data, exclude)

    def __len__(self) -> int:
        """Return how many members there are in this process."""
        return len(self._members())

    def __iter__(self) -> Iterator[Sink]:
        return iter(self._members())

    def __contains__(self, sink: object) -> bool:
        members = self._rooms.find(self._key)
        return members is not None and isinstance(sink, Sink) and channel_of(sink) in members.channels

    def _members(self) -> list[Sink]:
        members = self._rooms.find(self._key)
        return [] if members is None else [sink for sink in tuple(members.channels.values()) if sink is not None]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Room) and (other._rooms, other._key) == (self._rooms, self._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<Room {self._name!r} with {len(self)} members>"


def route_key(path: str) -> str:
    """Return what the room of a route is called."""
    return f"route:{path}"


def _checked_sink(sink: object, method: str) -> Sink:
    if not isinstance(sink, Sink):
        raise TypeError(
            f"room.{method}() takes the sink of a connection, as on_connect(self, addr, sink) receives it, "
            f"not {type(sink).__name__}"
        )
    return sink


def _check_loop(channel: Channel, method: str) -> None:
    if _running_loop() is not channel.loop:
        raise RuntimeError(
            f"room.{method}() must be called in the event loop of the connection: from another thread write "
            f"loop.call_soon_threadsafe(room.{method}, sink) with the loop of its hooks"
        )


def _excluded(exclude: object) -> Collection[Channel]:
    sinks: Iterable[object] = (exclude,) if isinstance(exclude, Sink) else cast("Iterable[object]", exclude)
    if not isinstance(sinks, Iterable):
        raise TypeError(f"exclude must be a sink or several, not {type(exclude).__name__}: write exclude=sink")
    channels: set[Channel] = set()
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise TypeError(f"exclude must hold sinks, not {type(sink).__name__}: write exclude=[sink, ...]")
        channels.add(channel_of(sink))
    return channels


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _run_in(loop: asyncio.AbstractEventLoop, broadcast: Coroutine[Any, Any, int]) -> int:
    try:
        handed_over = asyncio.run_coroutine_threadsafe(broadcast, loop)
    except RuntimeError:
        # Closed since it was asked.
        broadcast.close()
        return 0
    taken = asyncio.wrap_future(handed_over)
    try:
        # A loop that is closed tells nobody.
        while not taken.done() and not loop.is_closed():
            await asyncio.wait((taken,), timeout=_LOOK_AGAIN)
    finally:
        taken.cancel()
        if loop.is_closed():
            broadcast.close()
    return 0 if taken.cancelled() else taken.result()
