"""WebSocket framing for the server side, without I/O: bytes in, messages out, and back (RFC 6455, section 5).

A whole, uncompressed message of up to 64 KiB in one frame is what nearly all traffic is made of, so `receive` takes it
*inline*, without a further call. Every other *data frame* (fragments, compressed and longer ones), and every *control
frame*, has a method of its own. The `websockets` library's Sans-I/O `Protocol` did this once. It is the reference that
the tests compare every stream with; it is not in the way any more, as it reads each header again, takes twice the
time for a fragment and ten times for a ping, and leaves UTF-8 to its owner.

- **Boundaries.** `Framing` reads the header, refuses what can be refused from it (reserved bits and opcodes, a missing
  mask, long or fragmented control frames, lengths that are not minimal, a continuation out of place, a message over
  the limit), and waits until the frame is whole.
- **Memory.** What waits grows as it arrives, never as a header announces: frames of less than 16 KiB in one buffer,
  larger ones, and fragments, in pieces (`wsdeco.wire.gathering`). Small pieces share a buffer: three million
  fragments cost what their payload costs. With the limit checked from each
  header against what has been reassembled, both together hold no more than `max_message_size` and a header; of a
  compressed frame an eighth more may wait, as much as data that cannot be compressed may grow.
- **UTF-8.** Fragments of a text are checked as they arrive, so that a message is refused (1007) at the first fragment
  that makes it invalid.
- **Time.** Tiny messages and fragments, pings and compressed messages cost far more time and memory than their bytes
  say. One call of `receive` does a bounded amount of such work; if it stops before the end, `unread`
  says so, and the rest waits for the next call.
- **The end.** A close frame from the peer, or a fault of the peer, ends the input: `ended` says how. The messages
  before it are all returned. What to answer, `close` encodes; when, the owner decides.

A pong is due for every ping, but a peer that does not read its pongs must not fill our memory: while
`hold_pongs` is set, only the newest is kept (RFC 6455, section 5.5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, cast

from websockets import frames
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Opcode

from wsdeco.compiled import mypyc_attr
from wsdeco.messages import Data
from wsdeco.reasons import Close, CloseCode
from wsdeco.wire.deflate import Deflate
from wsdeco.wire.gathering import Fragments, LargeFrame, apply_mask
from wsdeco.wire.outgoing import Encoded, encode_close, encode_message, encode_pong, frame_pieces, takes_turns

__all__ = ["Framing"]

_FIN: Final = 0x80
_RSV1: Final = 0x40
_RESERVED: Final = 0x70
_OPCODE: Final = 0x0F
_MASKED: Final = 0x80
# Plain numbers: looking up a member of an enum takes longer than reading a header.
_CONTINUATION: Final = 0
_OPENS_TEXT: Final = 1
_OPENS_BINARY: Final = 2
_CLOSE: Final = 8
_PONG: Final = 10
_TEXT: Final = _FIN | _OPENS_TEXT
_BINARY: Final = _FIN | _OPENS_BINARY
_CONTROL: Final = 0x08
_OPCODES: Final = frozenset(map(int, Opcode))
_MAX_CONTROL_PAYLOAD: Final = 125
_LONG: Final = 126

_SHORT_HEADER: Final = 6
"""Bytes of a short frame in front of its payload, the masking key among them."""
_LONG_HEADER: Final = 8
"""Bytes of a frame with 126 bytes to 64 KiB of payload in front of that, the masking key among them."""
_INLINE_SHUT: Final = -1

_TURN_BUDGET: Final = 1000
"""Frames of one call of `receive` that are not taken inline; a compressed one counts for more. A few milliseconds."""
_LARGE: Final = 16 * 1024
"""Payload size of a frame from which it is unmasked as it arrives, if it does not arrive in one read."""
_DECODED_AT_ONCE: Final = 1024 * 1024
"""Bytes of text that one call of `receive` decodes of a larger message: 1 or 2 ms beyond ASCII."""
_INFLATED_AT_ONCE: Final = 512 * 1024
"""Bytes to which one call of `receive` inflates a larger message: 1 to 3 ms."""
_BEGUN: Final = -1
"""What work costs that has only been begun."""
_MESSAGE_BUDGET: Final = 250
"""Messages after which one call of `receive` stops: looked at once in `_STRETCH`, not for each message."""
_STRETCH: Final = 2048
"""Bytes of input between two looks at how much has been done."""
_VIEW_FROM: Final = 4096
"""Payload size from which a view costs less than a copy."""
_INFLATED_BYTES_PER_FRAME: Final = 256
"""Inflated bytes that take about the time of one small frame."""
_DEFLATED_BYTES_PER_FRAME: Final = 32
"""Deflated bytes that take about that time, at worst: those that inflate to nothing."""


class _Fault(Exception):
    """The peer broke the protocol."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


@mypyc_attr(allow_interpreted_subclasses=True)
class Framing:
    """One connection's framing, from the bytes after the handshake to the peer's close frame.

    Args:
        max_message_size: Largest incoming message in bytes, over all its fragments and inflated.
        deflate: The compression agreed on in the handshake.

    Attributes:
        encode: Returns the frame of a message, compressed if that was agreed on: for this connection only. Raises a
            `UnicodeEncodeError` for text with a lone surrogate, which UTF-8 cannot carry.
        ended: How the peer ended the input: its close frame (`by="client"`; 1005 for one without a code), or the close
            that its fault calls for (`by="server"`). Nothing that arrives later is looked at.
        close_sent: A close frame has been encoded by `close`.
        deflate: The compression agreed on; `None` for none.
        unread: `receive` stopped before the end of its work: call it again, with `b""` if nothing new came.
        noticed: There is something besides messages: look at `ended` and `unread`, and call `notice`.
        ping_payload: The payload of our ping that has not been answered; the owner sets it when it sends one.
        hold_pongs: Keep the newest pong until `release_pong`, instead of handing out all of them.
    """

    __slots__ = (
        "_active",
        "_fragments",
        "_held",
        "_held_pong",
        "_inline_limit",
        "_max_message_size",
        "_message_is_compressed",
        "_pongs",
        "_wanted",
        "close_sent",
        "deflate",
        "encode",
        "ended",
        "hold_pongs",
        "noticed",
        "ping_payload",
        "unread",
    )

    def __init__(self, max_message_size: int, *, deflate: Deflate | None = None) -> None:
        self._max_message_size = max_message_size
        self.deflate: Deflate | None = deflate
        self.encode: Callable[[Data], bytes] = encode_message if deflate is None else deflate.encode_message
        self._inline_limit = max_message_size
        self._held: bytearray | LargeFrame | None = None
        self._wanted = 0
        self._fragments: Fragments | None = None
        self._message_is_compressed = False
        self._active = False
        self._pongs: list[bytes] | None = None
        self._held_pong = b""
        self.ended: Close | None = None
        self.close_sent: bool = False
        self.unread: bool = False
        self.noticed: bool = False
        self.ping_payload: bytes | None = None
        self.hold_pongs: bool = False

    def receive(self, data: bytes) -> list[Data]:  # noqa: C901, PLR0912, PLR0915 - the fast path: a call costs
        """Take bytes from the peer and return the messages they complete.

        Look at `ended`, `unread` and `noticed` afterwards.
        """
        size = len(data)
        length = size - _SHORT_HEADER
        if 0 <= length <= self._inline_limit and self._held is None:
            # One whole frame: what a peer sends that waits for each answer.
            first = data[0]
            start = 0
            if length < _LONG:
                if length == data[1] - _MASKED:
                    start = _SHORT_HEADER
            elif data[1] == _MASKED | _LONG and size - _LONG_HEADER == data[2] << 8 | data[3] >= _LONG:
                start = _LONG_HEADER
            if start and _TEXT <= first <= _BINARY:
                masked = data[start:] if length < _VIEW_FROM else memoryview(data)[start:]
                unmasked: bytes = apply_mask(masked, data[start - 4 : start])
                try:
                    return [unmasked.decode() if first == _TEXT else unmasked]
                except UnicodeDecodeError:
                    # The loop below finds it again, and ends the input.
                    pass
        messages: list[Data] = []
        # By a name of its own: mypy would take it that nothing below ends the input, and mypyc would count on that.
        ended = self.ended
        if ended is not None:
            return messages
        chunk = data
        position = 0
        budget = _TURN_BUDGET
        try:
            held = self._held
            if isinstance(held, bytearray):
                if len(held) + size < self._wanted:
                    held += data
                    return messages
                self._held = None
                # Bytes, whose slices cost less than those of a buffer.
                chunk = b"".join((held, data))
            elif held is not None:
                position = held.missing
                if position > len(data):
                    held.add(data)
                    return messages
                if position > 0:
                    held.add(memoryview(data)[:position])
                else:
                    data = held.rest + data
                    chunk = data
                if not held.finish(_INFLATED_AT_ONCE if held.is_inflated else _DECODED_AT_ONCE):
                    self._go_on_later(data[position:])
                    return messages
                self._held = None
                cost = self._take_large(held, messages)
                if cost == _BEGUN:
                    self._go_on_later(data[position:])
                    return messages
                budget -= cost
                if budget <= 0 and position < len(data):
                    self._held = bytearray(memoryview(data)[position:])
                    self._wanted = 0
                    self.unread = self.noticed = True
                    return messages
            size = len(chunk)
            wanted = 2
            limit = self._inline_limit
            short_limit = limit if limit < _LONG else _LONG - 1
            while size - position > 1:
                pause_at = size if size - position <= _STRETCH else position + _STRETCH
                while pause_at - position > 1:
                    first = chunk[position]
                    length = chunk[position + 1] - _MASKED
                    if 0 <= length <= short_limit and _TEXT <= first <= _BINARY:
                        is_inline = True
                        start = position + 6
                        stop = start + length
                    elif (
                        length == _LONG
                        and _TEXT <= first <= _BINARY
                        and size - position > 8
                        and _LONG <= (length := chunk[position + 2] << 8 | chunk[position + 3]) <= limit
                    ):
                        is_inline = True
                        start = position + 8
                        stop = start + length
                    else:
                        is_inline = False
                        start, stop = self._read_header(chunk, position, size)
                    if stop > size:
                        wanted = stop - position
                        if size >= start and stop - start >= _LARGE:
                            self._held = self._begin_large(first, memoryview(chunk)[start - 4 :], stop - start)
                            position = size
                        break
                    masked = chunk[start:stop] if stop - start < _VIEW_FROM else memoryview(chunk)[start:stop]
                    payload: bytes = apply_mask(masked, chunk[start - 4 : start])
                    position = stop
                    if is_inline:
                        messages.append(payload.decode() if first == _TEXT else payload)
                        continue
                    if stop == size:
                        # Frees a large frame before its message is made.
                        chunk, held = b"", None
                    cost = self._take_frame(first, payload, messages)
                    if self.ended is not None:
                        return messages
                    if cost == _BEGUN:
                        self._go_on_later(chunk[position:])
                        return messages
                    budget -= cost
                    limit = self._inline_limit
                    short_limit = limit if limit < _LONG else _LONG - 1
                    if budget <= 0 and position < size:
                        wanted = 0
                        self.noticed = True
                        break
                else:
                    if len(messages) < _MESSAGE_BUDGET or position == size:
                        continue
                    wanted = 0
                    self.noticed = True
                break
        except UnicodeDecodeError:
            self._end(Close(CloseCode.INVALID_UTF8, "invalid UTF-8 in a text message", by="server"))
        except PayloadTooBig:
            self._fail(self._too_big())
        except ProtocolError as error:
            self._fail(_Fault(CloseCode.PROTOCOL_ERROR, str(error)))
        except _Fault as fault:
            self._fail(fault)
        else:
            if position < size:
                self._held = bytearray(memoryview(chunk)[position:])
                self._wanted = wanted
            self.unread = wanted == 0
        return messages

    def _go_on_later(self, rest: bytes) -> None:
        # Looked up here: where it has been set to `None` before, mypy, and so mypyc, takes it for `None`.
        cast(LargeFrame, self._held).rest = rest
        self.unread = self.noticed = True

    def _begin_large(self, first: int, rest: memoryview, length: int) -> LargeFrame:
        frame = LargeFrame(first, bytes(rest[:4]), length, is_text=first == _TEXT)
        if len(rest) > 4:
            frame.add(rest[4:])
        return frame

    def _read_header(self, chunk: bytes, position: int, size: int) -> tuple[int, int]:  # noqa: C901, PLR0912 - one check per line of the RFC
        """Return where the payload of a frame starts, and where it stops.

        The header alone stops beyond the end of the input if it is not complete.
        """
        first = chunk[position]
        length = chunk[position + 1] & ~_MASKED
        fragments = self._fragments
        opcode = first & _OPCODE
        reserved = first & _RESERVED
        if reserved != 0 and (reserved != _RSV1 or self.deflate is None or opcode not in (_OPENS_TEXT, _OPENS_BINARY)):
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
        elif (opcode == _CONTINUATION) is (fragments is None):
            expected = "unexpected continuation frame" if opcode == _CONTINUATION else "expected a continuation frame"
            raise _Fault(CloseCode.PROTOCOL_ERROR, expected)
        start = position + 2
        if length >= _LONG:
            shortest, width = (_LONG, 2) if length == _LONG else (0x10000, 8)
            start += width
            if start > size:
                return start, start
            length = int.from_bytes(chunk[start - width : start], "big")
            if not shortest <= length < 1 << 63:
                raise _Fault(CloseCode.PROTOCOL_ERROR, "frame length is not minimal, or has its top bit set")
        if not opcode & _CONTROL:
            most = self._max_message_size
            if reserved != 0 or self._message_is_compressed:
                # Data that cannot be compressed grows, by an eighth with deflate's fixed codes.
                most += most // 8 + 64
            if (length if fragments is None else fragments.size + length) > most:
                raise self._too_big()
        start += 4
        return start, start + length

    @property
    def _reassembled(self) -> int:
        return 0 if self._fragments is None else self._fragments.size

    def _too_big(self) -> _Fault:
        return _Fault(CloseCode.TOO_BIG, f"message is longer than {self._max_message_size} bytes")

    def _take_frame(self, first: int, payload: bytes, messages: list[Data]) -> int:
        """Take a whole frame, and return what that cost, in small frames.

        `_BEGUN` says that there is more to do, and what is held is to be finished by the next calls.
        """
        fragments = self._fragments
        if first == _CONTINUATION and fragments is not None and not self._message_is_compressed:
            # Most frames of a message in many fragments.
            fragments.add(payload, ends=False)
            self._active = self.noticed = True
            return 1
        if first & _CONTROL:
            self._take_control(first & _OPCODE, payload)
            return 1
        if first & _RSV1 or self._message_is_compressed:
            return self._take_deflated(first, len(payload), [payload], messages)
        return self._take_data(first & _OPCODE, payload, messages, ends=first >= _FIN, rsv1=False)

    def _take_large(self, frame: LargeFrame, messages: list[Data]) -> int:
        first = frame.first
        if frame.is_inflated and self._fragments is not None:
            return self._take_data(first & _OPCODE, b"", messages, ends=first >= _FIN, rsv1=False)
        if first & _RSV1 == 0 and first >= _FIN and self._fragments is None:
            messages.append(frame.message())
            return 1
        if first & _RSV1 or self._message_is_compressed:
            pieces = frame.take()
            return self._take_deflated(first, sum(map(len, pieces)), pieces, messages)
        return self._take_frame(first, frame.payload(), messages)

    def _take_deflated(self, first: int, size: int, payload: list[bytes | bytearray], messages: list[Data]) -> int:
        ends = first >= _FIN
        rsv1 = first & _RSV1 != 0
        opcode = first & _OPCODE
        inflating = cast(Deflate, self.deflate).inflated(payload, self._max_message_size - self._reassembled, ends=ends)
        pieces: list[bytes] = []
        cost = 1 + size // _DEFLATED_BYTES_PER_FRAME
        size = 0
        for piece in inflating:
            pieces.append(piece)
            size += len(piece)
            if size > _INFLATED_AT_ONCE:
                break
        else:
            whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            begun = self._take_data(opcode, whole, messages, ends=ends, rsv1=rsv1)
            return begun if begun == _BEGUN else cost + size // _INFLATED_BYTES_PER_FRAME
        if not ends and self._fragments is None:
            self._take_data(opcode, b"", messages, ends=False, rsv1=rsv1)
        fragments = self._fragments
        held = LargeFrame(first & ~_RSV1, b"", 0, is_text=fragments is None and opcode == _OPENS_TEXT)
        held.begin(chain(pieces, inflating), fragments, is_inflated=True)
        self._held = held
        return _BEGUN

    def _take_data(self, opcode: int, payload: bytes, messages: list[Data], *, ends: bool, rsv1: bool) -> int:
        fragments = self._fragments
        if fragments is None:
            if ends:
                messages.append(payload.decode() if opcode == _OPENS_TEXT else payload)
                return 1
            fragments = self._fragments = Fragments(is_text=opcode == _OPENS_TEXT)
            self._inline_limit = _INLINE_SHUT
            self._message_is_compressed = rsv1
        fragments.add(payload, ends=ends)
        if not ends:
            self._active = self.noticed = True
            return 1
        self._drop_fragments()
        if fragments.is_text and fragments.size > _DECODED_AT_ONCE:
            held = LargeFrame(_TEXT, b"", 0, is_text=True)
            held.begin(fragments.take())
            self._held = held
            return _BEGUN
        messages.append(fragments.message())
        return 1

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == _CLOSE:
            self._end(_parsed_close(payload))
            return
        self.noticed = True
        if opcode == _PONG and payload == self.ping_payload:
            self.ping_payload = None
            return
        self._active = True
        if opcode == _PONG:
            return
        pong = encode_pong(payload)
        if self.hold_pongs:
            self._held_pong = pong
        elif self._pongs is None:
            self._pongs = [pong]
        else:
            self._pongs.append(pong)

    def _drop_fragments(self) -> None:
        self._fragments = None
        self._message_is_compressed = False
        self._inline_limit = self._max_message_size

    def _fail(self, fault: _Fault) -> None:
        self._end(Close(fault.code, fault.reason, by="server"))

    def _end(self, how: Close) -> None:
        self.ended = how
        self.noticed = True
        self.unread = False
        self._held = None
        self._drop_fragments()
        self._inline_limit = _INLINE_SHUT

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

    def takes_turns(self, message: Data) -> bool:
        """Return whether a message takes longer to encode than others should wait for it."""
        return takes_turns(message) if self.deflate is None else self.deflate.takes_turns(message)

    def encode_large(self, message: Data) -> Iterator[bytes | memoryview]:
        """Return the pieces of the frame of a large message, compressed if that was agreed on.

        Of one that takes turns, the first pieces are empty: between two of them others can have theirs.
        """
        deflate = self.deflate
        if deflate is None:
            return frame_pieces(message)
        return (
            deflate.frame_pieces(message) if deflate.takes_turns(message) else iter((deflate.encode_message(message),))
        )

    def encode_shared(self, message: Encoded) -> bytes:
        """Return the frame of a message that goes to many connections, compressed if that was agreed on."""
        return message.frame if self.deflate is None else self.deflate.encode_alone(message)

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


def _parsed_close(payload: bytes) -> Close:
    try:
        close = frames.Close.parse(payload)
    except UnicodeDecodeError as error:
        raise _Fault(CloseCode.INVALID_UTF8, f"{error.reason} at position {error.start}") from None
    return Close(int(close.code), close.reason)
