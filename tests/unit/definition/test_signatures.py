"""Reading callables and annotations: what is known, what counts as unknown."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Final, Literal, NewType, Protocol, TypeVar, cast

import pytest
from typing_extensions import TypeAliasType

from wsdeco.channels.data import Address
from wsdeco.definition.signatures import (
    UNKNOWN,
    accepts,
    alternatives,
    namespace_of,
    outcome_of,
    resolve,
    shown_type,
    signature_of,
    where,
)

T = TypeVar("T")
Bound = TypeVar("Bound", bound="int | None")
Constrained = TypeVar("Constrained", str, bytes)
UserId = NewType("UserId", str)
Data = TypeAliasType("Data", str | bytes)
Listed = TypeAliasType("Listed", list[T], type_params=(T,))


class Lazy:
    """A `type` statement whose value names what only a type checker sees."""

    @property
    def __value__(self) -> object:
        raise NameError("name 'Hidden' is not defined")

    def __repr__(self) -> str:
        return "Lazy"


class HasName(Protocol):
    name: str


ALTERNATIVES: Final[list[tuple[object, tuple[type, ...]]]] = [
    (str, (str,)),
    (str | bytes | None, (str, bytes, NoneType)),
    (list[int], (list,)),
    (Literal["a", "b", 3], (str, int)),
    (T, (object,)),
    (Bound, (object,)),
    (Constrained, (str, bytes)),
    (UserId, (str,)),
    (Data, (str, bytes)),
    (Listed[int], (list,)),
    (Lazy(), (object,)),
    (Any, (object,)),
    (UNKNOWN, (object,)),
    ("unresolved", (object,)),
    (Callable[[], None], (cast(type, Callable),)),
]


@pytest.mark.parametrize(("annotation", "expected"), ALTERNATIVES, ids=repr)
def test_the_classes_a_value_may_have(annotation: object, expected: tuple[type, ...]) -> None:
    assert alternatives(annotation) == expected


@pytest.mark.parametrize(
    ("annotation", "arriving", "expected"),
    [
        (str, str, True),
        (Hashable, str, True),
        (Sequence[str], str, True),
        (bytes, str, False),
        (float, int, True),
        (int, float, False),
        (bool, int, False),
        (tuple[str, int], Address, True),
        (HasName, Address, True),
        (int | None, str, False),
        (Any, str, True),
    ],
)
def test_what_an_annotation_lets_in(annotation: object, arriving: type, expected: bool) -> None:
    assert accepts(annotation, arriving) is expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("str", str),
        ("Mapping[str, 'Address']", Mapping[str, Address]),
        (None, NoneType),
        (Annotated[str, "name"], str),
        ("Hidden", UNKNOWN),
        ("str |", UNKNOWN),
        ("1 / 0", UNKNOWN),
        (UNKNOWN, UNKNOWN),
    ],
)
def test_annotations_are_resolved_as_far_as_they_can_be(annotation: object, expected: object) -> None:
    assert resolve(annotation, globals()) == expected


def test_annotations_are_shown_as_they_are_written() -> None:
    assert [shown_type(each) for each in (str, "Hidden", list[int], Address)] == [
        *("str", "Hidden", "list[int]", "wsdeco.channels.data.Address"),
    ]


async def stream(text: str) -> AsyncIterator[str]:
    yield text


def endless() -> None: ...


endless.__wrapped__ = endless  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]


def passing(*args: object, **kwargs: object) -> None: ...


passing.__wrapped__ = passing  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]


def test_wrappers_in_a_circle_end() -> None:
    assert outcome_of(endless, None).running == "plain"
    assert str(signature_of(endless)) == "() -> None"
    assert str(signature_of(passing)) == "(*args: object, **kwargs: object) -> None"


def test_layers_are_looked_through() -> None:
    partial = functools.partial(functools.partial(stream), "hi")
    assert outcome_of(partial, signature_of(partial)).running == "stream"
    assert namespace_of(partial) is globals()
    assert where(partial) == f"{__file__}:{inspect.getsourcelines(stream)[1]}"


def test_what_has_no_source_is_nowhere() -> None:
    assert (where(print), dict(namespace_of(print))) == ("", {})
    assert signature_of(3) is None
