"""What type-checks in typing_examples.py also runs, and what is refused there is refused at runtime too."""

import inspect
from collections.abc import Callable
from typing import get_args

import pytest

from tests.unit import typing_examples
from wsdeco import DisconnectReason, HandlerError, RouteError, Unknown
from wsdeco.testing import connect


@pytest.mark.parametrize(
    ("path", "sent", "replies"),
    [
        ("/plain", "x", ["Welcome, 127.0.0.1:50000!", "1 x"]),
        ("/strict", "x", ["x"]),
        ("/limits/blue", b"x", [b"x"]),
        ("/rooms/blue/7", "a b", ["blue/7: a", "blue/7: b"]),
        ("/numbers", "007", ["7"]),
        ("/base/text", "x", ["127.0.0.1:50000: x"]),
        ("/base/binary", b"abc", [b"cba"]),
        ("/base/both", b"x", [b"x"]),
        ("/base/stream", "ab", ["a", "b"]),
        ("/object", "x", ["Welcome, 127.0.0.1:50000!", "1 x"]),
        ("/lambda", "x", ["Welcome, 127.0.0.1:50000!", "1 x"]),
        ("/config", "x", ["Welcome, 127.0.0.1:50000!", "1 x"]),
        ("/page", "x", ["Welcome, 127.0.0.1:50000!", "1 x"]),
    ],
)
async def test_examples_run(path: str, sent: str | bytes, replies: list[str | bytes]) -> None:
    async with connect(typing_examples.app, path) as client:
        await client.send(sent)
        assert [await client.receive() for _ in replies] == replies
        await client.close()


@pytest.mark.parametrize("path", ["/class", "/object", "/lambda", "/endpoint", "/live/plain"])
async def test_examples_in_starlette_run(path: str) -> None:
    async with connect(typing_examples.starlette, path) as client:
        await client.send("x")
        await client.expect("Welcome, 127.0.0.1:50000!")
        await client.expect("1 x")


def test_every_reason_is_explained() -> None:
    assert [typing_examples.explain(Unknown())] == ["lost"]
    assert len(get_args(DisconnectReason)) == 4


def negative_examples() -> list[Callable[[], None]]:
    """Return the functions that hold what the checkers must refuse: those whose names begin with an article."""
    found = inspect.getmembers(typing_examples, inspect.isfunction)
    return [
        function for name, function in found if name.startswith(("a_", "an_")) and not function.__code__.co_argcount
    ]


@pytest.mark.parametrize("negative", negative_examples())
def test_what_the_checkers_refuse_is_refused_at_runtime(negative: Callable[[], None]) -> None:
    with pytest.raises((HandlerError, RouteError, TypeError, ValueError)):
        negative()
