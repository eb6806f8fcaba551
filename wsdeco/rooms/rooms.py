"""Which rooms of an app have members, and the event loop these live in.

Members live in one event loop at a time, the home of the rooms.

A room without members is nothing but its name. What else there is of it, its `Members`, is made by the first one that
joins and forgotten with the last one that leaves. Those of a route are kept, since its connections enter them unasked.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Final, TypeVar

from wsdeco.backplanes.interface import CONTROL, ROUTE, Backplane, Propagating, Propagator, PublishErrors
from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.channels.sink import Sink, channel_of
from wsdeco.clock import Clock, running_loop
from wsdeco.reasons import CloseCode
from wsdeco.rooms.broadcast import Broadcasts
from wsdeco.rooms.control import Control
from wsdeco.rooms.members import Members, route_key
from wsdeco.wire.outgoing import Encoded

__all__ = ["Rooms"]

T = TypeVar("T")

_LOOK_AGAIN: Final = 0.1
"""Seconds after which what was handed over looks whether the event loop is still there."""

logger: Final = logging.getLogger("wsdeco")


class Rooms:
    """The rooms of one app.

    Args:
        backplane: Carries broadcasts to other processes; `None` if there are none.
        publish_errors: Whether what could not be published raises, or is only counted.
        find_backplane: Asked for a backplane, if there is none, as soon as an event loop becomes the home.
        clock: What the answers of other processes are waited for by; by default the event loop.

    Attributes:
        backplane: What carries broadcasts to other processes.
        propagator: What gives broadcasts the context of their trace to take along; `None` while traces are off.
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
        self.backplane = backplane
        self.propagator: Propagator | None = None
        self.broadcasts: Broadcasts = Broadcasts(self, publish_errors)
        self.people: Control = Control(self, clock, raises=publish_errors == "raise")
        self._find_backplane = find_backplane
        self._loop: asyncio.AbstractEventLoop | None = None
        self._moving = threading.Lock()
        self._open: dict[str, Members] = {}
        self._of_routes: dict[str, Members] = {}

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
            # The event loop of who is left was closed under them, so they can never end.
            left_behind, self._open = self._open, {}
            for members in left_behind.values():
                members.channels.clear()
            if self.backplane is not None:
                self.backplane.start(self._receive)
                for key in left_behind:
                    self.backplane.unsubscribe(key)
                self.people.begin()
        return True

    def find_backplane(self) -> None:
        """Ask for a backplane, if there is none, and let it carry the context of traces, if they are on."""
        if self.backplane is None:
            self.backplane = self._find_backplane()
        if self.propagator is not None and isinstance(self.backplane, Propagating):
            self.backplane.propagator = self.propagator

    async def close(self) -> None:
        """Let go of the event loop, and end the backplane; the next use begins anew."""
        if not self._open:
            self._loop = None
        if self.backplane is not None:
            self.people.end()
            await self.backplane.close()

    def home(self, running: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop | None:
        """Return the event loop that members live in, which is the running one if it is free to take."""
        home = self._loop
        if home is None or home is running or home.is_closed() or not (self._open or home.is_running()):
            # No loop is taken yet; another thread may be faster.
            return running if running is None or self.settle(running) else self._loop
        return home

    def at_home(self, otherwise: T, work: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> Awaitable[T]:
        """Return what does `work` in the event loop of the members; it gives `otherwise` if that ends meanwhile."""
        running = asyncio.get_running_loop()
        home = running if self._loop is running else self.home(running)
        done = work(*arguments)
        return done if home is None or home is running else _run_in(home, done, otherwise)

    def publish_alone(self, key: str, data: Data) -> bool:
        """Publish if no event loop runs, in one that lives until the broker has the message.

        Whoever serves the app in another thread meanwhile waits with its start for the end of this.

        Raises:
            BackplaneError: The environment names a backplane that cannot be used.
            ValueError: `data` is more than the backplane takes.
        """
        with self._moving:
            self.find_backplane()
            if self.backplane is None:
                return True
            # The previous loop is over, and everything begins anew.
            self._loop = None
            return asyncio.run(_publish_alone(self.backplane, key, data))

    # Who members are.

    def of_route(self, path: str) -> Members:
        """Return the members that the connections of a route enter."""
        members = self._of_routes.get(path)
        if members is None:
            members = self._of_routes[path] = Members(route_key(path), self)
        return members

    def census(self) -> tuple[int, int]:
        """Return how many rooms have members in this process, and how many in all, those of routes excluded."""
        # Copied, since whoever asks may be in another thread.
        sizes = [len(each.channels) for each in tuple(self._open.values()) if not each.key.startswith(ROUTE)]
        return len(sizes), sum(sizes)

    def find(self, key: str) -> Members | None:
        """Return the members of a room that has some."""
        return self._open.get(key)

    def sinks(self, key: str) -> list[Sink]:
        """Return the sinks of those who have joined a room, as of this moment; any thread may ask."""
        members = self._open.get(key)
        return [] if members is None else [sink for sink in tuple(members.channels.values()) if sink is not None]

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
        most = channel.config.max_rooms
        if most is not None and len(channel.rooms) >= most:
            channel.close_by_server(CloseCode.POLICY, f"more than max_rooms={most} rooms")
            raise channel.closed_error()
        members.enter(channel, sink)
        channel.note_room(members)

    def leave(self, key: str, sink: Sink) -> None:
        """Make a connection a member no more: see `Room.leave`."""
        channel = channel_of(sink)
        members = self._open.get(key)
        if members is None or channel not in members.channels:
            return
        _check_loop(channel, "leave")
        channel.forget_room(members)
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
            try:
                self.backplane.unsubscribe(members.key)
            except Exception:
                # A connection leaves its rooms as it ends, and a backplane of the user's must not keep it from that.
                logger.exception("the backplane failed to unsubscribe from the room %a", members.key)

    # What members get.

    def deliver(self, key: str, data: Data, excluded: Collection[Channel] = ()) -> int:
        """Put a message into the outbox of each member of a room; return how many have taken it."""
        members = self._open.get(key)
        if members is None or running_loop() is not self._loop:
            return 0
        return members.send(Encoded(data), excluded)

    def _receive(self, key: str, data: Data) -> None:
        if key != CONTROL:
            self.deliver(key, data)
        elif running_loop() is self._loop:
            self.people.receive(data)


async def _run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], otherwise: T) -> T:
    """Run `work` in another event loop; return what it does, or `otherwise` if that loop ends meanwhile."""
    try:
        handed_over = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        # The loop was closed since it was asked.
        work.close()
        return otherwise
    result = asyncio.wrap_future(handed_over)
    try:
        # Nobody is told when a loop is closed, so it has to be asked.
        while not result.done() and not loop.is_closed():
            await asyncio.wait((result,), timeout=_LOOK_AGAIN)
    finally:
        result.cancel()
        if loop.is_closed():
            work.close()
    return otherwise if result.cancelled() else result.result()


def _check_loop(channel: Channel, method: str) -> None:
    if running_loop() is not channel.loop:
        raise RuntimeError(
            f"room.{method}() must be called in the event loop of the connection: from another thread write "
            f"loop.call_soon_threadsafe(room.{method}, sink) with the loop of its hooks"
        )


async def _publish_alone(backplane: Backplane, key: str, data: Data) -> bool:
    lost = backplane.counters.lost
    backplane.start(lambda key, data: None)
    try:
        backplane.publish_nowait(key, data)
    finally:
        await backplane.close()
    return backplane.counters.lost == lost
