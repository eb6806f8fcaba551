"""What a value that somebody has written may be: each check returns it as it is kept, or says what to write.

All of them take the name of the option, which their error begins with. A wrong type raises `TypeError`, a value out of
its range `ValueError`.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Any, Literal, TypeAlias, cast, get_args

from wsdeco.origins import parse_origin
from wsdeco.tokens import is_token

__all__ = [
    "Check",
    "count",
    "flag",
    "function_of_request",
    "nearest",
    "one_of",
    "origins",
    "positive",
    "seconds",
    "subprotocol_names",
    "texts",
    "within",
    "wrong_type",
]

Check: TypeAlias = Callable[[str, Any], object]
"""Takes the name of an option and its value; returns the value as it is kept."""


def nearest(name: str, known: Iterable[str], similarity: float = 0.6) -> str | None:
    """Return which of the `known` names was probably meant by `name`; `None` if it is `similarity` of none."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, similarity)), None)


def wrong_type(name: str, expected: str, value: object) -> TypeError:
    """Return the error that says what a value has to be, and what it is."""
    return TypeError(f"{name} must be {expected}, not {type(value).__name__}: {value!r}")


def seconds(name: str, value: object, *, is_positive: bool = False) -> float:
    """Return a duration in seconds, which is not 0 if it has to be positive."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type(name, "seconds (a number) or a timedelta", value)
    if not 0 <= value <= sys.float_info.max or (is_positive and value == 0):
        least = "more than 0" if is_positive else "0 or more"
        raise ValueError(f"{name} must be {least} seconds and finite, not {value!r}")
    return float(value)


def positive(name: str, value: object) -> float:
    """Return a duration in seconds that is not 0."""
    return seconds(name, value, is_positive=True)


def count(name: str, value: object) -> int:
    """Return a number of 1 or more."""
    return within(name, value, 1)


def within(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a number from `least` on, and up to `most`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an int", value)
    if value < least or (most is not None and value > most):
        expected = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} must be {expected}, not {value!r}")
    return value


def one_of(choices: object) -> Check:
    """Return the check for the texts of a `Literal`."""
    texts: tuple[str, ...] = get_args(choices)

    def check(name: str, value: object) -> str:
        if isinstance(value, str) and value in texts:
            # An enumeration of `str` is kept as its text.
            return texts[texts.index(value)]
        fault = ValueError if isinstance(value, str) else TypeError
        raise fault(f"{name} must be {' or '.join(map(repr, texts))}, not {value!r}")

    return check


def flag(name: str, value: object) -> bool:
    """Return a `bool`."""
    if not isinstance(value, bool):
        raise wrong_type(name, "True or False", value)
    return value


def function_of_request(name: str, value: object) -> object:
    """Return a function that can be called without `await`."""
    if not callable(value) or inspect.iscoroutinefunction(value):
        found = "an async function" if callable(value) else f"{type(value).__name__}: {value!r}"
        raise TypeError(
            f"{name} must be a plain function of the request, such as lambda request: request.cookies['user'], not "
            f"{found}"
        )
    return value


def texts(name: str, value: object, example: str) -> tuple[str, ...]:
    """Return a list of `str`; `example` is one of them."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of strings such as [{example!r}], not {value!r}")
    found: list[str] = []
    for item in cast("Iterable[object]", value):
        if not isinstance(item, str):
            raise TypeError(f"{name} must hold strings such as {example!r}, not {type(item).__name__}: {item!r}")
        found.append(item)
    return tuple(found)


def origins(name: str, value: object) -> Literal["*"] | tuple[str, ...]:
    """Return web origins, or `"*"` for every one."""
    if value == "*":
        return "*"
    found = texts(name, value, "https://example.com")
    for origin in found:
        if origin not in ("*", "null") and parse_origin(origin) is None:
            raise ValueError(
                f"{name} holds {origin!r}, which is not an origin (RFC 6454): "
                "write scheme, host and port alone, such as 'https://example.com'"
            )
    # Starlette's CORS middleware takes the same.
    return "*" if "*" in found else found


def subprotocol_names(name: str, value: object) -> tuple[str, ...]:
    """Return subprotocols in the order of preference."""
    if isinstance(value, AbstractSet):
        raise TypeError(f"{name} must be a list, as the preferred one comes first, not a set: {value!r}")
    found = texts(name, value, "chat.v1")
    for each in found:
        if not is_token(each):
            raise ValueError(
                f"{name} holds {each!r}, which is not a token (RFC 9110, section 5.6.2): write a name such as 'chat.v1'"
            )
    if len(set(found)) != len(found):
        raise ValueError(f"{name} must name each one once, not {list(found)!r}")
    return found
