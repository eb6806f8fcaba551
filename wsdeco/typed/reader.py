"""From a frame to the message that a hook gets: the tag is read first, and picks the decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import msgspec

from wsdeco.channels.data import Data
from wsdeco.reasons import printable
from wsdeco.typed.codecs import Format
from wsdeco.typed.kinds import Kind, decode_hook, is_named_tuple, is_pydantic, kinds_of, members_of, struct_like

__all__ = ["ANSWER", "OURS", "Id", "Invalid", "Reader"]

Id: TypeAlias = str | int
"""What a peer numbers its requests with."""

OURS: Final = "$"
"""How the numbers of our own requests begin."""

ANSWER: Final = object()
"""Stands for a message that answers a request of ours."""

_MAX_ID: Final = 128
"""Characters of a number; it comes back with every reply, and a stream has many."""

_MAX_TEXT: Final = 200
"""Characters of what a peer is told of its fault, which may repeat what it has sent."""

_ABSENT: Final = msgspec.Raw()
"""Stands for a member that an object does not have."""

_Decode: TypeAlias = Callable[[Any], Any]


class Invalid(Exception):
    """A message is not of the type that was asked for.

    Attributes:
        message: What was expected and found.
        path: Where, in JSONPath.
        id: The number of the request, if it has one.
    """

    def __init__(self, message: str, path: str = "$", id: Id | None = None) -> None:  # noqa: A002 - its name on the wire
        super().__init__(message)
        self.message: str = _cut(message)
        self.path: str = _cut(path)
        self.id = id


class Reader:
    """Reads messages of one annotation.

    Args:
        annotation: What the hook takes.
        wire: Their form on the wire.
    """

    def __init__(self, annotation: object, wire: Format) -> None:
        kinds = kinds_of(annotation)
        objects = [kind for kind in kinds if kind.is_object]
        self._wire = wire
        self._takes_bytes = bytes in members_of(annotation) and wire.is_json
        self._by_tag: dict[str, dict[object, _Decode]] = {}
        self._one: _Decode | None = None
        self._array: _Decode | None = None
        if len(objects) > 1:
            for kind in objects:
                table = self._by_tag.setdefault(kind.tag.field, {})
                table.update(dict.fromkeys(kind.tag.values, self._decoder_of(kind, is_tagged=True)))
            self._array = next((self._decoder_of(kind) for kind in kinds if kind.is_array), None)
        elif len(kinds) == 1:
            self._one = self._decoder_of(kinds[0])
        else:
            self._array = next((self._decoder_of(kind) for kind in kinds if kind.is_array), None)
            self._one = next((self._decoder_of(kind) for kind in objects), None)
        # The syntax of all JSON is msgspec's: pydantic takes NaN.
        is_checked = any(is_pydantic(kind.cls) for kind in kinds)
        self._is_alone = self._one is not None and self._array is None and not is_checked
        names = ["id", *self._by_tag]
        fields: list[Any] = [(f"member_{index}", msgspec.Raw, _ABSENT) for index in range(len(names))]
        renamed = {f"member_{index}": name for index, name in enumerate(names)}
        self._head: Any = wire.decoder(msgspec.defstruct("Head", fields, rename=renamed)) if wire.has_raw else None
        self._by_text: dict[object, _Decode] = {}
        if wire.has_raw and len(self._by_tag) == 1 and self._array is None:
            ((name, self._by_text),) = self._by_tag.items()
            tag: Any = msgspec.defstruct("Tag", [("tag", str, "")], rename={"tag": name})
            self._tag: _Decode = wire.decoder(tag)
        self._names = names

    def read(self, frame: Data, *, is_answer: bool = False) -> tuple[Any, Id | None]:
        """Return the message in `frame`, and the number of the request that it is.

        Args:
            frame: What has arrived.
            is_answer: It is known to be the answer to a request of ours; otherwise `ANSWER` stands for such.

        Raises:
            Invalid: It is not what the annotation says.
        """
        wire = self._wire
        if not wire.fits(frame):
            if self._takes_bytes:
                return frame, None
            kind = "binary" if wire.is_json else "text"
            raise Invalid(f"Expected {wire.name}, got a {kind} frame")
        number: Id | None = None
        try:
            content = wire.load(frame)
            if not wire.may_have_id(frame):
                found = self._one
                if not self._is_alone:
                    found = self._told_by_text(content) if self._by_text else None
                if found is not None:
                    return found(content), None
            decode, number = self._choose(content, is_answer=is_answer)
            return (ANSWER, number) if decode is None else (decode(content), number)
        except Invalid:
            raise
        except (ValueError, TypeError, RecursionError) as exc:
            raise Invalid(*_fault_of(exc), number) from None

    def number_of(self, frame: Data) -> Id | None:
        """Return the number of the request that is in `frame`, or that it answers."""
        if not self._wire.fits(frame) or not self._wire.may_have_id(frame):
            return None
        try:
            return _number(self._members(self._wire.load(frame))[0])
        except (ValueError, TypeError, RecursionError):
            return None

    def _told_by_text(self, content: Any) -> _Decode | None:
        """Return the decoder by a tag that is text, as most are; `None` if it is none, or unknown."""
        try:
            return self._by_text.get(self._tag(content).tag)
        except msgspec.ValidationError:
            return None

    def _choose(self, content: Any, *, is_answer: bool) -> tuple[_Decode | None, Id | None]:
        if self._array is not None and isinstance(self._wire.plain(content), list):
            return self._array, None
        try:
            number, *tags = self._members(content)
        except msgspec.ValidationError:
            # The message is no object: a list, for instance, or anything if the type is `Any`.
            if self._one is None:
                raise
            return self._one, None
        number = _number(number)
        if not is_answer and isinstance(number, str) and number.startswith(OURS):
            return None, number
        if self._one is not None:
            return self._one, number
        for name, tag in zip(self._names[1:], tags, strict=True):
            decode = self._by_tag[name].get(tag) if type(tag) in (str, int) else None
            if decode is not None:
                return decode, number
        raise self._untold(tags, number)

    def _members(self, content: Any) -> list[Any]:
        if self._head is not None:
            head = self._head(content)
            plain = self._wire.plain
            raws = [getattr(head, name) for name in head.__struct_fields__]
            return [plain(raw) if 0 < len(memoryview(raw)) <= 6 * _MAX_ID else None for raw in raws]
        if not isinstance(content, dict):
            raise msgspec.ValidationError("Expected `object`")
        members = cast("dict[str, Any]", content)
        return [members.get(name) for name in self._names]

    def _untold(self, tags: list[Any], number: Id | None) -> Invalid:
        for name, tag in zip(self._names[1:], tags, strict=True):
            if tag is not None:
                choice = ", ".join(f"`{value}`" for value in self._by_tag[name])
                return Invalid(f"Expected one of {choice}, got {tag!r}", f"$.{name}", number)
        return Invalid(f"Object missing required field `{self._names[1]}`", "$", number)

    def _decoder_of(self, kind: Kind, *, is_tagged: bool = False) -> _Decode:
        wire = self._wire
        if kind.is_strict:
            added = {"id", kind.tag.field} if is_tagged and kind.own_tag is None else {"id"}
            return _strict(wire.plain, added.difference(kind.fields or ()), _converter(kind.form))
        if is_pydantic(kind.cls):
            model: Any = kind.form
            if wire.is_json:
                validate: _Decode = model.__pydantic_validator__.validate_json
                return validate
            return lambda content: model.model_validate(wire.plain(content))
        if is_named_tuple(kind.cls):
            return _named_tuple(kind.cls, wire)
        return wire.decoder(kind.form)


def _strict(plain: _Decode, added: set[str], convert: _Decode) -> _Decode:
    """Return a decoder of a class that refuses members which it does not know, such as those that we add."""

    def decode(content: Any) -> Any:
        value = plain(content)
        if isinstance(value, dict):
            members = cast("dict[str, Any]", value)
            value = {name: each for name, each in members.items() if name not in added}
        return convert(value)

    return decode


def _converter(form: Any) -> _Decode:
    if is_pydantic(form):
        validate: _Decode = form.model_validate
        return validate
    return lambda value: msgspec.convert(value, form, dec_hook=decode_hook)


def _named_tuple(cls: Any, wire: Format) -> _Decode:
    """Return a decoder of a `NamedTuple` from an object; msgspec has them as arrays."""
    decode = wire.decoder(struct_like(cls))
    return lambda content: cls(*msgspec.structs.astuple(decode(content)))


def _number(value: Any) -> Id | None:
    if isinstance(value, str):
        return value if len(value) <= _MAX_ID else None
    return value if type(value) is int else None


def _fault_of(exc: Exception) -> tuple[str, str]:
    """Return what is wrong and where, by the exception of a decoder."""
    if hasattr(exc, "errors"):
        # The text of pydantic's error has several lines, and repeats the input.
        error: Any = exc
        first: dict[str, Any] = error.errors(include_url=False, include_context=False, include_input=False)[0]
        steps: tuple[int | str, ...] = first["loc"]
        return str(first["msg"]), "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    if isinstance(exc, RecursionError):
        return "Nested too deeply", "$"
    message, _, path = str(exc).partition(" - at `")
    return message, path.removesuffix("`") or "$"


def _cut(text: str) -> str:
    return printable(text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "...")
