"""Frames to send (RFC 6455, section 5.2): whole and uncompressed, so that one encoding serves many connections."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from websockets.frames import Opcode

from wsdeco.messages import Data
from wsdeco.reasons import CloseCode, check_close_code, cut_close_reason

__all__ = [
    "Encoded",
    "encode_close",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "frame_header",
    "frame_pieces",
    "takes_turns",
]

_FIN: Final = 0x80
_TEXT: Final = _FIN | Opcode.TEXT
_BINARY: Final = _FIN | Opcode.BINARY
_LONG: Final = 126
_VERY_LONG: Final = 127
_MAX_CONTROL_PAYLOAD: Final = 125
_FIRST_PIECE: Final = 16 * 1024
"""Bytes of payload that are copied behind their header, as a packet of its own for the header costs more."""
_PIECE: Final = 256 * 1024
"""Bytes of text that are encoded at a time, which fit a processor's cache."""
_PIECES_AT_ONCE: Final = 4
"""Pieces of text beyond ASCII that are encoded in one turn of the loop. 1 or 2 ms."""

_SHORT_TEXT_HEADERS: Final = tuple(bytes((_TEXT, length)) for length in range(_LONG))
_SHORT_BINARY_HEADERS: Final = tuple(bytes((_BINARY, length)) for length in range(_LONG))


class Encoded:
    """A message that goes to many connections, encoded once.

    Args:
        data: The message.

    Attributes:
        data: The message.
        size: Bytes of its payload.
        frame: Its frame, for every connection without compression.
        compressed: Its frames for the others, by the window they have agreed on, the level and the threshold of their
            route; made by the first that needs one.

    Raises:
        UnicodeEncodeError: `data` is text with a lone surrogate, which UTF-8 cannot carry.
    """

    __slots__ = ("compressed", "data", "frame", "size")

    def __init__(self, data: Data) -> None:
        self.data: Data = data
        payload = data.encode() if isinstance(data, str) else data
        self.size: int = len(payload)
        self.frame: bytes = _frame(_TEXT if isinstance(data, str) else _BINARY, payload)
        self.compressed: dict[tuple[int, int, int], bytes] = {}


def _frame(first: int, payload: bytes) -> bytes:
    return frame_header(first, len(payload)) + payload


def frame_header(first: int, length: int) -> bytes:
    """Return the header of an unmasked frame: its first byte, and the length of its payload."""
    if length < _LONG:
        return bytes((first, length))
    if length < 0x10000:
        return struct.pack("!BBH", first, _LONG, length)
    return struct.pack("!BBQ", first, _VERY_LONG, length)


def encode_message(message: Data) -> bytes:
    """Return the frame of a message, `str` as text and `bytes` as binary, to be sent on any number of connections.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate, which UTF-8 cannot carry.
    """
    if isinstance(message, str):
        payload = message.encode()
        length = len(payload)
        return (_SHORT_TEXT_HEADERS[length] if length < _LONG else frame_header(_TEXT, length)) + payload
    length = len(message)
    return (_SHORT_BINARY_HEADERS[length] if length < _LONG else frame_header(_BINARY, length)) + message


def takes_turns(message: Data) -> bool:
    """Return whether a message takes longer to encode than others should wait for it."""
    return len(message) > _PIECES_AT_ONCE * _PIECE // 4 and isinstance(message, str) and not message.isascii()


def frame_pieces(message: Data) -> Iterator[bytes | memoryview]:
    """Yield the frame of a large message piece by piece, without a copy of everything.

    Each piece of ASCII is encoded when it is asked for: what has been written by then makes room for the next one.
    Of a message that takes turns, the first pieces are empty: between two of them others can have theirs.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate, which UTF-8 cannot carry; before anything is yielded.
    """
    if isinstance(message, bytes) or (len(message) <= _PIECE and message.isascii()):
        # A part of a text is copied before it is encoded, a part of its bytes is not.
        first, whole = (_BINARY, message) if isinstance(message, bytes) else (_TEXT, message.encode())
        payload = memoryview(whole)
        yield frame_header(first, len(payload)) + payload[:_FIRST_PIECE]
        yield payload[_FIRST_PIECE:]
    elif message.isascii():
        yield frame_header(_TEXT, len(message)) + message[:_FIRST_PIECE].encode()
        for start in range(_FIRST_PIECE, len(message), _PIECE):
            yield message[start : start + _PIECE].encode()
    else:
        # A character takes up to four bytes, and the header needs the sum.
        encoded: list[bytes] = []
        for start in range(0, len(message), _PIECE // 4):
            if encoded and len(encoded) % _PIECES_AT_ONCE == 0:
                yield b""
            encoded.append(message[start : start + _PIECE // 4].encode())
        encoded[0] = frame_header(_TEXT, sum(map(len, encoded))) + encoded[0]
        encoded.reverse()
        while encoded:
            yield encoded.pop()


def encode_close(code: int = CloseCode.NO_STATUS, reason: str = "") -> bytes:
    """Return a close frame (RFC 6455, section 5.5.1); its reason is cut to the 123 bytes that fit.

    Args:
        code: The close code; 1005 makes a frame without a code.
        reason: The text behind the code.

    Raises:
        ValueError: `code` may not be sent, or `reason` cannot be encoded.
    """
    if code == CloseCode.NO_STATUS:
        return _frame(_FIN | Opcode.CLOSE, b"")
    payload = check_close_code(code).to_bytes(2, "big") + cut_close_reason(reason).encode()
    return _frame(_FIN | Opcode.CLOSE, payload)


def encode_ping(payload: bytes = b"") -> bytes:
    """Return a ping frame (RFC 6455, section 5.5.2).

    Raises:
        ValueError: `payload` is longer than the 125 bytes a control frame has room for.
    """
    if len(payload) > _MAX_CONTROL_PAYLOAD:
        raise ValueError(f"a ping carries {_MAX_CONTROL_PAYLOAD} bytes at most, not {len(payload)}")
    return _frame(_FIN | Opcode.PING, payload)


def encode_pong(payload: bytes) -> bytes:
    """Return the pong that answers a ping (RFC 6455, section 5.5.3).

    Args:
        payload: That of the ping, at most 125 bytes.
    """
    return _frame(_FIN | Opcode.PONG, payload)
