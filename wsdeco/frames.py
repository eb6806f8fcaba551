"""WebSocket framing for the server side, without I/O: bytes in, messages out, and back (RFC 6455, section 5).

Two lanes. The *slow lane* is the `websockets` library's Sans-I/O `Protocol`; it takes control frames, and it is the
reference: with `fast_lane=False` it takes every frame. The *fast lane* takes text and binary messages: those in one
uncompressed frame, which make up nearly all traffic, without a further call; fragments and compressed frames, which
cost twice as much in the library, in `_take_data_frame`. What is true of both is done once, in `Framing`:

- **Boundaries.** Nobody but `Framing` finds out where a frame starts and ends. It reads the header, refuses what
  can be refused from it (reserved bits and opcodes, a missing mask, long or fragmented control frames,
  lengths that are not minimal, a continuation out of place, a message over the limit), and waits until the
  frame is whole. A lane gets exactly the bytes of one whole frame, so none is ever in the middle of a frame,
  no private attribute of the library is needed to find that out, and the library's object exists only while it
  has something to do: behind the fast lane, for the control frames of one call of `receive`.
- **Memory.** Bytes wait in one buffer, which grows as they arrive, never as a header announces. Fragments are
  appended to one `bytearray`: three million of them cost what their payload costs. With the limit checked from each
  header against what has been reassembled, both together hold no more than `max_message_size` and a header.
- **UTF-8.** The library does not check it. The fast lane decodes; fragments pass an incremental decoder as they
  arrive, so that a message is refused (1007) at the first fragment that makes it invalid.
- **Time.** Tiny fragments, pings and compressed messages cost far more than their bytes. One call of `receive` does a
  bounded amount of such work; if it stops before the end of its input, `unread` says so, and the rest
  waits for the next call.
- **The end.** A close frame from the peer, or a fault of the peer, ends the input: `ended` says how. The messages
  before it are all returned. What to answer, `close` encodes; when, the owner decides.

A pong is due for every ping, but a peer that does not read its pongs must not fill our memory: while
`hold_pongs` is set, only the newest is kept (RFC 6455, section 5.5.3).
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from wsdeco.deflate import Deflate
from wsdeco.encoding import Encoded, encode_close, encode_message, encode_ping
from wsdeco.reasons import Close, CloseCode

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

__all__ = ["Framing", "Message", "encode_close", "encode_message", "encode_ping"]

Message: TypeAlias = str | bytes
"""A whole message: `str` for text, `bytes` for binary."""

_FIN: Final = 0x80
_RSV1: Final = 0x40
_RESERVED: Final = 0x70
_OPCODE: Final = 0x0F
_MASKED: Final = 0x80
_TEXT: Final = _FIN | Opcode.TEXT
_BINARY: Final = _FIN | Opcode.BINARY
_CONTROL: Final = 0x08
_OPCODES: Final = frozenset(Opcode)
_CONTROLS: Final = frozenset({Opcode.CLOSE, Opcode.PING, Opcode.PONG})
_MAX_CONTROL_PAYLOAD: Final = 125
_LONG: Final = 126

_SHORT_HEADER: Final = 6
"""Bytes of a short frame in front of its payload, the masking key among them."""
_LONG_HEADER: Final = 8
"""The same of a frame of 126 bytes and more, up to 64 KiB."""
_LANE_SHUT: Final = -1

_TURN_BUDGET: Final = 1000
"""Frames of one call of `receive` that are no whole message; a compressed one counts for more. 3 to 10 ms."""
_VIEW_FROM: Final = 4096
"""Payload size from which a view costs less than a copy."""
_INFLATED_BYTES_PER_FRAME: Final = 256
"""Inflated bytes that take about the time of one small frame."""

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")
_logger = logging.getLogger("wsdeco.frames")


class _Fault(Exception):
    """The peer broke the protocol."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Framing:
    """One connection's framing, from the bytes after the handshake to the peer's close frame.

    Args:
        max_message_size: Largest incoming message in bytes, over all its fragments and inflated.
        deflate: The compression agreed on in the handshake.
        fast_lane: `False` sends every frame through the slow lane, to compare the two.

    Attributes:
        encode: Returns the frame of a message, compressed if that was agreed on: for this connection only. Raises a
            `UnicodeEncodeError` for text with a lone surrogate, which UTF-8 cannot carry.
        ended: How the peer ended the input: its close frame (`by="client"`; 1005 for one without a code), or the close
            that its fault calls for (`by="server"`). Nothing that arrives later is looked at.
        close_sent: A close frame has been encoded by `close`.
        unread: `receive` stopped before the end of its input: call it again, with `b""` if nothing new came.
        noticed: There is something besides messages: look at `ended` and `unread`, and call `notice`.
        ping_payload: The payload of our ping that has not been answered; the owner sets it when it sends one.
        hold_pongs: Keep the newest pong until `release_pong`, instead of handing out all of them.
    """

    __slots__ = (
        "_active",
        "_deflate",
        "_fast_lane",
        "_fast_limit",
        "_fragments",
        "_held",
        "_held_pong",
        "_max_message_size",
        "_message_is_compressed",
        "_pongs",
        "_slow_lane",
        "_utf8",
        "_wanted",
        "close_sent",
        "encode",
        "ended",
        "hold_pongs",
        "noticed",
        "ping_payload",
        "unread",
    )

    def __init__(self, max_message_size: int, *, deflate: Deflate | None = None, fast_lane: bool = True) -> None:
        self._max_message_size = max_message_size
        self._deflate = deflate
        self.encode: Callable[[Message], bytes] = encode_message if deflate is None else deflate.encode_message
        self._fast_lane = fast_lane
        self._fast_limit = max_message_size if fast_lane else _LANE_SHUT
        self._held: bytearray | None = None
        self._wanted = 0
        self._slow_lane: Protocol | None = None
        self._fragments: bytearray | None = None
        self._utf8: codecs.IncrementalDecoder | None = None
        self._message_is_compressed = False
        self._active = False
        self._pongs: list[bytes] | None = None
        self._held_pong = b""
        self.ended: Close | None = None
        self.close_sent = False
        self.unread = False
        self.noticed = False
        self.ping_payload: bytes | None = None
        self.hold_pongs = False

    def receive(self, data: bytes) -> list[Message]:  # noqa: C901, PLR0912, PLR0915 - the fast path: a call costs
        """Take bytes from the peer and return the messages they complete.

        Look at `ended`, `unread` and `noticed` afterwards.
        """
        size = len(data)
        length = size - _SHORT_HEADER
        if 0 <= length <= self._fast_limit and self._held is None:
            # One frame and nothing else, as it comes from a peer that waits for answers.
            first = data[0]
            start = 0
            if length < _LONG:
                if length == data[1] - _MASKED:
                    start = _SHORT_HEADER
            elif data[1] == _MASKED | _LONG and size - _LONG_HEADER == data[2] << 8 | data[3] >= _LONG:
                start = _LONG_HEADER
            if start and _TEXT <= first <= _BINARY:
                masked = data[start:] if length < _VIEW_FROM else memoryview(data)[start:]
                unmasked = apply_mask(masked, data[start - 4 : start])
                try:
                    return [unmasked.decode() if first == _TEXT else unmasked]
                except UnicodeDecodeError:
                    # Found again, and answered, below.
                    pass
        messages: list[Message] = []
        if self.ended is not None:
            return messages
        chunk: bytes | bytearray = data
        held = self._held
        if held is not None:
            held += data
            if len(held) < self._wanted:
                return messages
            self._held = None
            chunk = held
        position = 0
        size = len(chunk)
        wanted = 2
        budget = _TURN_BUDGET
        limit = self._fast_limit
        short_limit = limit if limit < _LONG else _LONG - 1
        try:
            while size - position > 1:
                first = chunk[position]
                length = chunk[position + 1] - _MASKED
                if 0 <= length <= short_limit and _TEXT <= first <= _BINARY:
                    is_fast = True
                    start = position + 6
                    stop = start + length
                elif (
                    length == _LONG
                    and _TEXT <= first <= _BINARY
                    and size - position > 8
                    and _LONG <= (length := chunk[position + 2] << 8 | chunk[position + 3]) <= limit
                ):
                    is_fast = True
                    start = position + 8
                    stop = start + length
                else:
                    is_fast, start, stop = self._read_header(chunk, position, size)
                if stop > size:
                    wanted = stop - position
                    break
                if is_fast:
                    payload = chunk[start:stop] if stop - start < _VIEW_FROM else memoryview(chunk)[start:stop]
                    payload = apply_mask(payload, chunk[start - 4 : start])
                    messages.append(payload.decode() if first == _TEXT else payload)
                    position = stop
                    continue
                frame = bytes(memoryview(chunk)[position:stop])
                payload_start = start - position
                position = stop
                if stop == size:
                    # A large frame is not kept beside what becomes of it.
                    chunk, held = b"", None
                if self._fast_lane and not first & _CONTROL:
                    budget -= self._take_data_frame(frame, payload_start, messages)
                else:
                    budget -= self._take_slow(frame, messages)
                if self.ended is not None:
                    return messages
                limit = self._fast_limit
                short_limit = limit if limit < _LONG else _LONG - 1
                if budget <= 0 and position < size:
                    wanted = 0
                    self.noticed = True
                    break
        except UnicodeDecodeError:
            self._end(Close(CloseCode.INVALID_UTF8, "invalid UTF-8 in a text message", by="server"))
        except _Fault as fault:
            self._end(Close(fault.code, fault.reason, by="server"))
        else:
            if position < size:
                self._held = bytearray(memoryview(chunk)[position:])
                self._wanted = wanted
            self.unread = wanted == 0
            if self._slow_lane is not None and (self._fast_lane or (self._fragments is None and self._deflate is None)):
                self._slow_lane = None
        return messages

    def _read_header(self, chunk: bytes | bytearray, position: int, size: int) -> tuple[bool, int, int]:  # noqa: C901 - one check per line of the RFC
        """Return whether the fast lane takes the frame, where its payload starts, and where it stops.

        The header alone stops beyond the end of the input if it is not complete.
        """
        first = chunk[position]
        length = chunk[position + 1] & ~_MASKED
        opcode = first & _OPCODE
        reserved = first & _RESERVED
        if reserved != 0 and (reserved != _RSV1 or self._deflate is None or opcode not in (Opcode.TEXT, Opcode.BINARY)):
            raise _Fault(CloseCode.PROTOCOL_ERROR, "reserved bits are set")
        if opcode not in _OPCODES:
            raise _Fault(CloseCode.PROTOCOL_ERROR, "reserved opcode")
        if chunk[position + 1] < _MASKED:
            raise _Fault(CloseCode.PROTOCOL_ERROR, "frame is not masked")
        if opcode & _CONTROL:
            if first < _FIN:
                raise _Fault(CloseCode.PROTOCOL_ERROR, "fragmented control frame")
            if length > _MAX_CONTROL_PAYLOAD:
                raise _Fault(CloseCode.PROTOCOL_ERROR, "control frame is too long")
        elif (opcode == Opcode.CONT) is (self._fragments is None):
            expected = "unexpected continuation frame" if opcode == Opcode.CONT else "expected a continuation frame"
            raise _Fault(CloseCode.PROTOCOL_ERROR, expected)
        start = position + 2
        if length >= _LONG:
            shortest, width = (_LONG, 2) if length == _LONG else (0x10000, 8)
            start += width
            if start > size:
                return False, start, start
            length = int.from_bytes(chunk[position + 2 : start], "big")
            if not shortest <= length < 1 << 63:
                raise _Fault(CloseCode.PROTOCOL_ERROR, "frame length is not minimal, or has its top bit set")
        if not opcode & _CONTROL:
            self._check_size(length, compressed=reserved != 0 or self._message_is_compressed)
        start += 4
        return self._fast_lane and _TEXT <= first <= _BINARY, start, start + length

    def _check_size(self, more: int, *, compressed: bool = False) -> None:
        size = more if self._fragments is None else len(self._fragments) + more
        if size > (self._max_wire_size if compressed else self._max_message_size):
            raise _Fault(CloseCode.TOO_BIG, f"message is longer than {self._max_message_size} bytes")

    @property
    def _max_wire_size(self) -> int:
        # Data that cannot be compressed grows, by an eighth with deflate's fixed codes. And the library counts a
        # control frame between two fragments as if it were one of them.
        return self._max_message_size + self._max_message_size // 8 + 128

    def _take_slow(self, data: bytes, messages: list[Message]) -> int:
        """Pass one whole frame through the library, and return what that cost, in small frames."""
        slow_lane = self._slow_lane
        if slow_lane is None:
            slow_lane = Protocol(Side.SERVER, max_size=self._max_wire_size, logger=_logger)
            slow_lane.extensions = [] if self._deflate is None else [self._deflate]
            self._slow_lane = slow_lane
        slow_lane.receive_data(data)
        replies = slow_lane.data_to_send()
        received = slow_lane.close_rcvd
        if received is not None:
            # The library refuses a close frame inside a fragmented message; RFC 6455, section 5.4, allows it.
            self._end(Close(int(received.code), received.reason))
            return 1
        failed = slow_lane.close_sent
        if failed is not None:
            if failed.code == CloseCode.TOO_BIG:
                self._check_size(self._max_wire_size + 1)
            raise _Fault(int(failed.code), failed.reason)
        frame = cast(Frame, slow_lane.events_received()[0])
        if frame.opcode not in _CONTROLS:
            self._take_data(int(frame.opcode), bytes(frame.data), messages, ends=frame.fin, rsv1=data[0] & _RSV1 != 0)
            return 1 + len(frame.data) // _INFLATED_BYTES_PER_FRAME
        self.noticed = True
        if frame.opcode is Opcode.PONG and frame.data == self.ping_payload:
            self.ping_payload = None
            return 1
        self._active = True
        if self.hold_pongs:
            self._held_pong = b"".join(replies) or self._held_pong
        else:
            if self._pongs is None:
                self._pongs = []
            self._pongs += replies
        return 1

    def _take_data_frame(self, frame: bytes, start: int, messages: list[Message]) -> int:
        """Take one whole fragment or compressed frame, and return what that cost, in small frames."""
        first = frame[0]
        ends = first >= _FIN
        rsv1 = first & _RSV1 != 0
        payload: bytes = apply_mask(memoryview(frame)[start:], frame[start - 4 : start])
        cost = 1
        if rsv1 or self._message_is_compressed:
            more = self._max_wire_size - (0 if self._fragments is None else len(self._fragments))
            try:
                payload = cast(Deflate, self._deflate).inflate(payload, more, ends=ends)
            except PayloadTooBig:
                self._check_size(more + 1)
            except ProtocolError as error:
                raise _Fault(CloseCode.PROTOCOL_ERROR, str(error)) from None
            cost += len(payload) // _INFLATED_BYTES_PER_FRAME
        self._take_data(first & _OPCODE, payload, messages, ends=ends, rsv1=rsv1)
        return cost

    def _take_data(self, opcode: int, payload: bytes, messages: list[Message], *, ends: bool, rsv1: bool) -> None:
        self._check_size(len(payload))
        fragments = self._fragments
        if fragments is None:
            if ends:
                messages.append(payload.decode() if opcode == Opcode.TEXT else payload)
                return
            fragments = self._fragments = bytearray()
            self._fast_limit = _LANE_SHUT
            self._message_is_compressed = rsv1
            self._utf8 = _new_utf8_decoder() if opcode == Opcode.TEXT else None
        fragments += payload
        if self._utf8 is not None:
            self._utf8.decode(payload, ends)
        if ends:
            messages.append(bytes(fragments) if self._utf8 is None else fragments.decode())
            self._drop_fragments()
        else:
            self._active = self.noticed = True

    def _drop_fragments(self) -> None:
        self._fragments = self._utf8 = None
        self._message_is_compressed = False
        self._fast_limit = self._max_message_size if self._fast_lane else _LANE_SHUT

    def _end(self, how: Close) -> None:
        self.ended = how
        self.noticed = True
        self.unread = False
        self._held = self._slow_lane = None
        self._drop_fragments()
        self._fast_limit = _LANE_SHUT

    def notice(self) -> tuple[bytes, bool]:
        """Return the pongs to send, and whether frames arrived that count as activity and are no messages.

        Those are pings, pongs that answer no ping of ours, and fragments of a message still to be completed.
        """
        taken = b"".join(self._pongs or ()), self._active
        self._pongs = None
        self._active = self.noticed = False
        return taken

    def release_pong(self) -> bytes:
        """Return the pong that was held back, if any, and hold back no more."""
        pong, self._held_pong = self._held_pong, b""
        self.hold_pongs = False
        return pong

    def encode_shared(self, message: Encoded) -> bytes:
        """Return the frame of a message that goes to many connections, compressed if that was agreed on."""
        return message.frame if self._deflate is None else self._deflate.encode_alone(message)

    def close(self, code: int = CloseCode.NO_STATUS, reason: str = "") -> bytes:
        """Return a close frame, or nothing if there has been one; it is the last frame to be sent.

        Raises:
            ValueError: `code` may not be sent, or `reason` cannot be encoded.
        """
        if self.close_sent:
            return b""
        frame = encode_close(code, reason)
        self.close_sent = True
        return frame
