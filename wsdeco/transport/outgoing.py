"""The sending half of a connection: an outbox, flushed once per turn of the loop, and flow control towards the peer.

Who sends waits while the peer does not read, and also while it does, when one turn of the loop has sent much: a loop of
sends to a peer that reads fast would never have to wait, and nobody else would be served. Those who wait keep their
messages until it is their turn, so that the outbox is bounded however many they are. A message that takes long to
encode or to compress waits as well, and takes several turns; nothing of it is written before all of it can be, so that
whatever does not wait goes in front of it.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABCMeta, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable
from itertools import chain
from typing import Final, cast

from wsdeco.compiled import mypyc_attr
from wsdeco.messages import Data
from wsdeco.transport.senders import Pieces, Senders, wait_for_turn
from wsdeco.transport.shared import Flushed, Shared
from wsdeco.wire.incoming import Framing
from wsdeco.wire.outgoing import Encoded

__all__ = ["Outgoing"]

_MAX_OUTBOX_BYTES: Final = 64 * 1024
"""Bytes that wait for the end of the loop's turn; more are written at once, and who sends then waits for the next."""
_FRAME_OVERHEAD: Final = 64
"""Bytes that each frame in the outbox counts for besides its own: the memory of the object."""
_FREE_OVERHEAD: Final = 64 * 1024
"""Of that, the bytes that `unsent` leaves out: as many as there can be while the peer reads."""
_LARGE: Final = 64 * 1024
"""Length of a message from which it is written in pieces: a copy costs more than a further write."""
_HIGH_WATER: Final = 64 * 1024
"""Bytes in a transport's buffer past which it pauses writing: the default of asyncio and uvloop."""
_PAUSES_AFTER_WRITELINES: Final = not (
    (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)
)
"""Whether asyncio's `writelines` pauses writing as `write` does (CVE-2024-12254): else a peer could have any number of
bytes wait for it."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Outgoing(metaclass=ABCMeta):
    """What a connection sends.

    Args:
        shared: What the connections of the server share.

    Attributes:
        transport: The transport.
        closed: Nothing more can be sent: the close frame is on its way, or the transport is lost.
        write_paused: The peer does not read.
        senders_wait: The peer does not read, the turn of the loop is used up, or others wait: `send_in_turn`.
    """

    __slots__ = (
        "_flush_pending",
        "_framing",
        "_outbox",
        "_outbox_size",
        "_senders",
        "_shared",
        "closed",
        "senders_wait",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._framing: Framing | None = None
        self._outbox: list[bytes | memoryview] | None = None
        self._outbox_size = 0
        self._flush_pending = False
        self._senders: Senders | None = None
        self.closed: bool = False
        self.write_paused: bool = False
        self.senders_wait: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport that uvicorn's HTTP class has owned."""
        self.transport = cast(asyncio.Transport, transport)

    def _end_sending(self) -> None:
        self.closed = True

    def pause_writing(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self.write_paused = self.senders_wait = True
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
        self._let_send()

    def send_message(self, message: Data, *, at_once: bool = False) -> bool:
        """Write a message, for this connection only, by the end of the loop's turn.

        Args:
            message: The message.
            at_once: Write it even if others have to wait meanwhile.

        Returns:
            Whether that could be; `False` if the message takes several turns of the loop: see `send_in_turn`.
        """
        framing = self._framing
        if framing is not None:
            if len(message) < _LARGE:
                self.send(framing.encode(message))
            elif at_once or not framing.takes_turns(message):
                self._send_large(framing.encode_large(message), at_once=True)
            else:
                return False
        return True

    def write_message(self, message: Data) -> bool:
        """Write a message at once, behind what waits, if the peer reads; return whether it was written or waits."""
        framing = self._framing
        if framing is None or self._outbox is not None or self.write_paused or len(message) >= _LARGE:
            if not self.send_message(message):
                return False
            self.flush()
        elif not self.transport.is_closing():
            self.transport.write(framing.encode(message))
            return True
        else:
            self._lose()
        return not self.closed

    def _send_large(self, pieces: Pieces, *, at_once: bool) -> bool:
        """Write a message; return whether that was done, and not only one of its turns."""
        first = next(pieces)
        while at_once and not first:
            first = next(pieces)
        if not first:
            return False
        self.flush()
        if self.write_paused:
            outbox = [*(self._outbox or ()), first, *pieces]
            self._outbox = outbox
            self._outbox_size = sum(map(len, outbox)) + len(outbox) * _FRAME_OVERHEAD
        else:
            for piece in chain((first,), pieces):
                # A write that fails closes the transport.
                if self.transport.is_closing():
                    if not self.closed:
                        self._lose()
                    break
                self.transport.write(piece)
            self._use_up_turn()
        return True

    def _use_up_turn(self) -> None:
        if not self.senders_wait:
            self.senders_wait = True
            self._shared.wait(self)

    def send_encoded(self, message: Encoded, most_unsent: int) -> bool:
        """Write a message that goes to many connections by the end of the loop's turn, within a bound.

        Args:
            message: The message.
            most_unsent: Bytes that the peer may have yet to make room for, this message included.

        Returns:
            Whether the message is within the bound; if not, it is not written.
        """
        # The buffer of the transport costs a call, and is asked for only if it can decide.
        is_doubtful = self.write_paused or self._outbox_size + message.size + _HIGH_WATER > most_unsent
        if is_doubtful and self.unsent + message.size > most_unsent:
            return False
        self.send(cast(Framing, self._framing).encode_shared(message))
        return True

    def send_to_all(self, connections: list[Outgoing | None], message: Encoded) -> list[int]:
        """Write a message to each of many connections that has room for it without being asked.

        One loop, as a call for each member of a room costs several times what there is to do.

        Args:
            connections: The connections, with an outbox of `ROOMY_OUTBOX` or more; `None` for one that is left out.
            message: The message.

        Returns:
            The positions of those that have not taken it: it is to be sent to each of them by itself.
        """
        plain = message.frame
        most = _MAX_OUTBOX_BYTES - _FRAME_OVERHEAD - len(plain)
        left: list[int] = []
        to_flush: list[Flushed] = []
        for position, connection in enumerate(connections):
            if (
                connection is None
                or connection.closed
                or connection.write_paused
                or connection._outbox_size > most
                or (framing := connection._framing) is None
            ):
                left.append(position)
                continue
            frame = plain if framing.deflate is None else framing.encode_shared(message)
            outbox = connection._outbox
            if outbox is None:
                connection._outbox = [frame]
                connection._outbox_size = len(frame) + _FRAME_OVERHEAD
                connection._flush_pending = True
                to_flush.append(connection)
            else:
                # Not empty, and not paused: so it will be flushed.
                outbox.append(frame)
                connection._outbox_size += len(frame) + _FRAME_OVERHEAD
        self._shared.flush_all_later(to_flush)
        return left

    def send(self, frame: bytes) -> None:
        """Write a frame by the end of the loop's turn, in order; whether the peer reads is the caller's to ask.

        Args:
            frame: A frame from `wsdeco.wire.outgoing`, which may go to many connections.
        """
        if self._outbox is None:
            self._outbox = []
        self._outbox.append(frame)
        self._outbox_size += len(frame) + _FRAME_OVERHEAD
        if self._outbox_size > _MAX_OUTBOX_BYTES:
            self.flush()
            self._use_up_turn()
        elif not self._flush_pending:
            self._flush_pending = True
            self._shared.flush_later(self)

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
            if not self.closed:
                self._lose()
            return
        if len(outbox) == 1:
            self.transport.write(outbox[0])
        elif size <= _MAX_OUTBOX_BYTES:
            self.transport.write(b"".join(outbox))
        elif _PAUSES_AFTER_WRITELINES:
            self.transport.writelines(outbox)
        else:
            for frame in outbox:
                self.transport.write(frame)

    @property
    def unsent(self) -> int:
        """Bytes that the peer has yet to make room for; many tiny frames count for the memory that they take."""
        free = min(len(self._outbox or ()) * _FRAME_OVERHEAD, _FREE_OVERHEAD)
        return self._outbox_size - free + self.transport.get_write_buffer_size()

    @abstractmethod
    def go_on(self) -> None:
        """Do what has waited for a turn of the loop; those who send, with `_let_send`."""

    @abstractmethod
    def _lose(self) -> None:
        """End a connection whose transport has failed, and says so in the next turn of the loop."""

    def send_in_turn(self, message: Data | None) -> Awaitable[bool]:
        """Write a message behind those of others who wait, once the peer reads and the loop has had its turn.

        Until then it is kept as it is, and no frame made of it. One that takes several turns of the loop has the first
        as soon as it can.

        Args:
            message: The message; `None` to wait, and write nothing.

        Returns:
            What says, once awaited, whether it was written; `False` if nothing more can be sent (`closed`).
        """
        waiter: asyncio.Future[bool] = self._shared.loop.create_future()
        senders = self._senders
        if senders is None:
            senders = self._senders = OrderedDict()
        senders[waiter] = message
        if self.closed or not self.senders_wait:
            self._let_send()
        return wait_for_turn(waiter, senders)

    def _let_send(self) -> None:
        self.senders_wait = self.write_paused
        senders = self._senders
        while senders and (self.closed or not self.senders_wait):
            waiter, message = senders.popitem(last=False)
            if waiter.done():
                continue
            try:
                rest = None if message is None or self.closed else self._send_more(message)
            except ValueError as exc:
                waiter.set_exception(exc)
                continue
            if rest is None:
                waiter.set_result(not self.closed)
            else:
                senders[waiter] = rest
                senders.move_to_end(waiter, last=False)
                self._use_up_turn()
        if senders:
            self.senders_wait = True
        else:
            self._senders = None

    def _send_more(self, message: Data | Pieces) -> Pieces | None:
        """Write a message, or let it have one of its turns; return what is left for the others."""
        if isinstance(message, (str, bytes)):
            if self.send_message(message):
                return None
            message = cast(Framing, self._framing).encode_large(message)
        return None if self._send_large(message, at_once=False) else message
