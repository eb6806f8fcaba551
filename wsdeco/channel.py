"""The duplex pipe of one connection: what every channel shares, and what a handler sees of it, the `Sink`.

A channel is CONNECTING until the upgrade is accepted, then OPEN, and ended as soon as it has a `reason`. The
first event that ends it sets the reason; whatever comes later changes nothing. Reading goes on beside the hooks:
messages wait in the inbox, whose size in bytes is bounded by not reading further.
"""

from __future__ import annotations

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, cast

from starlette.datastructures import Headers, QueryParams
from starlette.requests import HTTPConnection

from wsdeco.clock import Clock
from wsdeco.config import ConnectionConfig
from wsdeco.encoding import Encoded
from wsdeco.reasons import (
    Close,
    CloseCode,
    ConnectionClosed,
    DisconnectReason,
    Unknown,
    check_close_code,
    cut_close_reason,
    printable,
)
from wsdeco.request import PackedRequest

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "Address",
    "Channel",
    "Data",
    "HeaderItems",
    "Membership",
    "Owner",
    "Sink",
    "channel_of",
    "checked_data",
    "checked_headers",
    "header_pairs",
    "wire_size",
]

Data: TypeAlias = str | bytes
"""A message: `str` travels as a text frame, `bytes` as a binary one."""

HeaderItems: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields of a response, as a mapping or, where a name repeats, as pairs."""

_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HANDSHAKE_HEADERS: Final = frozenset({"connection", "upgrade", "content-length", "transfer-encoding"})


class Address(NamedTuple):
    """The peer's address; `str()` gives `host:port`.

    Attributes:
        host: The IP address, or an empty string where there is none (a Unix socket).
        port: The TCP port, or 0.
    """

    host: str
    port: int

    def __str__(self) -> str:
        if not self.host:
            return "unknown address"
        host = printable(self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def wire_size(data: Data) -> int:
    """Return the bytes of payload that `data` takes in its frame."""
    return len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode())


def checked_data(data: object) -> Data:
    """Return `data` as something a frame can carry.

    Raises:
        TypeError: `data` is neither text nor bytes.
        ValueError: `data` is text that UTF-8 cannot carry.
    """
    if isinstance(data, str):
        if not data.isascii():
            try:
                data.encode()
            except UnicodeEncodeError as exc:
                raise ValueError(f"text cannot be sent, UTF-8 has no form for it: {exc}") from None
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(cast("Buffer", data))
    raise TypeError(
        f"a message must be str or bytes, not {type(data).__name__}: "
        "for anything else that JSON can carry write sink.send_json(...), or json.dumps(...) first"
    )


def header_pairs(headers: HeaderItems) -> Iterable[tuple[str, str]]:
    """Return `headers` as pairs of name and value."""
    return cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers


def checked_headers(headers: HeaderItems) -> list[tuple[bytes, bytes]]:
    """Return `headers` as ASGI wants them.

    Raises:
        TypeError: A name or value is not a `str`.
        ValueError: A name is not a token, a value holds CR, LF, NUL or a character outside ISO-8859-1, or the
            name belongs to the handshake itself.
    """
    checked: list[tuple[bytes, bytes]] = []
    pairs: Iterable[tuple[object, object]] = header_pairs(headers)
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers must be pairs of str, not {name!r}: {value!r}")
        if not name or not _TOKEN.issuperset(name):
            raise ValueError(f"header name {name!r} is not a token (RFC 9110, section 5.1)")
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"header {name!r} belongs to the handshake: for a subprotocol write subprotocol=...")
        if any(c in "\r\n\0" for c in value) or any(ord(c) > 0xFF for c in value):
            raise ValueError(f"header {name!r} has a value that no header can carry: {value!r}")
        checked.append((name.lower().encode("ascii"), value.strip(" \t").encode("latin-1")))
    return checked


class Owner(Protocol):
    """Who is told what happens to a channel."""

    def channel_accepted(self) -> None:
        """Take notice that the upgrade is accepted; called once at most."""

    def channel_ended(self) -> None:
        """Take notice that `reason` is set; called once."""

    def transport_lost(self) -> None:
        """Take notice that the transport is gone, where a channel can tell; called once."""


class Membership(Protocol):
    """What a channel may be a member of."""

    def add(self, channel: Channel) -> None:
        """Take the channel in."""

    def discard(self, channel: Channel) -> None:
        """Let go of the channel, if it is a member."""


class Channel(ABC):
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
        owner: Who is told when the upgrade is accepted and when the channel ends.
        route_room: The room of its route, whose member it is from the upgrade to its end.
        rooms: What else it is a member of; it leaves all of them as soon as `reason` is set.
    """

    __slots__ = (
        "__weakref__",
        "_addr",
        "_drained",
        "_inbox",
        "_inbox_size",
        "_last_frame_at",
        "_message_waiter",
        "_request",
        "accepted",
        "clock",
        "config",
        "dropped",
        "loop",
        "owner",
        "reason",
        "rooms",
        "route_room",
        "subprotocol",
        "undelivered",
    )

    def __init__(self, request: HTTPConnection, config: ConnectionConfig, clock: Clock | None = None) -> None:
        self._request: HTTPConnection | PackedRequest = request
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.clock: Clock = clock if clock is not None else self.loop
        self.reason: DisconnectReason | None = None
        self.accepted = False
        self.subprotocol: str | None = None
        self.dropped = 0
        self.undelivered = 0
        self.route_room: Membership | None = None
        self.rooms: tuple[Membership, ...] = ()
        self._last_frame_at = self.clock.time()
        self.owner: Owner | None = None
        self._addr: Address | None = None
        self._inbox: list[Any] | None = None
        self._inbox_size: int = 0
        self._message_waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None

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

    @abstractmethod
    async def send(self, data: Data) -> None:
        """Send one message; wait while the peer does not read."""

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

    # What all of them share.

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

    def take(self) -> Data | None:
        """Return the next message in order; `None` while none waits, and when the channel has ended."""
        inbox = self._inbox
        if inbox is None:
            return None
        data: Data | None = inbox.pop()
        if not inbox:
            self._inbox = None
        if data is None:
            self.undelivered += 1
            text = f"message is longer than {self.config.max_message_size} bytes"
            self.close(CloseCode.TOO_BIG, text, Close(CloseCode.TOO_BIG, text, by="server"))
            return None
        self._inbox_size -= sys.getsizeof(data)
        if self._drained is not None and self._inbox_size <= self.config.max_inbox // 2:
            _wake(self._drained)
        return data

    def event(self) -> asyncio.Future[None]:
        """Return what is done as soon as a message waits or the channel has ended, for the one who takes messages."""
        self._message_waiter = self.loop.create_future()
        return self._message_waiter

    async def receive(self) -> Data | None:
        """Return the next message in order; `None` when the channel has ended and none is left."""
        while (data := self.take()) is None and self.reason is None:
            await self.event()
        return data

    @property
    def last_frame_at(self) -> float:
        """The clock's time of the last incoming frame, as far as the server shows frames."""
        return self._last_frame_at

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.reason is not None

    async def ended(self) -> DisconnectReason:
        """Wait until the channel has ended; return why."""
        while self.reason is None:
            await self.event()
        return self.reason

    def discard_inbox(self) -> None:
        """Give up the messages that wait for a hook, and count them."""
        if self._inbox is not None:
            self.undelivered += len(self._inbox)
            self._inbox = None
            self._inbox_size = 0
        self.wake_reader()

    def wake_reader(self) -> None:
        """Let the reading side look again whether the inbox is full."""
        _wake(self._drained)

    def deliver(self, data: Data) -> None:
        """Put a message that has arrived into the inbox (called by the reading side)."""
        self._last_frame_at = self.clock.time()
        # The newest message is the first of the list.
        if self.reason is not None or (self._inbox is not None and self._inbox[0] is None):
            self.undelivered += 1
            return
        if len(data) * (4 if isinstance(data, str) else 1) > self.config.max_message_size and (
            wire_size(data) > self.config.max_message_size
        ):
            # It ends the connection when the messages before it have been handled and answered.
            self._put([None], 0)
        else:
            self._put([data], sys.getsizeof(data))

    def _put(self, messages: list[Any], size: int) -> None:
        # In reverse, so that taking the oldest is a pop().
        if self._inbox is None:
            if len(messages) > 1:
                messages.reverse()
            self._inbox = messages
        else:
            self._inbox[:0] = reversed(messages)
        self._inbox_size += size
        _wake(self._message_waiter)

    @property
    def inbox_full(self) -> bool:
        """Whether reading has to stop until hooks have taken messages out."""
        return self._inbox_size > self.config.max_inbox

    async def inbox_drained(self) -> None:
        """Wait until there is room in the inbox again, or the channel has ended."""
        while self.inbox_full and self.reason is None:
            self._drained = self.loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    def end(self, reason: DisconnectReason) -> bool:
        """Set the reason, unless an earlier event has ended the channel; return whether it was set."""
        if self.reason is not None:
            return False
        self.reason = reason
        self._leave_rooms()
        _wake(self._message_waiter)
        _wake(self._drained)
        if self.owner is not None:
            self.owner.channel_ended()
        return True

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
        # A peer may have ended its side in the segment of its handshake already.
        if self.route_room is not None and self.reason is None:
            self.route_room.add(self)
        if self.owner is not None:
            self.owner.channel_accepted()

    def closed_error(self) -> ConnectionClosed:
        """Return the exception for a use of the channel after its end."""
        return ConnectionClosed(self.reason if self.reason is not None else Unknown())

    def choose_subprotocol(self, wanted: str | None) -> str | None:
        """Return the subprotocol to agree on (RFC 6455, section 4.2.2).

        Raises:
            ValueError: `wanted` is not among those the client offered.
        """
        if wanted is None and not self.config.subprotocols:
            return None
        offered: list[str] = list(self.request.scope.get("subprotocols") or ())
        if wanted is None:
            return next((name for name in self.config.subprotocols if name in offered), None)
        if wanted not in offered:
            raise ValueError(
                f"subprotocol {wanted!r} was not offered by the client, which offers {offered!r}: "
                "agree on one of these, or on none"
            )
        return wanted


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Sink:
    """The sending side of one connection, handed to `on_connect`.

    It may be used from any task of the connection's event loop, and kept in sets and dictionaries.
    """

    __slots__ = ("__weakref__", "_channel")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def addr(self) -> Address:
        """The peer's address (behind a trusted proxy, the client's)."""
        return self._channel.addr

    @property
    def request(self) -> HTTPConnection:
        """The handshake request: URL, headers, cookies, path and query parameters, state."""
        return self._channel.request

    @property
    def headers(self) -> Headers:
        """The headers of the handshake request."""
        return self._channel.request.headers

    @property
    def query_params(self) -> QueryParams:
        """The query parameters of the handshake request."""
        return self._channel.request.query_params

    @property
    def path_params(self) -> Mapping[str, Any]:
        """The path parameters of the route, converted."""
        return self._channel.request.path_params

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on; `None` before the upgrade or where there is none."""
        return self._channel.subprotocol

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, so that `send` would raise `ConnectionClosed`."""
        return self._channel.closed

    @property
    def reason(self) -> DisconnectReason | None:
        """Why the connection ended; `None` while it lives."""
        return self._channel.reason

    @property
    def dropped(self) -> int:
        """Outgoing messages dropped because the peer reads too slowly (`slow_consumer="drop"`)."""
        return self._channel.dropped

    async def accept(self, subprotocol: str | None = None, headers: HeaderItems = ()) -> None:
        """Accept the upgrade now. Without this call it is accepted by the first `send`, or when `on_connect` returns.

        Args:
            subprotocol: One of those the client offers; by default the first of `ConnectionConfig.subprotocols`
                that it offers.
            headers: Further fields of the 101 response.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The upgrade has been accepted before, or the call comes from another event loop.
            TypeError: A header is not a pair of `str`.
            ValueError: The subprotocol was not offered, or a header cannot be sent.
        """
        self._check_loop()
        if self._channel.accepted:
            raise RuntimeError("the upgrade has been accepted already: call accept() in on_connect, before any send()")
        await self._channel.accept(subprotocol, headers)

    async def send(self, data: str | bytes) -> None:
        """Send one message, `str` as text and `bytes` as binary; wait while the peer's buffer is full.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call comes from another event loop.
            TypeError: `data` is neither text nor bytes.
            ValueError: `data` is text with a lone surrogate.
        """
        self._check_loop()
        await self._channel.send(checked_data(data))

    async def send_json(self, data: Any) -> None:
        """Send `data` as JSON in a text message.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call comes from another event loop.
            TypeError: JSON has no form for `data`.
            ValueError: `data` refers to itself, or holds NaN or an infinity.
        """
        await self.send(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")))

    def send_nowait(self, data: str | bytes) -> bool:
        """Put one message into the outbox without waiting for the peer, as a broadcast must.

        Messages wait there until the upgrade is accepted and the peer reads. Where `max_outbox` would be
        exceeded, `slow_consumer` decides: the peer is closed with 1013, or the message dropped and counted.

        Returns:
            Whether the message went in; `False` also when the connection has ended.

        Raises:
            RuntimeError: The call comes from another event loop.
            TypeError: `data` is neither text nor bytes.
            ValueError: `data` is larger than `max_outbox`, or text with a lone surrogate.
        """
        self._check_loop()
        data = checked_data(data)
        if wire_size(data) > self._channel.config.max_outbox:
            raise ValueError(
                f"a message of {wire_size(data)} bytes never fits max_outbox={self._channel.config.max_outbox}: "
                "set a larger max_outbox, or use `await sink.send(...)`"
            )
        return self._channel.send_nowait(data)

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close the connection behind everything sent before; calling it again does nothing.

        Called before the upgrade, it accepts first, so that the peer receives the code; to refuse the handshake
        raise Starlette's `HTTPException` instead.

        Args:
            code: 1000 for a normal end, or a code of your own from 3000 to 4999 (RFC 6455, section 7.4).
            reason: Text for the peer, cut to 123 bytes of UTF-8.

        Raises:
            RuntimeError: The call comes from another event loop.
            TypeError: `code` is not an `int`, or `reason` not a `str`.
            ValueError: `code` is one that no endpoint may send.
        """
        code, reason = check_close_code(code), cut_close_reason(reason)
        self._check_loop()
        channel = self._channel
        if not channel.accepted and not channel.closed:
            try:
                await channel.accept()
            except ConnectionClosed:
                return
        if not channel.closed:
            channel.close(code, reason, Close(code, reason, by="server"))
        await channel.flushed()

    def _check_loop(self) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._channel.loop:
            raise RuntimeError(
                "this connection belongs to another event loop: "
                "use asyncio.run_coroutine_threadsafe(sink.send(...), loop) with the loop of its hooks"
            ) from None

    def __repr__(self) -> str:
        return f"<Sink {self.addr} {'closed' if self.closed else 'open'}>"


channel_of: Final[Callable[[Sink], Channel]] = attrgetter("_channel")
"""Returns what a sink sends through, which is no business of those who use the sink."""
