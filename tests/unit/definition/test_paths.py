"""Paths: which can be routed, what their parameters hold, and which two are the same."""

from collections.abc import Iterator
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from starlette.convertors import CONVERTOR_TYPES, Convertor

from wsdeco import RouteError
from wsdeco.definition.paths import check_path, parameter_kinds, path_shape


class DateConvertor(Convertor[date]):
    regex = r"\d{4}-\d{2}-\d{2}"

    def convert(self, value: str) -> date:
        return date.fromisoformat(value)

    def to_string(self, value: date) -> str:
        return value.isoformat()


class SilentConvertor(Convertor[Any]):
    """A convertor that does not say what it gives."""

    regex = "[a-z]+"

    def convert(self, value: str) -> Any:
        return value

    def to_string(self, value: object) -> str:
        return str(value)


@pytest.fixture
def convertors() -> Iterator[None]:
    """Two convertors beyond Starlette's own."""
    before = dict(CONVERTOR_TYPES)
    CONVERTOR_TYPES.update(date=DateConvertor(), silent=SilentConvertor())
    yield
    CONVERTOR_TYPES.clear()
    CONVERTOR_TYPES.update(before)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/ws", "/a/b", "/a/", "/caf\u00e9", "/a b", "/a:b", "/~a/@b"),
        *("/{room}", "/{room}/{seat}", "/rooms/{room:str}", "/{rest:path}", "/{n:int}", "/{x:float}", "/{id:uuid}"),
        *("/pre{name}post", "/{a}-{b}", "/{_a1}"),
    ],
)
def test_a_path_that_starlette_can_route(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "the path comes first and is a str, not None: write '/ws', for instance"),
        (b"/ws", "the path comes first and is a str, not b'/ws': write '/ws', for instance"),
        ("ws", "path 'ws' must begin with a slash: write '/ws'"),
        ("", "path '' must begin with a slash: write '/'"),
        ("{room}", "path '{room}' must begin with a slash: write '/{room}'"),
        ("/ws?token=1", "path '/ws?token=1' must not hold a query or a fragment: read them from query_params"),
        ("/ws#top", "path '/ws#top' must not hold a query or a fragment: read them from query_params"),
        (
            "/{n:integer}",
            "path '/{n:integer}' uses an unknown convertor 'integer': write one of str, path, int, float, uuid",
        ),
        ("/{a}/{b}/{a:int}", "path '/{a}/{b}/{a:int}' uses a parameter twice: give each of a, b, a a name of its own"),
        *(
            (path, f"path {path!r} has braces that are no parameter: write {{name}} or {{name:int}}")
            for path in ("/{", "/}", "/{}", "/{1a}", "/{a", "/a}", "/{a b}", "/{a:}", "/{{a}}", "/{a-b}", "/{:int}")
        ),
    ],
)
def test_a_path_that_cannot_be_routed(path: object, message: str) -> None:
    with pytest.raises(RouteError) as caught:
        check_path(path)
    assert str(caught.value) == message


def test_a_convertor_of_the_user_can_be_routed(convertors: None) -> None:
    assert check_path("/{day:date}") == "/{day:date}"


def test_the_kinds_of_parameters(convertors: None) -> None:
    path = "/{a}/{b:str}/{c:int}/{d:float}/{e:uuid}/{f:date}/{g:silent}/{h:path}"
    kinds = {"a": str, "b": str, "c": int, "d": float, "e": UUID, "f": date, "g": None, "h": str}
    assert parameter_kinds(path) == kinds
    assert parameter_kinds("/ws") == {}


@pytest.mark.parametrize(
    ("path", "other"),
    [("/ws", "/ws"), ("/{a}", "/{b}"), ("/{a}", "/{b:str}"), ("/{a:int}/x/{b}", "/{x:int}/x/{y}")],
)
def test_paths_of_one_shape(path: str, other: str) -> None:
    assert path_shape(path) == path_shape(other)


@pytest.mark.parametrize(
    ("path", "other"),
    [("/ws", "/ws/"), ("/{a}", "/{a:int}"), ("/{a}", "/{a:path}"), ("/{a}/b", "/a/{b}"), ("/str", "/{str}")],
)
def test_paths_of_different_shapes(path: str, other: str) -> None:
    assert path_shape(path) != path_shape(other)
