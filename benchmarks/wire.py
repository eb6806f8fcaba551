"""The bytes a client needs: its handshake, its frames, and where the frames of a server end (RFC 6455)."""

import random
import zlib
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
"""`Sec-WebSocket-Key` of every handshake; the example of RFC 6455, section 1.3."""

ACCEPT: Final = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""What a server answers `KEY` with."""

MASKING_KEY: Final = bytes.fromhex("37fa213d")
"""Masks every frame; the example of RFC 6455, section 5.7."""

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
FIN: Final = 0x80
RSV1: Final = 0x40
MASKED: Final = 0x80

WORDS: Final = (
    "message",
    "sender",
    "room",
    "text",
    "time",
    "of",
    "the",
    "to",
    "and",
    "hello",
    "world",
    "value",
    "17",
    "2048",
)


BEYOND_ASCII: Final = ("größe", "сообщение", "комната", "時刻", "текст", "und", "café", "день", "message", "17")


class ServerFault(Exception):
    """The server did something that a measurement cannot go on with."""


class NotOffered(ServerFault):
    """The server does not have what the row is about."""


class Payload(Enum):
    """What a message is made of."""

    ASCII = "text"
    BEYOND_ASCII = "text beyond ASCII"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class Message:
    """A message that is sent again and again, as the bytes on the wire.

    Attributes:
        text: What it says, in UTF-8.
        frame: The masked frame that carries it, or its fragments.
        reply: The end of what answers it: for an echo all of it.
        reply_size: Size of the frame that answers it, in bytes; `None` when the server chooses it by compressing.
    """

    text: bytes
    frame: bytes
    reply: bytes
    reply_size: int | None


def make_message(
    size: int, payload: Payload = Payload.ASCII, *, compressed: bool = False, fragment: int | None = None
) -> Message:
    """Return a message that is echoed.

    Args:
        size: Bytes of its payload, which looks, and compresses, like the JSON of an application.
        payload: What it is made of.
        compressed: It is sent compressed.
        fragment: Size of the fragments it is sent in, in bytes.
    """
    text = sample_text(size, payload)
    opcode = BINARY if payload is Payload.BINARY else TEXT
    if compressed:
        return Message(text, masked_frame(FIN | RSV1 | opcode, deflated(text)), text, None)
    frame = masked_frame(FIN | opcode, text) if fragment is None else masked_fragments(opcode, text, fragment)
    return Message(text, frame, text, len(frame_header(FIN | opcode, size)) + size)


def text_message(content: str) -> Message:
    """Return a message of this text, which is echoed."""
    text = content.encode()
    return Message(text, masked_frame(FIN | TEXT, text), text, len(frame_header(FIN | TEXT, len(text))) + len(text))


def answered_with_length(message: Message) -> Message:
    """Return the same message for a server that answers with its length."""
    reply = str(len(message.text)).encode("ascii")
    return replace(message, reply=reply, reply_size=len(frame_header(FIN | TEXT, len(reply))) + len(reply))


def sample_text(size: int, payload: Payload = Payload.ASCII) -> bytes:
    """Return `size` bytes of text in UTF-8, the same at each call."""
    chosen = random.Random(size)  # noqa: S311  # sample data, not a secret
    words: list[bytes] = []
    length = 0
    while length < size:
        words.append(f'"{chosen.choice(BEYOND_ASCII if payload is Payload.BEYOND_ASCII else WORDS)}":'.encode())
        length += len(words[-1])
    # No character is cut in two.
    return b"".join(words)[:size].decode("utf-8", "ignore").encode().ljust(size)


def masked_fragments(opcode: int, text: bytes, size: int) -> bytes:
    """Return the frames of a message in fragments of `size` bytes (RFC 6455, section 5.4)."""
    starts = range(0, len(text), size)
    firsts = [opcode, *[CONTINUATION] * (len(starts) - 1)]
    firsts[-1] |= FIN
    return b"".join(
        masked_frame(first, text[start : start + size]) for first, start in zip(firsts, starts, strict=True)
    )


def deflated(text: bytes) -> bytes:
    """Return the payload of a compressed message (RFC 7692, section 7.2.1)."""
    # Each message is compressed on its own, so that the same bytes are right again and again.
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


def frame_header(first: int, length: int, masked: int = 0) -> bytes:
    """Return a frame header without its masking key (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes([first, masked | length])
    if length < 1 << 16:
        return bytes([first, masked | 126]) + length.to_bytes(2)
    return bytes([first, masked | 127]) + length.to_bytes(8)


def masked_frame(first: int, payload: bytes) -> bytes:
    """Return a frame as a client sends it."""
    keys = MASKING_KEY * (len(payload) // 4 + 1)
    mask = int.from_bytes(keys[: len(payload)])
    masked = (int.from_bytes(payload) ^ mask).to_bytes(len(payload))
    return frame_header(first, len(payload), MASKED) + MASKING_KEY + masked


def upgrade_request(port: int, path: str = "/ws", *, compression: bool = False) -> bytes:
    """Return the opening handshake of a client (RFC 6455, section 4.1)."""
    extensions = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if compression else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extensions}\r\n"
    ).encode("ascii")


def check_upgrade(response: bytes, *, compression: bool) -> None:
    """Raise `ServerFault` unless a handshake was accepted, with or without permessage-deflate as asked."""
    status, _, fields = response.partition(b"\r\n")
    if b" 101" not in status or ACCEPT not in fields:
        raise ServerFault(f"it answered the handshake with {status.decode('latin-1')!r}")
    agreed = b"permessage-deflate" in fields.lower()
    if compression and not agreed:
        raise NotOffered("it does not agree to permessage-deflate")
    if agreed and not compression:
        raise ServerFault("it uses permessage-deflate without having been asked")


def frame_end(buffer: bytes | bytearray, start: int) -> int | None:
    """Return where the unmasked frame at `start` ends, or `None` while it is not all there."""
    if len(buffer) < start + 2:
        return None
    length, header = buffer[start + 1], start + 2
    if length >= 126:
        extended = 2 if length == 126 else 8
        if len(buffer) < header + extended:
            return None
        length = int.from_bytes(buffer[header : header + extended])
        header += extended
    end = header + length
    return end if len(buffer) >= end else None


def take_messages(buffer: bytearray) -> int:
    """Remove the complete frames at the start of `buffer`, and return how many of them end a message.

    Raises:
        ServerFault: The server closes the connection.
    """
    start = messages = 0
    while (end := frame_end(buffer, start)) is not None:
        opcode = buffer[start] & 0x0F
        if opcode == CLOSE:
            raise ServerFault(f"it closed a connection: {bytes(buffer[start:end])!r}")
        messages += opcode < CLOSE and buffer[start] & FIN != 0
        start = end
    del buffer[:start]
    return messages
