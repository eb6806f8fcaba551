"""Frames as a client sends them, well formed or not, for the tests of the framing and of the protocol."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from websockets.utils import apply_mask

TEXT: Final = 1
BINARY: Final = 2
CONT: Final = 0
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
MASK: Final = b"\x0b\xad\xf0\x0d"


def client_frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = True, width: int = 0
) -> bytes:
    """Return a frame; `width` (2 or 8) forces a longer length field than the payload needs."""
    length = len(payload)
    first = (0x80 if fin else 0) | reserved | opcode
    mask_bit = 0x80 if masked else 0
    if width == 0:
        width = 0 if length < 126 else 2 if length < 0x10000 else 8
    if width == 0:
        header = struct.pack("!BB", first, mask_bit | length)
    elif width == 2:
        header = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        header = struct.pack("!BBQ", first, mask_bit | 127, length)
    return header + (MASK + apply_mask(payload, MASK) if masked else payload)


def text(content: str, *, fin: bool = True) -> bytes:
    """Return a text frame."""
    return client_frame(TEXT, content.encode(), fin=fin)


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return client_frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def header(first: int, second: int, rest: bytes = b"") -> bytes:
    """Return the start of a frame, byte by byte."""
    return bytes((first, second)) + rest


def deflated(data: bytes, *, window_bits: int = 12) -> bytes:
    """Return the payload of a compressed message (RFC 7692, section 7.2.1)."""
    compressor = zlib.compressobj(wbits=-window_bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
