"""What has arrived of a large frame, or of a message in fragments: pieces, joined once when the last is there.

A buffer that grows towards a size copies what it holds again and again, and takes fresh pages for it: on the way to
1 MiB that cost more than all else together. A piece is as large as the read that brought it, whatever the header
announced, is unmasked while it is still in the processor's cache, and goes with the join. Small pieces share a buffer,
so that the memory follows the payload however it was cut.
"""

from __future__ import annotations

import sys
from codecs import utf_8_decode
from collections.abc import Iterator
from typing import Final

from wsdeco.messages import Data

try:
    from websockets.speedups import apply_mask as _apply_mask
except ImportError:
    from websockets.utils import apply_mask as _apply_mask

__all__ = ["Fragments", "LargeFrame", "apply_mask"]

apply_mask: Final = _apply_mask

_WHOLE: Final = 1024
"""Size of a piece whose own object costs next to nothing."""
_SHARED: Final = 64 * 1024
"""Size at which a buffer of small pieces is full."""
_LOOKED_AT: Final = 4096
"""Bytes at the start of a piece that are decoded before the rest: a piece that is kept as it is costs no more."""


def _add(pieces: list[bytes | bytearray], piece: bytes) -> None:
    if len(piece) >= _WHOLE:
        pieces.append(piece)
        return
    last = pieces[-1] if pieces else None
    if isinstance(last, bytearray) and len(last) < _SHARED:
        last += piece
    else:
        pieces.append(bytearray(piece))


class Fragments:
    """The fragments of a message (RFC 6455, section 5.4).

    Args:
        is_text: Each fragment is checked as it comes.

    Attributes:
        is_text: Each fragment has been checked.
        size: Bytes of payload that are here.
    """

    __slots__ = ("_pieces", "_tail", "is_text", "size")

    def __init__(self, *, is_text: bool) -> None:
        self.is_text: bool = is_text
        self._pieces: list[bytes | bytearray] = []
        self._tail = b""
        self.size: int = 0

    def add(self, payload: bytes, *, ends: bool) -> None:
        """Take the payload of a fragment; `ends` says that it is the last one.

        Raises:
            UnicodeDecodeError: The text is no UTF-8, whatever may come behind it.
        """
        size = len(payload)
        self.size += size
        if size >= _WHOLE:
            self._pieces.append(payload)
        else:
            _add(self._pieces, payload)
        if self.is_text and (self._tail or not payload.isascii()):
            unchecked = self._tail + payload
            self._tail = unchecked[utf_8_decode(unchecked, "strict", ends)[1] :]

    def message(self) -> Data:
        """Return the message, all of whose fragments have been added."""
        payload = b"".join(self._pieces)
        return payload.decode() if self.is_text else payload

    def take(self) -> Iterator[bytes]:
        """Yield the pieces of the message, none of which is kept."""
        return _taken(self._pieces)


def _taken(pieces: list[bytes | bytearray]) -> Iterator[bytes]:
    pieces.reverse()
    while pieces:
        yield bytes(pieces.pop())


class LargeFrame:
    """A data frame of which more is to come, unmasked piece by piece.

    Args:
        first: The first byte of its header.
        key: The masking key.
        length: Bytes of its payload.
        is_text: It is a whole message of text. What arrives is decoded at once if that takes no more memory, and what
            has been left in several steps, so that no turn of the loop has to decode everything.

    Attributes:
        first: The first byte of its header.
        missing: Bytes of its payload that have yet to arrive.
        rest: What has arrived behind it, while there is something left to do with it.
        is_inflated: What is left to do with it takes longer than decoding.
    """

    __slots__ = (
        "_decodes",
        "_fragments",
        "_is_text",
        "_key",
        "_left",
        "_pieces",
        "_tail",
        "_texts",
        "first",
        "is_inflated",
        "missing",
        "rest",
    )

    def __init__(self, first: int, key: bytes, length: int, *, is_text: bool) -> None:
        self.first: int = first
        self.missing: int = length
        self.rest: bytes = b""
        self.is_inflated: bool = False
        self._left: Iterator[bytes] | None = None
        self._fragments: Fragments | None = None
        self._is_text = self._decodes = is_text
        self._key = key
        self._pieces: list[bytes | bytearray] = []
        self._tail = b""
        self._texts: list[str] = []

    def add(self, masked: bytes | memoryview) -> None:
        """Take what has arrived, no more than `missing`."""
        size = len(masked)
        key = self._key
        piece = apply_mask(masked, key)
        self.missing -= size
        turned = size & 3
        self._key = key[turned:] + key[:turned]
        if self._decodes:
            piece = self._tail + piece
            self._tail = b""
            is_last = self.missing == 0
            try:
                if is_last or len(piece) <= _LOOKED_AT or _is_compact(piece[:_LOOKED_AT]):
                    text, used = utf_8_decode(piece, "strict", is_last)
                    if is_last or sys.getsizeof(text) * 8 <= len(piece) * 9:
                        self._texts.append(text)
                        self._tail = piece[used:]
                        return
            except UnicodeDecodeError:
                # The peer is told when the frame is whole, as with a small one.
                pass
            # One character beyond the BMP makes Python keep four bytes for each: decoded when the message is whole.
            self._decodes = False
        _add(self._pieces, piece)
        if self._is_text and self.missing == 0:
            self._left = _taken(self._pieces)

    def begin(self, pieces: Iterator[bytes], fragments: Fragments | None = None, *, is_inflated: bool = False) -> None:
        """Have `finish` take these pieces for the payload, which add to a message in `fragments` if it is in such."""
        self._left = pieces
        self._fragments = fragments
        self.is_inflated = is_inflated

    def finish(self, most: int) -> bool:
        """Inflate and decode `most` bytes and a piece of what is left of a frame that is whole.

        Returns:
            Whether that was all.

        Raises:
            UnicodeDecodeError: The text is no UTF-8.
            PayloadTooBig: As `wsdeco.wire.deflate.Deflate.inflated` does.
            ProtocolError: The same.
        """
        left = self._left
        if left is None:
            return True
        for piece in left:
            most -= len(piece)
            if self._fragments is not None:
                self._fragments.add(piece, ends=False)
            elif self._is_text:
                encoded = self._tail + piece
                text, used = utf_8_decode(encoded, "strict", False)
                self._texts.append(text)
                self._tail = encoded[used:]
            else:
                self._pieces.append(piece)
            if most <= 0:
                return False
        # Raises an exception if the last character is not whole.
        utf_8_decode(self._tail, "strict", True)
        self._left = None
        return True

    def take(self) -> list[bytes | bytearray]:
        """Return the pieces of the payload of a frame that is no whole text; nothing of it is kept."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def payload(self) -> bytes:
        """Return the payload of such a frame; once, as nothing of it is kept."""
        pieces = self.take()
        return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], bytes) else b"".join(pieces)

    def message(self) -> Data:
        """Return the payload of a frame that is a whole message, a text all decoded; once, as nothing of it is kept."""
        if not self._is_text:
            return self.payload()
        texts, self._texts = self._texts, []
        return "".join(texts)


def _is_compact(start: bytes) -> bool:
    text, used = utf_8_decode(start, "strict", False)
    return sys.getsizeof(text) * 8 <= used * 9
