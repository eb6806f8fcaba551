"""Which messages a handler takes and sends, with the JSON Schema of those that have a type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from wsdeco.definition.plan import plan_of

__all__ = ["Message", "Messages", "messages_of"]


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of message.

    Attributes:
        name: What it is called, in the document as well.
        content_type: Its media type.
        payload: The JSON Schema of its content.
        description: What it is for, in words.
    """

    name: str
    content_type: str
    payload: dict[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Messages:
    """The messages of a handler.

    Attributes:
        received: Those that it takes from clients.
        sent: Those that clients get from it; what the sink sends has no type that could be known.
        schemas: What `$ref` in a payload refers to, by name.
    """

    received: list[Message]
    sent: list[Message]
    schemas: dict[str, Any] = field(default_factory=dict[str, Any])


_TEXT: Final = Message("text", "text/plain", {"type": "string"})
_BINARY: Final = Message("binary", "application/octet-stream", {"type": "string", "format": "binary"})


def messages_of(target: object) -> Messages:
    """Return the messages of a handler class, or of a function that leaves its upgrades to some handler."""
    if not isinstance(target, type):
        return Messages([_TEXT, _BINARY], [_TEXT, _BINARY])
    plan = plan_of(target)
    taken = [message for message, takes in ((_TEXT, plan.takes_text), (_BINARY, plan.takes_binary)) if takes]
    return Messages(taken, [_TEXT, _BINARY])
