"""Rates as one writes them: `"20/s"`, `"600/min"`, `"1MiB/s"`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from wsdeco.values import wrong_type

__all__ = ["Pace", "pace_of", "rate_of_bytes", "rate_of_messages"]

_RATE: Final = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)\s*/\s*([A-Za-z]+)\s*", re.ASCII)

_SECONDS: Final = {
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
}

_BYTES: Final = {
    "B": 1.0,
    "kB": 1e3,
    "KB": 1e3,
    "KiB": 1024.0,
    "MB": 1e6,
    "MiB": 1024.0**2,
    "GB": 1e9,
    "GiB": 1024.0**3,
}


class Pace(NamedTuple):
    """What a rate means in time.

    Attributes:
        each: Seconds that one message, or one byte, takes.
        burst: Seconds of silence after which as much as ever may come at once.
    """

    each: float
    burst: float


@lru_cache(maxsize=256)
def pace_of(rate: str, burst: int | None = None) -> Pace:
    """Return the pace of a rate that has been checked.

    Args:
        rate: The rate.
        burst: Messages or bytes that may come at once; by default as many as the number in the rate.
    """
    amount, seconds = _parsed(rate)
    each = seconds / amount
    return Pace(each, seconds if burst is None else burst * each)


def _parsed(rate: str) -> tuple[float, float]:
    """Return how many messages or bytes, in how many seconds; of 0 if it is no rate."""
    found = _RATE.fullmatch(rate)
    if found is None:
        return 0.0, 0.0
    factor = _BYTES.get(found[2], 0.0) if found[2] else 1.0
    return float(found[1]) * factor, _SECONDS.get(found[3], 0.0)


def rate_of_messages(name: str, value: object) -> str:
    """Return a rate of messages as it is.

    Raises:
        TypeError: It is no text.
        ValueError: It is no rate of messages.
    """
    return _checked(name, value, '"20/s" or "600/min"', has_unit=False)


def rate_of_bytes(name: str, value: object) -> str:
    """Return a rate of bytes as it is.

    Raises:
        TypeError: It is no text.
        ValueError: It is no rate of bytes.
    """
    return _checked(name, value, '"64KiB/s" or "1MiB/s"', has_unit=True)


def _checked(name: str, value: object, examples: str, *, has_unit: bool) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, f"a rate such as {examples}", value)
    amount, seconds = _parsed(value)
    # A burst of less than one message or byte lets nothing in.
    if amount < 1 or not seconds or ("B" in value) is not has_unit:
        raise ValueError(f"{name} must be a rate of 1 or more per s, min or h, such as {examples}, not {value!r}")
    return value
