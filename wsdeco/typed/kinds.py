"""The classes of messages: what an annotation is made of, how its classes are told apart, what cannot be decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import inspect as types
from typing_extensions import is_typeddict

__all__ = [
    "TAG",
    "Kind",
    "Tag",
    "decode_hook",
    "encode_hook",
    "faults",
    "is_named_tuple",
    "is_pydantic",
    "kinds_of",
    "members_of",
    "struct_like",
]

TAG: Final = "type"
"""The member that names the class of a message, if the class itself declares none."""

Value: TypeAlias = str | int


class Tag(NamedTuple):
    """The member that tells a class from others, and the values by which it does."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the classes that a message may have.

    Attributes:
        form: The class, with its type arguments if it has some.
        cls: The class alone; `object` for what has none.
        own_tag: What the class itself declares to be told from others by.
        literals: Its `Literal` fields, any of which may tell it from others.
        is_object: Its JSON is an object.
        is_array: Its JSON is an array.
        fields: The names of the members of its JSON; `None` if they are not known.
        is_strict: It refuses members that it does not know.
    """

    form: Any
    cls: type[Any]
    own_tag: Tag | None
    literals: tuple[Tag, ...]
    is_object: bool
    is_array: bool
    fields: frozenset[str] | None
    is_strict: bool

    @property
    def name(self) -> str:
        """What the class is called."""
        return getattr(self.cls, "__name__", repr(self.form))

    @property
    def tag(self) -> Tag:
        """What it is told from others by."""
        return self.own_tag or Tag(TAG, (self.name,))


def is_pydantic(cls: object) -> bool:
    """Return whether `cls` is a model of pydantic, which is not imported for that."""
    return isinstance(cls, type) and hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate")


def decode_hook(kind: type, value: object) -> object:
    """Decode what msgspec has no form for: models of pydantic inside of other types."""
    if not is_pydantic(kind):
        raise NotImplementedError
    model: Any = kind
    return model.model_validate(value)


def encode_hook(value: object) -> object:
    """Encode what msgspec has no form for: models of pydantic."""
    if not is_pydantic(type(value)):
        raise NotImplementedError(f"a message cannot hold {type(value).__name__}")
    model: Any = value
    return model.model_dump(mode="json")


def members_of(annotation: object) -> Iterator[object]:
    """Yield the members of a union, or the annotation itself; `None` is no message."""
    annotation = _meant(annotation)
    origin = get_origin(annotation)
    if origin is Annotated and _is_union(_meant(get_args(annotation)[0])):
        annotation = _meant(get_args(annotation)[0])
    if _is_union(annotation):
        for member in get_args(annotation):
            yield from members_of(member)
    elif annotation is not None and annotation is not NoneType:
        yield annotation


def _is_union(annotation: object) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _meant(annotation: object) -> object:
    # The value of a `type` statement (PEP 695), also of one with parameters, and the base of a `NewType`.
    for name in ("__value__", "__supertype__"):
        annotation = getattr(annotation, name, annotation)
    return annotation


def kinds_of(annotation: object) -> list[Kind]:
    """Return the classes that a message of the annotation may have, without text and bytes."""
    kinds = [_kind_of(member) for member in members_of(annotation) if member is not str and member is not bytes]
    choices = [{tag.field: tag for tag in kind.literals} for kind in kinds if kind.is_object]
    if len(choices) < 2:
        return kinds
    # A field that all of them have is a discriminator, also if it has several values in one class.
    common = [name for name in choices[0] if all(name in each for each in choices)]
    name = TAG if TAG in common else next(iter(common), None)
    if name is None:
        return kinds
    return [
        replace(kind, own_tag=next(tag for tag in kind.literals if tag.field == name)) if kind.is_object else kind
        for kind in kinds
    ]


def _kind_of(form: Any) -> Kind:
    bare = get_args(form)[0] if get_origin(form) is Annotated else form
    origin: Any = get_origin(bare) or bare
    cls: type[Any] = origin if isinstance(origin, type) else object
    if is_pydantic(cls):
        model: Any = cls
        names = {name: field.alias or name for name, field in model.model_fields.items()}
        hints = {names[name]: field.annotation for name, field in model.model_fields.items()}
        forbids = model.model_config.get("extra") == "forbid"
        literals = _literals(hints)
        return Kind(form, cls, _own_tag(literals), literals, True, False, frozenset(hints), forbids)
    if issubclass(cls, msgspec.Struct):
        return _kind_of_struct(form, cls)
    if dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__") or is_typeddict(cls) or is_named_tuple(cls):
        hints = _hints(cls)
        literals = _literals(hints)
        return Kind(form, cls, _own_tag(literals), literals, True, False, frozenset(hints), False)
    is_array = issubclass(cls, list | tuple | set | frozenset)
    return Kind(form, cls, None, (), issubclass(cls, dict), is_array, None, False)


def _kind_of_struct(form: Any, cls: type[msgspec.Struct]) -> Kind:
    config: Any = cls.__struct_config__
    fields = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    literals: tuple[Tag, ...] = (Tag(config.tag_field, (config.tag,)),)
    tag: Tag | None = literals[0]
    if config.tag is None:
        literals = _literals({fields[name]: hint for name, hint in _hints(cls).items() if name in fields})
        tag = _own_tag(literals)
    is_array: bool = config.array_like
    names = frozenset(fields.values())
    return Kind(form, cls, tag, literals, not is_array, is_array, names, config.forbid_unknown_fields)


def _hints(cls: type) -> dict[str, object]:
    try:
        hints = get_type_hints(cls)
    except Exception:
        # A name that only a type checker sees: msgspec says so, in `faults`.
        return {}
    if dataclasses.is_dataclass(cls):
        return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    return hints


def is_named_tuple(cls: Any) -> bool:
    """Return whether `cls` is a `NamedTuple`."""
    return issubclass(cls, tuple) and hasattr(cast(Any, cls), "_fields")


def _literals(hints: dict[str, object]) -> tuple[Tag, ...]:
    found = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    return tuple(
        Tag(name, values)
        for name, values in found.items()
        if all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)
    )


def _own_tag(literals: tuple[Tag, ...]) -> Tag | None:
    # A field named like the tag goes first, then one with a single value; fields with several values are data.
    tags = [tag for tag in literals if tag.field == TAG] or [tag for tag in literals if len(tag.values) == 1]
    return tags[0] if tags else None


def struct_like(cls: Any) -> type[msgspec.Struct]:
    """Return a Struct with the fields of a `NamedTuple`, which msgspec has as an array."""
    hints = get_type_hints(cls, include_extras=True)
    defaults: dict[str, Any] = cls._field_defaults
    fields: list[Any] = [
        (name, hints.get(name, Any), defaults[name]) if name in defaults else (name, hints.get(name, Any))
        for name in cls._fields
    ]
    return msgspec.defstruct(cls.__name__, fields)


def faults(annotation: object, *, is_reply: bool = False) -> Iterator[str]:
    """Yield what keeps messages of the annotation from being decoded and encoded, each with what to write.

    Args:
        annotation: What is taken or given.
        is_reply: It is given, and text stays text.
    """
    members = list(members_of(annotation))
    kinds = kinds_of(annotation)
    if str in members and kinds and not is_reply:
        yield f"`str` and `{kinds[0].name}` both come as text: leave one of them out"
    for kind in kinds:
        yield from _form_faults(kind)
    if len(kinds) > 1:
        yield from _union_faults(kinds)


def _form_faults(kind: Kind) -> Iterator[str]:
    if kind.form is Any or is_pydantic(kind.cls):
        return
    if not kind.is_object and not kind.is_array:
        yield f"`{_shown(kind.form)}` is no message: write `str` or `bytes`, a dataclass, a TypedDict, `dict` or `list`"
        return
    for place, form in _fields_of(kind):
        fault = _type_fault(form)
        if fault is not None:
            yield f"{place} {fault}"
            return
    fault = _type_fault(kind.form)
    if fault is not None:
        yield f"`{_shown(kind.form)}` {fault}"


def _fields_of(kind: Kind) -> Iterator[tuple[str, object]]:
    if kind.fields is None:
        return
    for name, hint in _hints(kind.cls).items():
        yield f"field `{name}: {_shown(hint)}` of {kind.name}", hint


def _type_fault(form: object) -> str | None:
    try:
        msgspec.json.Decoder(form)
        info = types.type_info(form)
    except TypeError as exc:
        text = str(exc)
        if "may not contain more than one" in text:
            return (
                "is a union of classes inside of a message, which are not told apart: "
                "make them msgspec.Structs with `tag=True`"
            )
        return f"cannot be decoded ({text})"
    except NameError as exc:
        return f"cannot be decoded ({exc}): define or import the name where the program runs"
    custom = _custom_type(info, set())
    if custom is not None:
        return f"cannot be decoded, JSON has no form for `{custom.__name__}`: write a dataclass, or a type of JSON"
    return None


def _custom_type(info: object, seen: set[int]) -> type | None:
    """Return a class in the description of a type that only a hook could decode."""
    if isinstance(info, types.CustomType | types.RawType):
        cls: type = getattr(info, "cls", msgspec.Raw)
        return None if is_pydantic(cls) else cls
    if id(info) in seen:
        return None
    seen.add(id(info))
    inner: list[object] = []
    if isinstance(info, msgspec.Struct):
        inner = [getattr(info, name) for name in info.__struct_fields__]
    elif isinstance(info, tuple):
        inner = list(cast("tuple[object, ...]", info))
    return next((found for each in inner if (found := _custom_type(each, seen)) is not None), None)


def _union_faults(kinds: list[Kind]) -> Iterator[str]:
    objects = [kind for kind in kinds if kind.is_object]
    arrays = [kind for kind in kinds if kind.is_array]
    if len(arrays) > 1:
        yield f"`{_shown(arrays[0].form)}` and `{_shown(arrays[1].form)}` both are arrays, and not told apart: keep one"
    for kind in kinds:
        if kind.fields is None and len(objects) > 1 and kind.is_object:
            other = next(each for each in objects if each is not kind)
            yield f"`{_shown(kind.form)}` and {other.name} are not told apart: make a class of it, or keep one of them"
    for kind in kinds:
        if kind.form is Any:
            yield "`Any` is every message: leave the others out, or write the classes that may come"
    seen: dict[tuple[str, Value], Kind] = {}
    for kind in objects if all(each.fields is not None for each in objects) else ():
        for value in kind.tag.values:
            other = seen.setdefault((kind.tag.field, value), kind)
            if other is not kind:
                yield (
                    f"{other.name} and {kind.name} are not told apart, `{kind.tag.field}` is {value!r} in both: "
                    f'give one of them a field such as `type: Literal["other"] = "other"`'
                )


def _shown(form: object) -> str:
    return form.__name__ if isinstance(form, type) and not get_args(form) else str(form).replace("typing.", "")
