"""What travels over a channel, and what it is checked for: messages, header fields, the address of the peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, cast

from wsdeco.messages import Data
from wsdeco.reasons import printable

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "Address",
    "Data",
    "Encoder",
    "HeaderItems",
    "Outgoing",
    "check_sendable",
    "checked_data",
    "checked_kind",
    "encoded_headers",
    "exceeds",
    "header_pairs",
    "payload_estimate",
    "unsendable",
    "wire_size",
]


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Struct(Protocol):
    __struct_fields__: ClassVar[tuple[str, ...]]


class _AttrsClass(Protocol):
    __attrs_attrs__: ClassVar[Any]


class _PydanticModel(Protocol):
    def model_dump_json(self) -> str: ...


Outgoing: TypeAlias = (
    str | bytes | Mapping[str, Any] | Sequence[Any] | _Dataclass | _Struct | _AttrsClass | _PydanticModel
)
"""What can be sent: text, bytes, and messages with types, if the handler has such."""

HeaderItems: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields of a response, as a mapping or, if a name repeats, as pairs."""

_HANDSHAKE_HEADERS: Final = frozenset({"connection", "upgrade", "content-length", "transfer-encoding"})
_SAMPLE: Final = 1024
"""Characters of a text by which its size is estimated."""
_LONG_TEXT: Final = 16 * 1024
"""Length of a text from which an encoding to UTF-16 finds lone surrogates faster: it has no form for them either."""
_PIECE: Final = 32 * 1024
"""Characters of it that are looked at together, so that what comes out is still in the processor's cache."""


class Address(NamedTuple):
    """The peer's address; `str()` gives `host:port`.

    Attributes:
        host: The IP address, or an empty string if there is none (a Unix socket).
        port: The TCP port, or 0.
    """

    host: str
    port: int

    def __str__(self) -> str:
        if not self.host:
            return "unknown address"
        host = printable(self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def payload_estimate(data: Data) -> int:
    """Return the bytes of payload that `data` takes in its frame, without encoding a long text for it.

    Of a text beyond ASCII its first 1,024 characters stand for the rest.
    """
    size = len(data)
    if isinstance(data, bytes) or data.isascii():
        return size
    sample = len(data[:_SAMPLE].encode(errors="replace"))
    return sample if size <= _SAMPLE else sample * size // _SAMPLE


def wire_size(data: Data) -> int:
    """Return the bytes of payload that `data` takes in its frame.

    Raises:
        ValueError: `data` is text that UTF-8 cannot carry.
    """
    if isinstance(data, bytes) or data.isascii():
        return len(data)
    try:
        return len(data.encode())
    except UnicodeEncodeError as exc:
        raise unsendable(exc) from None


def check_sendable(data: Data) -> None:
    """Do nothing if a frame can carry `data`; of a long text that takes a quarter of the time of its encoding.

    Raises:
        ValueError: `data` is text that UTF-8 cannot carry.
    """
    if isinstance(data, bytes) or data.isascii() or (len(data) >= _LONG_TEXT and _has_utf16(data)):
        return
    wire_size(data)


def _has_utf16(text: str) -> bool:
    try:
        for start in range(0, len(text), _PIECE):
            text[start : start + _PIECE].encode("utf-16-le")
    except UnicodeEncodeError:
        return False
    return True


def exceeds(data: Data, limit: int) -> bool:
    """Return whether the payload takes more than `limit` bytes; text is only encoded for that if it is close."""
    return len(data) * (4 if isinstance(data, str) else 1) > limit and wire_size(data) > limit


class Encoder(Protocol):
    """What has frames for messages with types."""

    def encode(self, message: object, /) -> Data:
        """Return the frame of a message, or raise `TypeError`."""
        ...


def checked_data(data: object) -> Data:
    """Return `data` as something a frame can carry.

    Raises:
        TypeError: `data` is neither text nor bytes.
        ValueError: `data` is text that UTF-8 cannot carry.
    """
    checked = checked_kind(data)
    check_sendable(checked)
    return checked


def checked_kind(data: object, encoder: Encoder | None = None, advice: str = "write json.dumps(...) first") -> Data:
    """Return `data` as text or bytes; whether UTF-8 can carry the text is for the channel to find out.

    Args:
        data: The message.
        encoder: Asked for what is neither text nor bytes.
        advice: What to write if there is no encoder.

    Raises:
        TypeError: `data` is neither text nor bytes, and there is no encoder for it.
    """
    if isinstance(data, str):
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(cast("Buffer", data))
    if encoder is not None:
        return encoder.encode(data)
    raise TypeError(f"a message must be str or bytes, not {type(data).__name__}: {advice}")


def unsendable(error: UnicodeEncodeError) -> ValueError:
    """Return the exception for text that UTF-8 cannot carry."""
    return ValueError(f"text cannot be sent, UTF-8 has no form for it: {error}")


def header_pairs(headers: HeaderItems) -> Iterable[tuple[str, str]]:
    """Return `headers` as pairs of name and value."""
    return cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers


def encoded_headers(headers: HeaderItems) -> list[tuple[bytes, bytes]]:
    """Return `headers` as bytes; whether these can be sent is for `check_headers` to find out, of who sends them.

    Raises:
        TypeError: A name or value is not a `str`.
        ValueError: A value holds a character outside ISO-8859-1, or a name belongs to the handshake itself.
    """
    if not headers:
        return []
    encoded: list[tuple[bytes, bytes]] = []
    pairs: Iterable[tuple[object, object]] = header_pairs(headers)
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers must be pairs of str, not {type(name).__name__} and {type(value).__name__}")
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"header {name!r} belongs to the handshake: for a subprotocol write subprotocol=...")
        try:
            encoded.append((name.encode(errors="replace"), value.strip(" \t").encode("latin-1")))
        except UnicodeEncodeError:
            raise ValueError(
                f"header {name!r} has a value that no header can carry: some of it is outside of ISO-8859-1"
            ) from None
    return encoded
