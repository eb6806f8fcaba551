"""The wire forms of messages: JSON in text frames, MessagePack in binary frames, and those of the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from wsdeco.channels.data import Data
from wsdeco.config import Codec
from wsdeco.typed.kinds import decode_hook, encode_hook

__all__ = ["Format", "format_of"]


class Format(Protocol):
    """What messages are read from and written to.

    Attributes:
        name: What it is called, for the peer.
        is_json: It is JSON, whose objects are written without being built.
        has_raw: Members of an object can be read without the others.
    """

    name: str
    is_json: bool
    has_raw: bool

    def fits(self, frame: Data) -> bool:
        """Return whether messages travel in frames of this kind."""
        ...

    def may_have_id(self, frame: Any) -> bool:
        """Return whether an object in `frame` could have a member `id`."""
        ...

    def load(self, frame: Any) -> Any:
        """Return what the decoders take."""
        ...

    def decoder(self, form: Any) -> Callable[[Any], Any]:
        """Return what decodes it to a value of the type `form`."""
        ...

    def plain(self, content: Any) -> Any:
        """Return the value in it, without a type of its own."""
        ...

    def builtins(self, value: Any) -> Any:
        """Return `value` made of dicts, lists and what else is encoded without a class."""
        ...

    def encode(self, value: Any) -> Any:
        """Return the frame for a value."""
        ...


class _Plain:
    def builtins(self, value: Any) -> Any:
        return msgspec.to_builtins(value, enc_hook=encode_hook)


class _Json(_Plain):
    name = "JSON"
    is_json = True
    has_raw = True

    def fits(self, frame: Data) -> bool:
        return isinstance(frame, str)

    def may_have_id(self, frame: str) -> bool:
        # JSON may write the name with escapes.
        return '"id"' in frame or "\\u" in frame

    def load(self, frame: str) -> str:
        return frame

    def decoder(self, form: Any) -> Callable[[Any], Any]:
        return msgspec.json.Decoder(form, dec_hook=decode_hook).decode

    def plain(self, content: Any) -> Any:
        return _plain_json(content)

    def encode(self, value: Any) -> str:
        return _encode_json(value).decode()


class _MessagePack:
    name = "MessagePack"
    is_json = False
    has_raw = True

    def fits(self, frame: Data) -> bool:
        return isinstance(frame, bytes)

    def may_have_id(self, frame: bytes) -> bool:
        # A str of two bytes may be written in longer forms; all end in these.
        return b"id" in frame

    def load(self, frame: bytes) -> bytes:
        return frame

    def decoder(self, form: Any) -> Callable[[Any], Any]:
        return msgspec.msgpack.Decoder(form, dec_hook=decode_hook).decode

    def plain(self, content: Any) -> Any:
        return _plain_msgpack(content)

    def encode(self, value: Any) -> bytes:
        return _encode_msgpack(value)

    def builtins(self, value: Any) -> Any:
        return msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview), enc_hook=encode_hook)


class _Own(_Plain):
    """A codec of the user, which deals with dicts, lists and the like."""

    is_json = False
    has_raw = False

    def __init__(self, codec: Codec) -> None:
        self.name = type(codec).__name__
        self._codec = codec

    def fits(self, frame: Data) -> bool:
        return True

    def may_have_id(self, frame: Data) -> bool:
        return True

    def load(self, frame: Data) -> Any:
        try:
            return self._codec.decode(frame)
        except Exception as exc:
            # A codec of the user's may raise anything; the peer's bytes are the cause.
            raise ValueError(f"Not a message of {self.name}: {type(exc).__name__}") from exc

    def decoder(self, form: Any) -> Callable[[Any], Any]:
        return lambda content: msgspec.convert(content, form, dec_hook=decode_hook)

    def plain(self, content: Any) -> Any:
        return content

    def encode(self, value: Any) -> Data:
        return self._codec.encode(self.builtins(value))


_plain_json: Final = msgspec.json.Decoder().decode
_plain_msgpack: Final = msgspec.msgpack.Decoder().decode
_encode_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=encode_hook).encode
_encode_json: Final = msgspec.json.Encoder(enc_hook=encode_hook).encode
_JSON: Final = _Json()
_MESSAGEPACK: Final = _MessagePack()


def format_of(codec: str | Codec) -> Format:
    """Return the wire form that `ConnectionConfig.codec` stands for."""
    if codec == "json":
        return _JSON
    return _MESSAGEPACK if codec == "msgpack" else _Own(codec)  # type: ignore[arg-type]
