"""What the transport of a connection and whoever takes its messages ask of each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

from typing_extensions import Unpack

from wsdeco.config import Compression
from wsdeco.messages import Data
from wsdeco.reasons import Close, Unknown
from wsdeco.wire.handshake import Headers, Request
from wsdeco.wire.outgoing import Encoded

if TYPE_CHECKING:
    from starlette.types import Receive, Send

__all__ = ["EXTENSION", "NOBODY", "ROOMY_OUTBOX", "Connection", "Extension", "Options", "Receiver"]


EXTENSION: Final = "wsdeco"
"""The key of `scope["extensions"]` under which wsdeco's own protocol offers an `Extension`."""

ROOMY_OUTBOX: Final = 128 * 1024
"""`max_outbox` from which `send_to_all` need not ask for it: while the peer reads, 64 KiB at most wait in
the outbox, and as many in the buffer of the transport."""


class Options(TypedDict, total=False):
    """What a connection is accepted with, in place of the options of the server.

    Attributes:
        max_message_size: Largest incoming message in bytes.
        compression: Agree on permessage-deflate, if offered.
        keepalive: Seconds between two pings, and seconds for an answer, past which the connection ends; `None` for no
            pings, or no judgement.
        small_reads: Let one read bring little, since what hooks have not come to is held (`wsdeco.transport.reads`).
    """

    max_message_size: int
    compression: bool | Compression
    keepalive: tuple[float | None, float | None]
    small_reads: bool


class Receiver(Protocol):
    """Takes the messages of one connection, and the news of its end."""

    def messages_received(self, messages: list[Data]) -> None:
        """Take messages, in order. Call `pause_reading` on the connection when there are too many."""

    def input_ended(self, reason: Close | Unknown) -> None:
        """Nothing more comes; called once, behind the last `messages_received`.

        Call `finish` on the connection when the messages before the end have been dealt with.
        """

    def peer_left(self) -> None:
        """The peer has ended its side, behind messages that are not read, since too many wait already."""

    def connection_lost(self) -> None:
        """The transport is gone; called once, behind `input_ended`."""


class _Nobody:
    def messages_received(self, messages: list[Data]) -> None:
        """No messages come before a handshake."""

    def input_ended(self, reason: Close | Unknown) -> None:
        """Nobody wants to know."""

    def peer_left(self) -> None:
        """Nobody wants to know."""

    def connection_lost(self) -> None:
        """Nobody wants to know."""


NOBODY: Final[Receiver] = _Nobody()
"""The receiver of a connection whose handshake has not been read, or whose transport is gone."""


class Connection(Protocol):
    """What a receiver asks of its connection: see `wsdeco.transport.protocol.WebSocketProtocol`."""

    app_state: dict[str, Any]
    closed: bool
    close_timeout: float
    receiver: Any
    end: Close | Unknown | None
    last_activity: float
    reading_paused: bool
    request: Request | None
    senders_wait: bool
    transport: asyncio.Transport
    write_paused: bool

    @property
    def handshake_pending(self) -> bool:
        """Whether the handshake waits to be accepted or refused."""
        ...

    @property
    def unsent(self) -> int:
        """Bytes that the peer has yet to make room for."""
        ...

    @property
    def round_trip(self) -> float | None:
        """Seconds from the last ping to its answer; asked once, it is measured from then on."""
        ...

    def accept(self, subprotocol: str | None = None, headers: Headers = (), **options: Unpack[Options]) -> None:
        """Accept the handshake."""

    def refuse(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        """Refuse the handshake with an HTTP response."""

    def set_keepalive(self, interval: float | None, timeout: float | None) -> None:
        """Ping from now on."""

    def send_message(self, message: Data, *, at_once: bool = False) -> bool:
        """Write a message by the end of the loop's turn; return whether that could be, as always if `at_once`."""
        ...

    def write_message(self, message: Data) -> bool:
        """Write a message at once, behind what waits; return whether that can be."""
        ...

    def send_encoded(self, message: Encoded, most_unsent: int) -> bool:
        """Write a message that goes to many connections by the end of the loop's turn, within a bound."""
        ...

    def send_to_all(self, connections: list[Any], message: Encoded) -> list[int]:
        """Write a message to each of many connections that has room for it without being asked.

        Any of them can be told to. It returns the positions of those that have not taken it.
        """
        ...

    def send_in_turn(self, message: Data | None) -> Awaitable[bool]:
        """Wait until the peer reads and it is one's turn, then write; return whether that could be."""
        ...

    def pause_reading(self) -> None:
        """Give the receiver no more messages."""

    def resume_reading(self) -> None:
        """Give the receiver messages again."""

    def close(self, code: int = ..., reason: str = ...) -> None:
        """Start the closing handshake."""

    def finish(self) -> None:
        """Answer the end of the input."""

    def abort(self) -> None:
        """Drop the transport."""


class Extension(Protocol):
    """What the scope holds of a connection that is served by wsdeco's own protocol.

    Attributes:
        connection: The connection, of which whoever goes through `receive` and `send` may ask when and why it ends.
    """

    connection: Connection

    def tell_departure(self, told: Callable[[], None] | None) -> None:
        """Call `told` once the peer has ended its side, in front of the messages that nobody has received so far."""

    def set_options(self, *, close_timeout: float, **options: Unpack[Options]) -> None:
        """Set what the connection is accepted with."""

    def yield_connection(self, receive: Receive, send: Send) -> Connection | None:
        """Return the connection, if nothing stands between."""
        ...
