"""The door to messages with types: `wsdeco.typed` is imported by the first handler class that asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from wsdeco.channels.dialogue import Dialogue
from wsdeco.config import Codec
from wsdeco.definition.signatures import UNKNOWN
from wsdeco.reasons import HandlerError

__all__ = ["make_dialogue", "type_faults"]

_MISSING: Final = (
    "messages with types need an extra: pip install 'wsdeco[typed]', or write `text: str` and decode by hand"
)


def make_dialogue(message: object, reply: object, codec: str | Codec | None) -> Dialogue | None:
    """Return what decodes and encodes the messages of a handler class; `None` if it has no types.

    Args:
        message: The annotation of what `on_message` takes, `UNKNOWN` if that is text or bytes.
        reply: The annotation of what it gives, likewise.
        codec: The wire form that is asked for, if one is.

    Raises:
        HandlerError: The extra is not installed.
    """
    if message is UNKNOWN and reply is UNKNOWN and codec is None:
        return None
    try:
        made: Dialogue = _typed().Dialogue(_or_none(message), _or_none(reply), codec or "json")
    except ImportError as exc:
        raise HandlerError(f"{_MISSING} ({exc})") from exc
    return made


def type_faults(annotation: object, *, is_reply: bool = False) -> Iterator[str]:
    """Yield what keeps messages of the resolved `annotation` from being decoded, or as replies encoded."""
    try:
        yield from _typed().faults(annotation, is_reply=is_reply)
    except ImportError as exc:
        yield f"{_MISSING} ({exc})"


def _or_none(annotation: object) -> object:
    return None if annotation is UNKNOWN else annotation


def _typed() -> Any:
    from wsdeco.typed import dialogue  # noqa: PLC0415 - msgspec is loaded only if it is asked for

    return dialogue
