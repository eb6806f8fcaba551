"""A room, as users see it: a name, and what can be done with the connections that have joined it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from wsdeco.channels.data import Outgoing
from wsdeco.channels.sink import Sink, channel_of
from wsdeco.reasons import CloseCode
from wsdeco.rooms.control import RoomCount
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
                f"with {name[:_SHOWN]!a} is longer: refuse it with HTTPException(404), or take a digest"
            )
        self._name = name
        self._key = f"room:{name}"
        self._rooms = rooms

    @property
    def name(self) -> str:
        """The name."""
        return self._name

    def join(self, sink: Sink) -> None:
        """Make a connection a member; does nothing if it is one.

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
        """Make a connection a member no more; does nothing if it is none.

        What was broadcast before still reaches it, what is broadcast afterwards does not.

        Args:
            sink: The sink of the connection.

        Raises:
            RuntimeError: The call does not come from the event loop of the connection.
            TypeError: `sink` is none.
        """
        self._rooms.leave(self._key, _checked_sink(sink, "leave"))

    async def broadcast(self, data: Outgoing, exclude: Sink | Iterable[Sink] = ()) -> int:
        """Send one message to every member, `str` as text and `bytes` as binary, and wait for none of them.

        All members get the messages of a room in the order of the calls. Each has an outbox of its own: if a
        message would exceed `max_outbox`, also by itself, `slow_consumer` decides whether that member is closed with
        1013 or the message dropped for it and counted; the others get it.

        Any event loop may await it: the members' own does the work, and is given a turn now and then.

        Args:
            data: The message: `str`, `bytes`, or what the handlers of the app write that have messages with types.
            exclude: Who is not to get it: a sink, or several; often the sender.

        Returns:
            How many members in this process have taken it; 0 also if their event loop ends meanwhile.

        Raises:
            BackplaneError: It could not be published to other processes, and `publish_errors` is "raise"; members in
                this process have got it.
            TypeError: `data` is neither text nor bytes, and no handler has types or several write it in different ways;
                or `exclude` is something else than sinks.
            ValueError: `data` is text with a lone surrogate, or more than the backplane takes; nobody has got it.
        """
        return await self._rooms.broadcasts.send(self._key, data, exclude)

    def broadcast_nowait(self, data: Outgoing, exclude: Sink | Iterable[Sink] = ()) -> None:
        """Do what `broadcast` does, from synchronous code of any thread.

        In the members' own event loop it is done at once; elsewhere it is handed over, and done soon. What it raises
        then is logged instead, under `wsdeco`. If no event loop runs, in a script for instance, and there is a
        backplane, it connects, publishes, and waits until the broker has confirmed that, about 30 ms; for many messages
        await `broadcast` in an event loop of your own.

        Args:
            data: The message: `str`, `bytes`, or what the handlers of the app write that have messages with types.
            exclude: Who is not to get it: a sink, or several.

        Raises:
            BackplaneError: As `broadcast`.
            TypeError: As `broadcast`.
            ValueError: As `broadcast`.
        """
        self._rooms.broadcasts.send_nowait(self._key, data, exclude)

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> int:
        """Close the connection of every member, in all processes that share the backplane, as `Sink.close` does one.

        A room is a handle on people: if the connections of user 7 join the room `user:7`, closing that is to kick
        the user. Who joins afterwards is not concerned. `on_disconnect` of each runs with
        `Close(code, reason, by="server")`. It waits for none of the peers.

        Args:
            code: 1000 for a normal end, or a code of your own from 3000 to 4999 (RFC 6455, section 7.4).
            reason: Text for the peers, cut to 123 bytes of UTF-8.

        Returns:
            How many connections of this process it has ended; 0 also if their event loop ends meanwhile.

        Raises:
            BackplaneError: It could not be published to other processes, and `publish_errors` is "raise"; connections
                of this process are closed.
            TypeError: `code` is not an `int`, or `reason` not a `str`.
            ValueError: `code` is one that no endpoint may send.
        """
        return await self._rooms.people.close(self._key, code, reason)

    async def count(self) -> RoomCount:
        """Count the members, in all processes that share the backplane.

        Each process is asked, and counts its own in the moment in which it answers. Which there are is known from what
        they say when they start and end, and after a new connection to the broker from who answers within 0.25 s. Those
        that are known have 1 s to answer, about 1 ms on one machine. For one that does not, as it hangs, was killed, or
        the broker is not connected, the last number it has told counts, and the result has the age of that. A process
        that was killed is forgotten 10 s later. Without a backplane the number is that of this process, `len(room)`.

        Returns:
            The number of members, an `int` with an `age` in seconds, which is 0 if all have just answered.
        """
        return await self._rooms.people.count(self._key)

    def __len__(self) -> int:
        """Return how many members there are in this process."""
        return len(self._rooms.sinks(self._key))

    def __iter__(self) -> Iterator[Sink]:
        return iter(self._rooms.sinks(self._key))

    def __contains__(self, sink: object) -> bool:
        members = self._rooms.find(self._key)
        return members is not None and isinstance(sink, Sink) and channel_of(sink) in members.channels

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
