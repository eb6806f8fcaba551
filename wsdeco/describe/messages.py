"""Which messages handlers take and send, with the JSON Schema of those that have a type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from wsdeco.definition.base import hooks_of
from wsdeco.definition.signatures import UNKNOWN
from wsdeco.routing.registry import Registered

__all__ = ["Message", "Messages", "messages_of"]

_REFERENCE: Final = "#/components/schemas/{}"


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
    """

    received: list[Message]
    sent: list[Message]


_TEXT: Final = Message("text", "text/plain", {"type": "string"})
_BINARY: Final = Message("binary", "application/octet-stream", {"type": "string", "format": "binary"})


def messages_of(served: Iterable[Registered]) -> tuple[list[Messages], dict[str, Any]]:
    """Return the messages of each handler, and of each function that leaves its upgrades to some handler.

    Returns:
        The messages, and the schemas by name that their payloads refer to.
    """
    schemas = _Schemas()
    return [_messages_of(each, schemas) for each in served], schemas.named


def _messages_of(each: Registered, schemas: _Schemas) -> Messages:
    if not isinstance(each.target, type):
        return Messages([_TEXT, _BINARY], [_TEXT, _BINARY])
    hooks = hooks_of(each.target)
    codec = "json" if each.info.config is None else each.info.config.codec or "json"
    taken = [message for message, takes in ((_TEXT, hooks.takes_text), (_BINARY, hooks.takes_binary)) if takes]
    sent = [_TEXT, _BINARY]
    if hooks.message is not UNKNOWN:
        taken = schemas.messages(hooks.message, codec)
    if hooks.reply is not UNKNOWN:
        sent = schemas.messages(hooks.reply, codec)
    return Messages(taken, sent)


class _Schemas:
    """The schemas of all classes of messages in one document."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def messages(self, annotation: object, codec: object) -> list[Message]:
        """Return the messages of an annotation, those without a type included."""
        types = _kinds()
        content_type = {"json": "application/json", "msgpack": "application/msgpack"}.get(
            str(codec), "application/octet-stream"
        )
        kinds = types.kinds_of(annotation)
        is_union = sum(kind.is_object for kind in kinds) > 1
        found: list[Message] = []
        for kind in kinds:
            payload = schema = self._schema(
                types.struct_like(kind.cls) if types.is_named_tuple(kind.cls) else kind.form
            )
            if "$ref" in schema:
                schema = self.named[schema["$ref"].rpartition("/")[2]]
            if is_union and kind.is_object and kind.own_tag is None:
                # The tag is no field of the class.
                name, (value, *_) = kind.tag
                payload = schema | {
                    "properties": {name: {"const": value}} | schema.get("properties", {}),
                    "required": [name, *schema.get("required", ())],
                }
            word = re.sub(r"\W", "_", kind.name)
            found.append(Message(word, content_type, payload, schema.get("description", "")))
        members = list(types.members_of(annotation))
        return found + [plain for kind, plain in ((str, _TEXT), (bytes, _BINARY)) if kind in members]

    def _schema(self, form: Any) -> dict[str, Any]:
        import msgspec  # noqa: PLC0415

        if _kinds().is_pydantic(form):
            return self._pydantic_schema(form)
        (schema,), components = msgspec.json.schema_components(
            [form], schema_hook=self._pydantic_schema, ref_template=_REFERENCE.format("{name}")
        )
        return self._adopt(schema, components)

    def _pydantic_schema(self, model: Any) -> dict[str, Any]:
        schema = model.model_json_schema(ref_template=_REFERENCE.format("{model}"))
        return self._adopt(schema, schema.pop("$defs", {}))

    def _adopt(self, schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
        """Return `schema` with its `components` under names that no other classes have."""
        renamed: dict[str, str] = {}
        for name, component in components.items():
            # Two modules may have a class of the same name.
            free, number = name, 1
            while self.named.get(free, component) != component:
                number += 1
                free = f"{name}_{number}"
            renamed[_REFERENCE.format(name)] = _REFERENCE.format(free)
            self.named[free] = component
        if any(old != new for old, new in renamed.items()):
            for new in set(renamed.values()):
                name = new.rpartition("/")[2]
                self.named[name] = _with_references(self.named[name], renamed)
            changed: dict[str, Any] = _with_references(schema, renamed)
            return changed
        return schema


def _kinds() -> Any:
    from wsdeco.typed import kinds  # noqa: PLC0415 - msgspec is there if a handler asks for it

    return kinds


def _with_references(schema: Any, renamed: dict[str, str]) -> Any:
    match schema:
        case list():
            return [_with_references(each, renamed) for each in cast("list[object]", schema)]
        case dict():
            members = cast("dict[str, Any]", schema).items()
            return {
                name: renamed.get(each, each) if name == "$ref" else _with_references(each, renamed)
                for name, each in members
            }
        case _:
            return schema
