"""What travels through a broker: the name of a room as a subject, and a message in an envelope of plain bytes."""

from __future__ import annotations

import struct
import sys
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

from wsdeco.messages import Data

__all__ = ["ENVELOPE_BYTES", "PUBLISHER_AT", "PUBLISHER_BYTES", "Envelope", "open_envelope", "seal", "subject_of"]

PUBLISHER_BYTES: Final = 8
"""Length of what tells publishers apart."""

PUBLISHER_AT: Final = 2
"""Where it begins."""

_VERSION: Final = 1
_TEXT: Final = 0
_BINARY: Final = 1
_CONTEXT: Final = 2
"""Bits of the kind: whether the message is binary, and whether a context stands before it, behind its length."""

_HEADER: Final = struct.Struct(f"!BB{PUBLISHER_BYTES}sQ")

ENVELOPE_BYTES: Final = _HEADER.size
"""What an envelope adds to the bytes of its message, without a context."""

_MAX_NAME: Final = 200
"""Characters above which a room is named by a digest. NATS has room for 4 KiB in a line of its protocol."""


class Envelope(NamedTuple):
    """A message as it came from a broker.

    Attributes:
        publisher: Who published it.
        number: Which message to this room of that publisher it is, from 1 on.
        data: The message.
        context: That of the trace that it belongs to; empty for none.
    """

    publisher: bytes
    number: int
    data: Data
    context: bytes = b""


def seal(publisher: bytes, number: int, payload: bytes, context: bytes = b"", *, is_text: bool) -> bytes:
    """Return the bytes to publish.

    Args:
        publisher: Who publishes, in `PUBLISHER_BYTES` bytes.
        number: Which message to this room it is.
        payload: The message, text in UTF-8.
        context: That of the trace that it belongs to, of 255 bytes at most; empty for none.
        is_text: Whether it is text.
    """
    kind = _TEXT if is_text else _BINARY
    if context:
        return _HEADER.pack(_VERSION, kind | _CONTEXT, publisher, number) + bytes((len(context),)) + context + payload
    return _HEADER.pack(_VERSION, kind, publisher, number) + payload


def open_envelope(sealed: bytes, max_size: int = sys.maxsize) -> Envelope:
    """Return what somebody has published.

    Raises:
        ValueError: That was no envelope of this version, or one of more than `max_size` bytes.
    """
    if len(sealed) > max_size:
        raise ValueError(f"{len(sealed)} bytes are more than anybody may publish, which is {max_size}")
    if len(sealed) < ENVELOPE_BYTES:
        raise ValueError(f"{len(sealed)} bytes are no envelope, which has {ENVELOPE_BYTES} at least")
    version, kind, publisher, number = _HEADER.unpack_from(sealed)
    if version != _VERSION or kind & ~(_BINARY | _CONTEXT):
        raise ValueError(f"an envelope of version {version} and kind {kind} is none of version {_VERSION}")
    begin, context = ENVELOPE_BYTES, b""
    if kind & _CONTEXT:
        context, begin = _context_of(sealed)
    payload = sealed[begin:]
    # Bytes that are no UTF-8 raise UnicodeDecodeError, which is a ValueError.
    return Envelope(publisher, number, payload if kind & _BINARY else payload.decode(), context)


def _context_of(sealed: bytes) -> tuple[bytes, int]:
    begin = ENVELOPE_BYTES + 1
    end = begin + sealed[ENVELOPE_BYTES] if len(sealed) >= begin else begin
    if len(sealed) < end:
        raise ValueError(f"{len(sealed)} bytes are no envelope with a context, which ends at byte {end}")
    return sealed[begin:end], end


# Bounded, as names come from peers.
@lru_cache(maxsize=256)
def subject_of(prefix: str, key: str) -> str:
    """Return the subject, or channel, of a room: no dots, blanks or wildcards but the dot behind `prefix`.

    Args:
        prefix: What sets the rooms of one application apart from those of others at the same broker.
        key: The room.
    """
    raw = key.encode(errors="surrogatepass")
    # The two that need no escape in a URL but mean something in a subject, or here.
    name = quote(raw, safe="").replace(".", "%2E").replace("~", "%7E")
    return f"{prefix}.{name}" if len(name) <= _MAX_NAME else f"{prefix}.~{sha256(raw).hexdigest()}"
