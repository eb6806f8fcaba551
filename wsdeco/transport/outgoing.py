"""The sending half of a connection: an outbox, flushed once per turn of the loop, and flow control towards the peer."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from wsdeco.transport.shared import Turn
from wsdeco.wire.incoming import Framing, Message
from wsdeco.wire.outgoing import Encoded

__all__ = ["Outgoing"]

_MAX_OUTBOX_BYTES: Final = 64 * 1024
"""Bytes that wait for the end of the loop's turn; more are written at once."""
_LARGE: Final = 64 * 1024
"""Length of a message from which it is written in pieces: a copy costs more than a further write."""
_HIGH_WATER: Final = 64 * 1024
"""Bytes in a transport's buffer past which it pauses writing: the default of asyncio and uvloop."""


class Outgoing(asyncio.Protocol):
    """What a connection sends.

    Args:
        turn: What the connections of the server share.

    Attributes:
        transport: The transport.
        closed: Nothing more can be sent: the close frame is on its way, or the transport is lost.
        write_paused: The peer does not read: `drain` waits.
    """

    __slots__ = (
        "_drain_waiters",
        "_flush_pending",
        "_framing",
        "_outbox",
        "_outbox_size",
        "_turn",
        "closed",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._framing: Framing | None = None
        self._outbox: list[bytes | memoryview] | None = None
        self._outbox_size = 0
        self._flush_pending = False
        self._drain_waiters: list[asyncio.Future[None]] | None = None
        self.closed = False
        self.write_paused = False

    def pause_writing(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self.write_paused = True
        if self._framing is not None:
            self._framing.hold_pongs = True

    def resume_writing(self) -> None:
        """Write what has waited."""
        self.write_paused = False
        if self._framing is not None:
            pong = self._framing.release_pong()
            if pong and not self.closed:
                self.send(pong)
        self.flush()
        if not self.write_paused:
            self._wake_senders()

    def send_message(self, message: Message) -> None:
        """Write a message, for this connection only, by the end of the loop's turn."""
        framing = self._framing
        if framing is not None:
            if len(message) < _LARGE:
                self.send(framing.encode(message))
            else:
                self._send_large(framing, message)

    def write_message(self, message: Message) -> None:
        """Write a message at once, behind what waits, where the peer reads."""
        framing = self._framing
        if framing is None or self._outbox is not None or self.write_paused or len(message) >= _LARGE:
            self.send_message(message)
            self.flush()
        elif not self.transport.is_closing():
            self.transport.write(framing.encode(message))

    def _send_large(self, framing: Framing, message: Message) -> None:
        self.flush()
        pieces = framing.encode_large(message)
        if self.write_paused:
            outbox = [*(self._outbox or ()), *pieces]
            self._outbox = outbox
            self._outbox_size = sum(map(len, outbox))
        else:
            for piece in pieces:
                # A write that fails closes the transport.
                if self.transport.is_closing():
                    break
                self.transport.write(piece)

    def send_encoded(self, message: Encoded, most_unsent: int) -> bool:
        """Write a message that goes to many connections by the end of the loop's turn, within a bound.

        Args:
            message: The message.
            most_unsent: Bytes that the peer may have yet to make room for, this message included.

        Returns:
            Whether the message is within the bound; if not, it is not written.
        """
        size = self._outbox_size + message.size
        # The transport's own buffer is looked at only where it could decide.
        is_doubtful = self.write_paused or size + _HIGH_WATER > most_unsent
        if is_doubtful and size + self.transport.get_write_buffer_size() > most_unsent:
            return False
        self.send(cast(Framing, self._framing).encode_shared(message))
        return True

    def send(self, frame: bytes) -> None:
        """Write a frame by the end of the loop's turn, in order; whether the peer reads is the caller's to ask.

        Args:
            frame: A frame from `wsdeco.wire.incoming`, which may go to many connections.
        """
        if self._outbox is None:
            self._outbox = []
        self._outbox.append(frame)
        self._outbox_size += len(frame)
        if self._outbox_size > _MAX_OUTBOX_BYTES:
            self.flush()
        elif not self._flush_pending:
            self._flush_pending = True
            self._turn.flush_later(self)

    def flush(self, *, even_if_paused: bool = False) -> None:
        """Write the outbox, unless the peer does not read."""
        self._flush_pending = False
        outbox = self._outbox
        if outbox is None or (self.write_paused and not even_if_paused):
            return
        size = self._outbox_size
        self._outbox = None
        self._outbox_size = 0
        if self.transport.is_closing():
            return
        if len(outbox) == 1:
            self.transport.write(outbox[0])
        elif size <= _MAX_OUTBOX_BYTES:
            self.transport.write(b"".join(outbox))
        else:
            self.transport.writelines(outbox)

    @property
    def unsent(self) -> int:
        """Bytes that the peer has yet to make room for."""
        return self._outbox_size + self.transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Wait until the peer reads, or nothing more can be sent (`closed`)."""
        while self.write_paused and not self.closed:
            waiter: asyncio.Future[None] = self._turn.loop.create_future()
            if self._drain_waiters is None:
                self._drain_waiters = []
            self._drain_waiters.append(waiter)
            await waiter

    def _wake_senders(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)
