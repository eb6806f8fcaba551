"""The numbers of all worker processes as one: each of them answers for all.

A worker shows what it has counted once a second, and whenever it is asked itself; nothing of it is in the path of a
message. Who takes the number of a worker that is no more goes on from what that has shown last, so no counter ever goes
back.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final, Protocol, cast

from wsdeco.observe.numbers import Histogram, Stats, numbers_of
from wsdeco.routing.endpoints import Context

__all__ = ["Place", "count_together"]

_OF_THE_MOMENT: Final = frozenset({"open", "lag", "rooms", "members"})
"""What ends with its process."""


class Place(Protocol):
    """Where a worker shows its numbers, and sees those of all.

    Attributes:
        before: What the last process has left that had this place; empty for none.
    """

    before: bytes

    def write(self, data: bytes) -> None:
        """Show these bytes from now on."""

    def read_all(self) -> list[tuple[bool, bytes]]:
        """Return whether each process lives, and what it shows or has shown last."""
        ...


def count_together(context: Context, place: Place, interval: float = 1.0) -> Callable[[], None]:
    """Let the numbers of an app be those of all workers, and return what is to be called every now and then.

    Args:
        context: What the endpoints of the app share, in this worker process.
        place: That of this worker.
        interval: Seconds between two times that the worker shows its numbers unasked.
    """
    numbers = numbers_of(context)
    before = _decode(place.before, is_alive=False)
    # Whoever calls App.stats() may be in another thread.
    lock = threading.Lock()
    shown_at = 0.0

    def show(own: Stats) -> None:
        nonlocal shown_at
        shown_at = time.monotonic()
        place.write(_encode(before + own))

    def together(own: Stats) -> Stats:
        with lock:
            show(own)
        return sum((_decode(data, is_alive=is_alive) for is_alive, data in place.read_all()), Stats())

    def tick() -> None:
        if time.monotonic() - shown_at >= interval:
            with lock:
                show(numbers.own())

    numbers.together = together
    return tick


def _encode(stats: Stats) -> bytes:
    return json.dumps({each.name: _plain(getattr(stats, each.name)) for each in fields(Stats)}).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return [value.counts, value.total]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in cast("dict[str, Any]", value).items()}
    return value


def _decode(data: bytes, *, is_alive: bool) -> Stats:
    """Return the numbers of a process; those of the moment end with it.

    A worker with the code of the moment may have another version of this package than those before it: what only one
    of them counts is left out.
    """
    stats = Stats()
    values: Mapping[str, Any] = json.loads(data) if data else {}
    for name in {each.name for each in fields(Stats)} & values.keys():
        if is_alive or name not in _OF_THE_MOMENT:
            setattr(stats, name, _rich(getattr(stats, name), values[name]))
    return stats


def _rich(empty: Any, value: Any) -> Any:
    match empty:
        case Histogram():
            return _histogram(value)
        case Counter():
            return Counter[str](value)
        case dict():
            return {name: _histogram(each) for name, each in value.items()}
        case _:
            return value


def _histogram(value: Any) -> Histogram:
    counts, total = value
    return Histogram(counts, total)
