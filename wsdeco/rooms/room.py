"""A room, as users see it: a name, and what can be done with the connections that have joined it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from wsdeco.channels.sink import Sink, channel_of
from wsdeco.rooms.rooms import Rooms

__all__ = ["Room"]

_MAX_NAME: Final = 1024
"""Bytes of UTF-8 that the name of a room may have."""

_SHOWN: Final = 40
"""Characters of a wrong name that an error shows."""


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
            ValueError: `name` is empty, or more than 1 KiB of UTF-8.
        """
        if not isinstance(name, str):
            raise TypeError(
                f"the name of a room must be a str, not {type(name).__name__} {repr(name)[:_SHOWN]}: "
                "write room('lobby')"
            )
        if not name:
            raise ValueError("the name of a room must not be empty: write room('lobby'), for instance")
        if len(name) > _MAX_NAME // 4 and len(name.encode(errors="surrogatepass")) > _MAX_NAME:
            # Names often come from peers, and are kept with their rooms.
            raise ValueError(
                f"the name of a room may have {_MAX_NAME} bytes of UTF-8; one of {len(name)} characters that begins "
                f"with {name[:_SHOWN]!a} is longer: check what peers send, or let a digest of it be the name"
            )
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
            ConnectionClosed: The connection has ended, or ends now, with 1008, as it is in `max_rooms` rooms already.
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
        return await self._rooms.broadcasts.send(self._key, data, exclude)

    def broadcast_nowait(self, data: str | bytes, exclude: Sink | Iterable[Sink] = ()) -> None:
        """Do what `broadcast` does, from synchronous code of any thread.

        In the members' own event loop it is done at once; elsewhere it is handed over, and done soon. What it raises
        then is logged instead, under `wsdeco`. Where no event loop runs, in a script for instance, and there is a
        backplane, it connects, publishes, and waits until the broker has confirmed that, about 30 ms; for many messages
        await `broadcast` in an event loop of your own.

        Args:
            data: The message.
            exclude: Who is not to get it: a sink, or several.

        Raises:
            BackplaneError: As `broadcast`.
            TypeError: As `broadcast`.
            ValueError: As `broadcast`.
        """
        self._rooms.broadcasts.send_nowait(self._key, data, exclude)

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


def _checked_sink(sink: object, method: str) -> Sink:
    if not isinstance(sink, Sink):
        raise TypeError(
            f"room.{method}() takes the sink of a connection, as on_connect(self, addr, sink) receives it, "
            f"not {type(sink).__name__}"
        )
    return sink
