"""The duplex pipe of one connection: what every channel shares.

A channel is CONNECTING until the upgrade is accepted, then OPEN, and ended as soon as it has a `reason`. The
first event that ends it sets the reason; whatever comes later changes nothing. Reading goes on beside the hooks:
messages wait in the inbox, whose size in bytes is bounded by not reading further.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABCMeta, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar, cast

from starlette.requests import HTTPConnection

from wsdeco.channels.data import Address, Data, HeaderItems
from wsdeco.channels.dialogue import Conversation
from wsdeco.channels.observer import Observer
from wsdeco.channels.packed_request import PackedRequest
from wsdeco.channels.waiting import accept_and_close, end_of, next_message
from wsdeco.clock import Clock, Deadline
from wsdeco.compiled import mypyc_attr
from wsdeco.config import ConnectionConfig
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, DisconnectReason, Error, Unknown
from wsdeco.wire.contract import Connection
from wsdeco.wire.outgoing import Encoded

__all__ = ["Channel", "Membership", "Owner", "RouteRoom", "wake"]

T = TypeVar("T")


_FEW_ROOMS: Final = 8
"""Rooms of one connection that are kept as a tuple, which takes less memory than a dict."""

_EMPTY_TEXT: Final = sys.getsizeof("")
_EMPTY_BYTES: Final = sys.getsizeof(b"")


class Owner(Protocol):
    """Who is told what happens to a channel.

    Attributes:
        conversation: What encodes messages with types; `None` if there are none.
    """

    conversation: Conversation | None

    def channel_accepted(self) -> None:
        """The upgrade is accepted; called once at most."""

    def channel_ended(self) -> None:
        """The channel has ended, and `reason` is set; called once."""

    def create_task(self, work: Coroutine[Any, Any, T], name: str | None) -> asyncio.Task[T]:
        """Run `work` in a task that ends with the connection."""
        ...

    async def first_message(self, seconds: float) -> Data:
        """Return the first message, which `on_connect` wants to have itself."""
        ...

    def expire_in(self, seconds: float | None) -> None:
        """Close with 4401 in so many seconds; `None` takes that back."""

    def transport_lost(self) -> None:
        """The transport is gone; called once, by channels that can tell."""


class Membership(Protocol):
    """What a channel may be a member of."""

    def add(self, channel: Channel) -> None:
        """Take the channel in."""

    def discard(self, channel: Channel) -> None:
        """Let go of the channel, if it is a member."""


class RouteRoom(Membership, Protocol):
    """The room of a route.

    Attributes:
        key: What it is called among those of the app.
    """

    key: str


@mypyc_attr(allow_interpreted_subclasses=True)
class Channel(metaclass=ABCMeta):
    """One connection as the lifecycle sees it.

    Attributes:
        request: The handshake request.
        config: The limits of the connection.
        clock: The clock of its deadlines.
        loop: The event loop it belongs to.
        reason: Why it ended; `None` until then.
        accepted: Whether the upgrade has been accepted.
        subprotocol: The subprotocol agreed on.
        dropped: Outgoing messages dropped because the outbox was full (`slow_consumer="drop"`).
        undelivered: Incoming messages that no hook took: of a kind it does not take, or too late.
        observer: Who watches what happens to it; `None` if nobody does.
        message_observer: The same, if it wants to know of each message.
        owner: Who is told when the upgrade is accepted and when the channel ends.
        route_room: The room of its route, whose member it is from the upgrade to its end.
        rooms: What else it is a member of; it leaves all of them as soon as `reason` is set.
        shortcut: What a broadcast may be written to past the channel, by who tells its `message_observer`; `None` if
            there is nothing.
    """

    __slots__ = (
        "_addr",
        "_departure",
        "_inbox",
        "_inbox_size",
        "_last_frame_at",
        "_message_waiter",
        "_reading_paused",
        "_request",
        "accepted",
        "clock",
        "config",
        "dropped",
        "loop",
        "message_observer",
        "observer",
        "owner",
        "reason",
        "rooms",
        "route_room",
        "shortcut",
        "subprotocol",
        "undelivered",
    )

    def __init__(self, request: HTTPConnection, config: ConnectionConfig, clock: Clock | None = None) -> None:
        self._request: HTTPConnection | PackedRequest = request
        self.config: ConnectionConfig = config
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.clock: Clock = clock if clock is not None else self.loop
        self.reason: DisconnectReason | None = None
        self.accepted: bool = False
        self.subprotocol: str | None = None
        self.dropped: int = 0
        self.undelivered: int = 0
        self.route_room: RouteRoom | None = None
        self.shortcut: Connection | None = None
        self.rooms: tuple[Membership, ...] | dict[Membership, None] = ()
        self._last_frame_at = self.clock.time()
        self.observer: Observer | None = None
        self.message_observer: Observer | None = None
        self.owner: Owner | None = None
        self._addr: Address | None = None
        self._departure: Deadline | None = None
        self._inbox: list[Any] | None = None
        self._inbox_size: int = 0
        self._message_waiter: asyncio.Future[bool | None] | None = None
        self._reading_paused = False

    # What a server's channel supplies.

    @abstractmethod
    async def connect(self) -> bool:
        """Take the handshake request from the server; return whether the peer is still there."""

    @abstractmethod
    async def read(self) -> None:
        """Read from the peer until it has gone; then `reason` is set."""

    @abstractmethod
    async def accept(self, subprotocol: str | None = None, headers: HeaderItems = ()) -> None:
        """Accept the upgrade."""

    @abstractmethod
    async def refuse(self, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer the handshake with an HTTP response instead of the upgrade."""

    def refuse_after_upgrade(self, code: int, text: str) -> Awaitable[None]:
        """Answer the handshake with the upgrade and a close frame, which a script in a browser can read."""
        # Nobody is told of a connection, and no broadcast goes to it.
        self.observer = self.message_observer = self.route_room = None
        return accept_and_close(self, code, text)

    @abstractmethod
    async def send(self, data: Data) -> None:
        """Send one message; wait while the peer does not read.

        Raises:
            ValueError: It is text that UTF-8 cannot carry; so do the other ways to send.
        """

    def try_send(self, data: Data) -> bool:
        """Send one message if that needs no waiting, and return whether it was sent."""
        return False

    @abstractmethod
    def send_nowait(self, data: Data) -> bool:
        """Put one message into the outbox; return whether it went in."""

    def send_encoded(self, message: Encoded) -> bool:
        """Do what `send_nowait` does, with a message that goes to many channels."""
        return self.send_nowait(message.data)

    @abstractmethod
    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        """End the channel for `reason`: send what waits, then a close frame (or an HTTP refusal)."""

    @abstractmethod
    async def flushed(self) -> None:
        """Wait until nothing is left to be written, the close frame included."""

    @abstractmethod
    def abort(self) -> None:
        """Drop the transport without waiting for anything."""

    @abstractmethod
    def release(self) -> None:
        """Let go of timers and the like, when everything about the connection has ended."""

    def _pause_reading(self) -> None:  # noqa: B027 - one that reads by itself looks at `_reading_paused`
        """Read no further, since there is no room in the inbox."""

    def _resume_reading(self) -> None:
        """Read on, if reading has been paused."""
        self._reading_paused = False

    def _finish(self) -> None:  # noqa: B027 - servers do so by themselves
        """Answer the end of the input, now that all messages before it have been taken."""

    # What all of them share.

    def watch(self, observer: Observer | None) -> None:
        """Let `observer` know what happens from now on."""
        if observer is not None:
            self.observer = observer = observer.begin(self)
            if observer.sees_messages:
                self.message_observer = observer

    @property
    def request(self) -> HTTPConnection:
        """The handshake request."""
        request = self._request
        if isinstance(request, PackedRequest):
            request = self._request = request.unpack()
        return request

    @property
    def addr(self) -> Address:
        """The peer's address."""
        if self._addr is None:
            client = self.request.scope.get("client")
            self._addr = Address(str(client[0]), int(client[1])) if client else Address("", 0)
        return self._addr

    @property
    def inbox_size(self) -> int:
        """Bytes of memory of the messages that wait for a hook."""
        return self._inbox_size

    @property
    def unsent(self) -> int:
        """Bytes that were sent and that the peer has yet to make room for, as far as the server shows it."""
        return 0

    def take(self) -> Data | None:
        """Return the next message in order; `None` while none waits, and when the channel has ended."""
        inbox = self._inbox
        if inbox is None:
            if self.reason is not None:
                self._finish()
            return None
        data: Any = inbox.pop()
        if inbox:
            # What is too big, for which there is no data, is the last.
            self._inbox_size -= _memory_of(data)
        else:
            self._inbox = None
            self._inbox_size = 0
        if data is None:
            self.undelivered += 1
            text = f"message is longer than {self.config.max_message_size} bytes"
            self.close_by_server(CloseCode.TOO_BIG, text)
        elif self._reading_paused:
            self.wake_reader()
        return cast("Data | None", data)

    def event(self) -> Awaitable[bool | None]:
        """Return what the hooks' task awaits while no hook runs: that a message waits or the channel has ended.

        Its result is true if nothing of that has happened, and the hooks are to be looked up anew.
        """
        self._message_waiter = self.loop.create_future()
        return self._message_waiter

    def next_event(self) -> asyncio.Future[bool | None]:
        """Return what is done at the next event, for anybody else."""
        waiter = self._message_waiter
        if waiter is None or waiter.done():
            waiter = self._message_waiter = self.loop.create_future()
        return waiter

    def hooks_changed(self) -> None:
        """Tell the one who waits for messages that hooks are to be looked up anew."""
        wake(self._message_waiter, result=True)

    def sift(self, keep: Callable[[Data], bool], skip: int) -> int:
        """Take those messages out of the inbox that `keep` is false for; return how many are left.

        Args:
            keep: Asked for each message, the oldest first.
            skip: How many of the oldest are not asked for.
        """
        inbox = self._inbox
        if inbox is None:
            return 0
        new = len(inbox) - skip
        # The newest message is the first of the list.
        newest: list[Any] = inbox[:new]
        newest.reverse()
        kept = [data for data in newest if data is None or keep(data)]
        # `keep` may have closed the channel.
        if self._inbox is inbox and len(kept) < new:
            left = kept[::-1] + inbox[new:]
            self._inbox = left or None
            self._inbox_size = sum(_memory_of(data) for data in left if data is not None)
            self.wake_reader()
        return len(self._inbox or ())

    def encode(self, message: object) -> Data:
        """Return the frame for a message that is neither text nor bytes.

        Raises:
            TypeError: The handler has no types.
        """
        conversation = None if self.owner is None else self.owner.conversation
        if conversation is None:
            raise TypeError(
                f"a message must be str or bytes, not {type(message).__name__}: write sink.send_json(...), or annotate "
                'on_message with types, or give the handler a codec, as in @ws.handler(path, codec="json")'
            )
        return conversation.encode(message)

    def receive(self) -> Coroutine[Any, Any, Data | None]:
        """Return the next message in order; `None` when the channel has ended and none is left."""
        return next_message(self)

    @property
    def last_frame_at(self) -> float:
        """The clock's time of the last incoming frame, as far as the server shows frames."""
        return self._last_frame_at

    @property
    def round_trip(self) -> float | None:
        """Seconds from the last ping to its answer, if it can tell; asked once, it is measured from then on."""
        return None

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.reason is not None

    @property
    def lost(self) -> bool:
        """Whether the transport is gone, if the channel can tell."""
        return False

    def pack_request(self) -> None:  # noqa: B027 - most channels need not
        """Keep the request in less memory, if the channel knows how, now that the connection is open."""

    def ended(self) -> Coroutine[Any, Any, DisconnectReason]:
        """Wait until the channel has ended; return why."""
        return end_of(self, self._finish)

    def discard_inbox(self) -> None:
        """Give up the messages that wait for a hook, and count them."""
        if self._inbox is not None:
            self.undelivered += len(self._inbox)
            self._inbox = None
            self._inbox_size = 0
        self.wake_reader()

    def wake_reader(self) -> None:
        """Have the peer read again, if there is room for its messages."""
        if self._inbox_size <= self.config.max_inbox // 2:
            self._resume_reading()

    def messages_received(self, messages: list[Data]) -> None:
        """Put messages that have arrived into the inbox, in order (called by the reading side)."""
        if self.message_observer is not None:
            self.message_observer.messages_received(self, messages)
        if self.reason is not None:
            self.undelivered += len(messages)
            return
        if self._inbox is None and len(messages) == 1:
            # A message mostly comes alone, while none waits: a call would cost more than this work.
            self._inbox = messages
            self._inbox_size = _memory_of(messages[0])
            waiter = self._message_waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        else:
            size = 0
            for data in messages:
                size += _memory_of(data)
            self._put(messages, size)
        if self._inbox_size > self.config.max_inbox:
            self._reading_paused = True
            self._pause_reading()

    def _put_too_big(self) -> None:
        # The connection ends when the messages before it have been handled and answered.
        self._put([None], 0)

    def _put(self, messages: list[Any], size: int) -> None:
        # In reverse, so that taking the oldest is a pop().
        if self._inbox is None:
            if len(messages) > 1:
                messages.reverse()
            self._inbox = messages
        elif self._inbox[0] is None:
            # Nothing comes behind a message that is too big.
            self.undelivered += len(messages)
            return
        else:
            self._inbox[:0] = reversed(messages)
        self._inbox_size += size
        wake(self._message_waiter)

    @property
    def waiting(self) -> int:
        """How many messages wait for `on_message`."""
        return 0 if self._inbox is None else len(self._inbox)

    def end(self, reason: DisconnectReason) -> bool:
        """Set the reason, unless an earlier event has ended the channel; return whether it was set."""
        if self.reason is not None:
            return False
        self.reason = reason
        self._leave_rooms()
        wake(self._message_waiter)
        self._resume_reading()
        if self.owner is not None:
            self.owner.channel_ended()
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None
        return True

    def forget_exception(self) -> None:
        """Let go of the exception that has ended the channel, now that `on_disconnect` has had it.

        Its traceback holds the frames of the hooks, and they the handler, its messages and this channel: as long as the
        channel held it too, only the garbage collector could free them.
        """
        if isinstance(self.reason, Error):
            self.reason = Error(self.reason.message)

    def note_room(self, room: Membership) -> None:
        """Note that the channel is a member of `room`, to be left at its end."""
        rooms = self.rooms
        if isinstance(rooms, dict):
            rooms[room] = None
        elif len(rooms) < _FEW_ROOMS:
            self.rooms = (*rooms, room)
        else:
            self.rooms = dict.fromkeys((*rooms, room))

    def forget_room(self, room: Membership) -> None:
        """Note that the channel is a member no more."""
        rooms = self.rooms
        if isinstance(rooms, dict):
            del rooms[room]
        else:
            self.rooms = tuple(other for other in rooms if other is not room)

    def peer_left(self) -> None:
        """The peer has ended its side, behind messages for which there is no room in the inbox.

        Hooks have `disconnect_grace` to handle these messages. Then the channel ends.
        """
        if self.reason is None and self._departure is None and self.config.disconnect_grace is not None:
            self._departure = Deadline(self.clock, self.config.disconnect_grace, self._give_up)

    def _give_up(self) -> None:
        self.end(self.unread_end)
        self.abort()

    @property
    def unread_end(self) -> Close | Unknown:
        """How the peer has ended its side, as far as that is known while messages in front of it are not read."""
        return Unknown()

    @property
    def grace(self) -> float | None:
        """Seconds that a hook and what is not yet handled have when the peer has gone; `None` sets no limit."""
        return self.config.disconnect_grace if self._departure is None else self._departure.left

    def _leave_rooms(self) -> None:
        rooms, self.rooms = self.rooms, ()
        for room in rooms:
            room.discard(self)
        if self.route_room is not None:
            self.route_room.discard(self)

    def mark_accepted(self, subprotocol: str | None) -> None:
        """Note that the upgrade is being accepted."""
        self.subprotocol = subprotocol
        self.accepted = True
        # A peer may end its side in the TCP segment that brings its handshake.
        if self.route_room is not None and self.reason is None:
            self.route_room.add(self)
        if self.observer is not None:
            self.observer.accepted(self)
        if self.owner is not None:
            self.owner.channel_accepted()

    def drop_message(self) -> None:
        """Meet a peer that reads too slowly as `slow_consumer` says: a message for it does not fit its outbox."""
        if self.observer is not None:
            self.observer.message_dropped(self)
        if self.config.slow_consumer == "drop":
            self.dropped += 1
        else:
            self.close_slow_consumer()

    def close_slow_consumer(self) -> None:
        """Close a peer that reads too slowly with 1013."""
        self.close_by_server(CloseCode.TRY_AGAIN_LATER, "slow consumer")

    def close_by_server(self, code: int, text: str) -> None:
        """Close with a code and a text that are also the reason of the end."""
        self.close(code, text, Close(code, text, by="server"))

    def abort_slow_consumer(self) -> None:
        """Drop a peer that does not read within `send_timeout`."""
        self.close_slow_consumer()
        self.abort()

    def refusal(self) -> tuple[int, str, dict[str, str]]:
        """Return status, body and headers of the response if the channel has ended before its upgrade."""
        if isinstance(self.reason, Error):
            return 500, "Internal Server Error", {}
        return 503, "Service Unavailable", {"Retry-After": "1"}

    def closed_error(self) -> ConnectionClosed:
        """Return the exception for a use of the channel after its end."""
        return ConnectionClosed(self.reason if self.reason is not None else Unknown())

    def choose_subprotocol(self, wanted: str | None) -> str | None:
        """Return the subprotocol to agree on (RFC 6455, section 4.2.2).

        Args:
            wanted: What the handler wants; whether the client offers it is for those to check who send it.
        """
        if wanted is not None or not self.config.subprotocols:
            return wanted
        offered: list[str] = list(self.request.scope.get("subprotocols") or ())
        return next((name for name in self.config.subprotocols if name in offered), None)


def _memory_of(data: Data) -> int:
    """Return what `sys.getsizeof` does, which looks up a method each time, and takes three times as long."""
    if isinstance(data, str):
        return len(data) + _EMPTY_TEXT if data.isascii() else sys.getsizeof(data)
    return len(data) + _EMPTY_BYTES


def wake(waiter: asyncio.Future[Any] | None, result: bool | None = None) -> None:
    """Wake the one who waits for an event, if anybody does."""
    if waiter is not None and not waiter.done():
        waiter.set_result(result)
