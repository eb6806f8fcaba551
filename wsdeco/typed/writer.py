"""From a message to its frame: with the tag of its class, and the number of the request that it answers."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, Final, cast

from wsdeco.channels.data import Data
from wsdeco.typed.codecs import Format
from wsdeco.typed.kinds import Kind, Tag, is_named_tuple, kinds_of
from wsdeco.typed.reader import Id

__all__ = ["Writer"]

logger: Final = logging.getLogger("wsdeco")


@dataclass(frozen=True, slots=True)
class _Form:
    """How messages of one class are written.

    Attributes:
        tag: What is added to tell the class from others.
        text: The same in JSON, with what follows it.
        has_id: The class has a member `id` of its own.
        is_named_tuple: It is a `NamedTuple`, whose JSON is an object here.
    """

    tag: Tag | None
    text: str
    has_id: bool
    is_named_tuple: bool


_PLAIN: Final = _Form(None, "", False, False)


class Writer:
    """Writes messages.

    Args:
        annotation: What `on_message` is annotated to give. The classes of a union in it are written with their tags.
        wire: Their form on the wire.
        warns: Whether to say so if classes are written that no peer can tell apart.
    """

    def __init__(self, annotation: object, wire: Format, *, warns: bool = False) -> None:
        self._wire = wire
        self._encode = wire.encode
        self._as_they_are: set[type] = set()
        self._tagged: dict[type, str] = {}
        self._written: set[type] = set()
        self._forms: dict[type, _Form] = {str: _PLAIN, bytes: _PLAIN}
        self._untold: dict[frozenset[str], str] | None = {} if warns else None
        self._kinds = kinds_of(annotation)
        self._is_union = len([kind for kind in self._kinds if kind.is_object]) > 1

    def write(self, message: Any, number: Id | None = None) -> Data:
        """Return the frame of `message`; text and bytes are frames already.

        Raises:
            TypeError: The wire form has none for `message`.
            ValueError: The same, for a value in it.
        """
        kind: type[Any] = message.__class__
        if kind is str or kind is bytes:
            return cast(Data, message)
        if number is None:
            if kind in self._as_they_are:
                return cast(Data, self._encode(message))
            tag = self._tagged.get(kind)
            if tag is not None:
                return _spliced(self._encode(message), tag, None)
        return self._write(kind, message, number)

    def text(self, message: Any) -> str:
        """Return `message` in JSON, text included."""
        return cast(str, self._write(message.__class__, message, None))

    def _write(self, kind: type[Any], message: Any, number: Id | None) -> Data:
        form = self._forms.get(kind) or self._learn(kind)
        if kind not in self._written:
            self._note(kind, form)
        wire = self._wire
        if form.is_named_tuple:
            message = message._asdict()
        if number is not None and (form.has_id or (kind is dict and "id" in message)):
            number = None
        if form.tag is None and number is None:
            return cast(Data, wire.encode(message))
        if wire.is_json:
            return _spliced(wire.encode(message), form.text, number)
        value = wire.builtins(message)
        if isinstance(value, dict):
            members = cast("dict[str, Any]", value)
            added: dict[str, Any] = {} if form.tag is None else {form.tag.field: form.tag.values[0]}
            if number is not None:
                added["id"] = number
            value = added | members
        return cast(Data, wire.encode(value))

    def form_of(self, kind: type) -> tuple[Format, Tag | None]:
        """Return what decides how messages of a class are written: if it is equal, so is their frame."""
        form = self._forms.get(kind) or self._learn(kind)
        return self._wire, form.tag

    def knows(self, kind: type) -> bool:
        """Return whether a class is one of the annotation, or derived from one."""
        return self._kind_of(kind) is not None

    def _learn(self, cls: type) -> _Form:
        found = self._kind_of(cls)
        if found is None:
            bare = kinds_of(cls)
            fields = bare[0].fields if bare else None
            tag = None
        else:
            fields = found.fields
            tag = found.tag if self._is_union and found.own_tag is None and found.is_object else None
        wire = self._wire
        text = f"{wire.encode(tag.field)}:{wire.encode(tag.values[0])}," if tag is not None and wire.is_json else ""
        has_id = fields is not None and "id" in fields
        form = self._forms[cls] = _Form(tag, text, has_id=has_id, is_named_tuple=is_named_tuple(cls))
        return form

    def _note(self, cls: type, form: _Form) -> None:
        self._written.add(cls)
        if form.tag is not None:
            if self._wire.is_json and not form.is_named_tuple:
                self._tagged[cls] = form.text
            return
        if not form.is_named_tuple:
            self._as_they_are.add(cls)
        kind = self._kind_of(cls) or next(iter(kinds_of(cls)), None)
        if kind is not None and kind.own_tag is None and kind.is_object:
            self._warn_of_likeness(kind)

    def _warn_of_likeness(self, kind: Kind) -> None:
        if self._untold is None or kind.fields is None:
            return
        other = self._untold.setdefault(kind.fields, kind.name)
        if other != kind.name:
            logger.warning(
                "%s and %s have the same members and are sent without a `type`, so that no client can tell them apart: "
                "write `-> %s | %s | None` at `on_message`, with all classes that are sent or broadcast",
                other,
                kind.name,
                other,
                kind.name,
            )

    def _kind_of(self, cls: type) -> Kind | None:
        for base in cls.__mro__:
            for kind in self._kinds:
                if kind.cls is base and kind.fields is not None:
                    return kind
        return None


def _spliced(body: str, tag: str, number: Id | None) -> str:
    """Return a JSON object with members in front; what is no object stays as it is."""
    if body[0] != "{":
        return body
    if number is not None:
        tag += f'"id":{_json_of(number)},'
    return f"{{{tag}{body[1:]}" if body != "{}" else f"{{{tag[:-1]}}}"


def _json_of(number: Id) -> str:
    return str(number) if isinstance(number, int) else json.dumps(number, ensure_ascii=False)
