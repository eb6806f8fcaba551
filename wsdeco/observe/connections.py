"""The connections that are open, one by one, for who asks: `App.connections`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.observe.numbers import Visit, numbers_of
from wsdeco.rooms.members import Members
from wsdeco.routing.endpoints import Context

__all__ = ["ConnectionInfo", "open_connections"]


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What is known of an open connection, at the moment of the call.

    Attributes:
        sink: Its sending side, by which it can be closed: `info.sink.close_nowait(4001, "bye")`.
        addr: The peer's address.
        path: The path of its route, as it is registered.
        rooms: The names of the rooms that it is in.
        since: When the upgrade was accepted; `None` if it was not counted then, as `App.stats` says from when on.
        messages_received: Messages that arrived since then; `None` as above.
        bytes_received: Their payload in bytes, as estimated; `None` as above.
        messages_sent: Messages that were handed to the server since then; `None` as above.
        bytes_sent: Their payload in bytes, as estimated; `None` as above.
        inbox: Messages that wait for `on_message`.
        inbox_size: Bytes of memory that they take.
        unsent: Bytes that the peer has yet to make room for, as far as the server shows it.
        round_trip: Seconds from the last ping to its answer, to the millisecond on uvloop. `None` before the first ping
            after the first call of `App.connections`, and on servers that keep pings to themselves.
    """

    sink: Sink
    addr: Address
    path: str
    rooms: tuple[str, ...]
    since: datetime | None
    messages_received: int | None
    bytes_received: int | None
    messages_sent: int | None
    bytes_sent: int | None
    inbox: int
    inbox_size: int
    unsent: int
    round_trip: float | None


def open_connections(context: Context, key: str | None) -> list[ConnectionInfo]:
    """Return those of an app, or of the route whose connections are in the room `key`."""
    numbers_of(context)
    channels = [each.channel for each in context.connections.all()]
    return [_info(each) for each in channels if each.accepted and each.reason is None and key in (None, _route(each))]


def _info(channel: Channel) -> ConnectionInfo:
    visit = next((each for each in _observers(channel) if isinstance(each, Visit)), None)
    return ConnectionInfo(
        sink=Sink(channel),
        addr=channel.addr,
        path=_name(_route(channel)),
        rooms=tuple(_name(each.key) for each in tuple(channel.rooms) if isinstance(each, Members)),
        since=None if visit is None else datetime.fromtimestamp(time.time() - channel.clock.time() + visit.began, UTC),
        messages_received=None if visit is None else visit.messages_in,
        bytes_received=None if visit is None else visit.bytes_in,
        messages_sent=None if visit is None else visit.messages_out,
        bytes_sent=None if visit is None else visit.bytes_out,
        inbox=channel.waiting,
        inbox_size=channel.inbox_size,
        unsent=channel.unsent,
        round_trip=channel.round_trip,
    )


def _observers(channel: Channel) -> tuple[object, ...]:
    return () if channel.observer is None else channel.observer.parts()


def _route(channel: Channel) -> str:
    return channel.route_room.key if isinstance(channel.route_room, Members) else ""


def _name(key: str) -> str:
    return key.partition(":")[2]
