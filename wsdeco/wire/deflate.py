"""permessage-deflate for the server side (RFC 7692), with a bound on what one frame may inflate to.

Negotiation is the `websockets` library's. Inflating is done here, for two reasons. A compressor may end a message with
a final block (RFC 7692, section 7.2.3.4); the library's inflater then stays at its end, and every later message comes
out empty. And a bound that counts the bytes of the output exactly lets a message of just the permitted size through.

A frame is bounded in time as well: blocks without content inflate to nothing at a tenth of a microsecond a byte.

zlib's objects are made when the first compressed message needs them: an idle connection that has agreed on
compression holds neither of the two windows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

from websockets.exceptions import InvalidHeaderFormat, NegotiationError, PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.headers import build_extension, parse_extension

from wsdeco.config import Compression
from wsdeco.messages import Data
from wsdeco.wire.outgoing import Encoded, frame_header

__all__ = ["Deflate", "negotiate"]

_NAME: Final = "permessage-deflate"
_FIN: Final = 0x80
_RSV1: Final = 0x40
_COMPRESSED_TEXT: Final = _FIN | _RSV1 | Opcode.TEXT
_COMPRESSED_BINARY: Final = _FIN | _RSV1 | Opcode.BINARY
_EMPTY_BLOCK: Final = b"\x00\x00\xff\xff"
_MEMORY_LEVEL: Final = 5
_WINDOW_BITS: Final = 12
_DEFAULT_SETTINGS: Final = Compression()
_MAX_OFFERS: Final = 1024
"""Length of the offers that are parsed; 60 KiB of parameters would take 80 ms. Browsers need 50."""
_DEFLATED_AT_ONCE: Final = 128 * 1024
"""Bytes that are deflated in one turn of the loop. 1 or 2 ms."""
_INPUT_PIECE: Final = 64 * 1024
_OUTPUT_PIECE: Final = 256 * 1024
_MAX_FINAL_BLOCKS: Final = 4
"""Final blocks in one frame: each makes a new inflater and copies what is left, so the number has to be bounded."""
_MAX_WASTE: Final = 64 * 1024
"""Bytes of one frame that may inflate to nothing, in about 10 ms."""


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self, mode: int, /) -> bytes: ...


class Deflate:
    """One connection's compression: both contexts, each kept between messages if that was agreed on.

    Args:
        client_context: The peer refers back to its earlier messages ("context takeover").
        server_context: Outgoing messages refer back to earlier ones.
        client_window_bits: Logarithm of the peer's window, 8 to 15.
        server_window_bits: Logarithm of the window for outgoing messages, 9 to 15.
        settings: How outgoing messages are compressed; by default as `Compression()` says.
    """

    def __init__(
        self,
        *,
        client_context: bool = True,
        server_context: bool = True,
        client_window_bits: int = _WINDOW_BITS,
        server_window_bits: int = _WINDOW_BITS,
        settings: Compression | None = None,
    ) -> None:
        self._client_context = client_context
        self._server_context = server_context
        self._client_window_bits = client_window_bits
        self._server_window_bits = server_window_bits
        self._settings = settings or _DEFAULT_SETTINGS
        self._inflater: _Inflater | None = None
        self._compressor: _Compressor | None = None

    def inflated(  # noqa: C901 - pieces, blocks, and what may be wrong with them
        self, payload: list[bytes | bytearray], limit: int, *, ends: bool
    ) -> Iterator[bytes]:
        """Yield what the payload of a frame of a compressed message inflates to, in pieces of 256 KiB at most.

        Args:
            payload: The payload, unmasked, in pieces, which are taken from the list.
            limit: Most bytes it may inflate to.
            ends: The message ends with this frame.

        Raises:
            PayloadTooBig: It inflates to more than `limit`.
            ProtocolError: It is not a deflate stream, or hardly anything but blocks without content.
        """
        size = final_blocks = consumed = 0
        if ends:
            payload[-1] = payload[-1] + _EMPTY_BLOCK
        payload.reverse()
        while payload:
            data = bytes(payload.pop())
            if len(data) > _INPUT_PIECE:
                # zlib copies what it has not consumed: given all at once, it would copy the whole piece.
                payload += [data[start : start + _INPUT_PIECE] for start in range(0, len(data), _INPUT_PIECE)][::-1]
                continue
            consumed += len(data)
            while data:
                inflater = self._inflater
                if inflater is None:
                    inflater = self._inflater = zlib.decompressobj(-self._client_window_bits)
                try:
                    inflated = inflater.decompress(data, min(limit + 1 - size, _OUTPUT_PIECE))
                except zlib.error:
                    raise ProtocolError("invalid compressed data") from None
                size += len(inflated)
                if size > limit:
                    raise PayloadTooBig(None, limit)
                if inflated:
                    yield inflated
                data = inflater.unconsumed_tail
                if inflater.eof:
                    final_blocks += 1
                    if final_blocks > _MAX_FINAL_BLOCKS:
                        raise ProtocolError("too many final blocks in one compressed frame")
                    data = inflater.unused_data
                    self._inflater = None
            # Data that cannot be compressed grows by an eighth at most.
            if consumed - size * 9 // 8 > _MAX_WASTE:
                raise ProtocolError("compressed data that inflates to hardly anything")
        if ends and not self._client_context:
            self._inflater = None

    def encode_message(self, message: Data) -> bytes:
        """Return the whole frame of a message, compressed unless it is too short (RFC 7692, section 6).

        Raises:
            UnicodeEncodeError: A text holds a lone surrogate, which UTF-8 cannot carry.
        """
        first, payload = (
            (_COMPRESSED_TEXT, message.encode()) if isinstance(message, str) else (_COMPRESSED_BINARY, message)
        )
        settings = self._settings
        if len(payload) < settings.threshold:
            return frame_header(first & ~_RSV1, len(payload)) + payload
        compressor = self._compressor
        if compressor is None:
            compressor = self._new_compressor()
        data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        self._compressor = compressor if self._server_context else None
        data = data[: -len(_EMPTY_BLOCK)]
        return frame_header(first, len(data)) + data

    def _new_compressor(self) -> _Compressor:
        return zlib.compressobj(self._settings.level, wbits=-self._server_window_bits, memLevel=_MEMORY_LEVEL)

    def takes_turns(self, message: Data) -> bool:
        """Return whether a message takes longer to compress than others should wait for it."""
        return len(message) > max(_DEFLATED_AT_ONCE, self._settings.threshold)

    def frame_pieces(self, message: Data) -> Iterator[bytes]:
        """Yield the compressed frame of a message that takes turns: behind pieces that are empty.

        Between two of those others can have their turn, and this connection can send other messages. So it refers to
        no earlier message, as those of `encode_alone`.

        Raises:
            UnicodeEncodeError: A text holds a lone surrogate, which UTF-8 cannot carry; before anything but empty
                pieces is yielded.
        """
        compressor = self._new_compressor()
        first = _COMPRESSED_TEXT if isinstance(message, str) else _COMPRESSED_BINARY
        deflated: list[bytes] = []
        size = 0
        for start in range(0, len(message), _INPUT_PIECE // 2):
            piece = message[start : start + _INPUT_PIECE // 2]
            data = piece.encode() if isinstance(piece, str) else piece
            deflated.append(compressor.compress(data))
            size += len(data)
            if size >= _DEFLATED_AT_ONCE:
                size = 0
                yield b""
        deflated.append(compressor.flush(zlib.Z_SYNC_FLUSH)[: -len(_EMPTY_BLOCK)])
        self._compressor = compressor if self._server_context else None
        yield frame_header(first, sum(map(len, deflated))) + b"".join(deflated)

    def encode_alone(self, message: Encoded) -> bytes:
        """Return the whole frame of a message, for every connection with this window and these settings.

        It refers to no earlier message, and no later one of this connection refers beyond it (RFC 7692, section
        7.2.1 leaves the sender free to start afresh). If compression gains nothing, the frame is the plain one.
        """
        form = self._server_window_bits, self._settings.level, self._settings.threshold
        frame = message.compressed.get(form)
        if frame is None:
            frame = message.compressed[form] = self._frame_alone(message)
        if frame is not message.frame:
            self._compressor = None
        return frame

    def _frame_alone(self, message: Encoded) -> bytes:
        alone = Deflate(server_context=False, server_window_bits=self._server_window_bits, settings=self._settings)
        frame = alone.encode_message(message.data)
        return frame if len(frame) < len(message.frame) else message.frame


def negotiate(offers: str, settings: Compression | None = None) -> tuple[str, Deflate] | None:
    """Agree on permessage-deflate if the peer offers it in a form that can be met.

    Args:
        offers: The value of the request's `Sec-WebSocket-Extensions` header.
        settings: How outgoing messages are compressed; by default as `Compression()` says.

    Returns:
        The response header's value and the extension; `None` without such an offer, or if one cannot be parsed, or if
        they are longer than 1 KiB.
    """
    if len(offers) > _MAX_OFFERS:
        return None
    factory = ServerPerMessageDeflateFactory(
        server_max_window_bits=_WINDOW_BITS, client_max_window_bits=_WINDOW_BITS, compress_settings={}
    )
    try:
        offered = parse_extension(offers)
    except InvalidHeaderFormat:
        return None
    for name, parameters in offered:
        if name != _NAME:
            continue
        try:
            answer, agreed = factory.process_request_params(parameters, [])
        except NegotiationError:
            continue
        return build_extension([(name, answer)]), Deflate(
            client_context=not agreed.remote_no_context_takeover,
            server_context=not agreed.local_no_context_takeover,
            client_window_bits=agreed.remote_max_window_bits,
            server_window_bits=agreed.local_max_window_bits,
            settings=settings,
        )
    return None
