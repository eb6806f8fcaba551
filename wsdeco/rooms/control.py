"""What is done to the members of a room in every process: closing their connections, and counting them.

Each process publishes what it wants, and what it answers, to one room that all of them are in and no connection is:
small JSON objects. Processes of an older version are not in that room, and what a newer one may say there is ignored.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from wsdeco.backplanes.interface import CONTROL
from wsdeco.channels.sink import Sink
from wsdeco.clock import Clock
from wsdeco.messages import Data
from wsdeco.reasons import BackplaneError, check_close_code, cut_close_reason

if TYPE_CHECKING:
    from wsdeco.rooms.rooms import Rooms

__all__ = ["Control", "RoomCount"]

K = TypeVar("K")
V = TypeVar("V")

_CLOSED_AT_ONCE: Final = 100
"""Connections closed in one turn of the loop, about 5 ms."""

_ANSWER_TIME: Final = 1.0
"""Seconds in which every process that is known has to answer."""

_LOOK_AGAIN: Final = 0.005
"""Seconds between two looks whether the broker is connected to."""

_LOOK_TIME: Final = 0.25
"""Seconds in which processes that are not known may answer, after a new connection to the broker."""

_FORGET_AFTER: Final = 10.0
"""Seconds after which a process that does not answer is taken for one that has been killed."""

_MAX_PROCESSES: Final = 1024
_MAX_ANSWERS: Final = 4096
"""Processes, and numbers of members that they have told, that are remembered."""

_MAX_SIZE: Final = 16 * 1024
"""Characters of what a process may say."""


class RoomCount(int):
    """How many members a room has, in all processes.

    Attributes:
        age: 0 if every process that is known has just answered. Otherwise, the seconds since the oldest answer that
            the number is made of, and infinite if a process has never told the number of its members.
    """

    age: float

    def __new__(cls, members: int, age: float = 0.0) -> Self:
        """Make a number of `members`, as it was `age` seconds ago."""
        made = super().__new__(cls, members)
        made.age = age
        return made

    @property
    def is_exact(self) -> bool:
        """Whether every process that is known has just answered."""
        return self.age == 0

    def __repr__(self) -> str:
        return f"{int(self)}" if self.is_exact else f"<{int(self)} members, {self.age:.1f} s ago>"


class _Ask:
    """A question to all processes, and what they answer."""

    def __init__(self, key: str, expected: set[str]) -> None:
        self.key = key
        self.expected = expected
        self.answers: dict[str, int] = {}
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, process: str, members: int) -> None:
        """Note an answer."""
        self.answers[process] = members
        self.expect_no_more(process)

    def expect_no_more(self, *processes: str) -> None:
        """Wait no longer for these."""
        self.expected.difference_update(processes)
        if not self.expected and not self.answered.done():
            self.answered.set_result(None)


class Control:
    """Closes and counts the members of rooms.

    Args:
        rooms: The rooms.
        raises: Whether what could not be published raises.
        clock: What the time for answers is measured by; by default the event loop.
    """

    def __init__(self, rooms: Rooms, clock: Clock | None, *, raises: bool) -> None:
        self._rooms = rooms
        self._clock = clock
        self._raises = raises
        self._name = ""
        self._processes: OrderedDict[str, float] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._asks: dict[str, _Ask] = {}
        self._looked_over: int | None = None

    # What users call.

    def close(self, key: str, code: int, reason: str) -> Awaitable[int]:
        """Return what closes the connections of a room once it is awaited: see `Room.close`."""
        return self._rooms.at_home(0, self._close, key, check_close_code(code), cut_close_reason(reason))

    async def _close(self, key: str, code: int, reason: str) -> int:
        is_published = self._say({"do": "close", "room": key, "code": code, "reason": reason})
        sinks = self._rooms.sinks(key)
        number = len([sink for sink in sinks if sink.reason is None])
        for _ in _close_some(sinks, code, reason):
            await asyncio.sleep(0)
        if self._rooms.backplane is not None:
            await self._rooms.backplane.drained()
        if not is_published and self._raises:
            raise BackplaneError(
                f"the {number} connections of the room {key!a} in this process are closed and those of no other "
                "process: the broker is not connected, or does not keep up"
            )
        return number

    def count(self, key: str) -> Awaitable[RoomCount]:
        """Return what counts the members of a room once it is awaited: see `Room.count`."""
        return self._rooms.at_home(RoomCount(0, math.inf), self._count, key)

    async def _count(self, key: str) -> RoomCount:
        backplane = self._rooms.backplane
        if backplane is None:
            return RoomCount(len(self._rooms.sinks(key)))
        clock = self._time()
        ask = _Ask(key, set(self._processes))
        name = os.urandom(8).hex()
        self._asks[name] = ask
        timers = [clock.call_at(clock.time() + _ANSWER_TIME, lambda: ask.expect_no_more(*ask.expected))]
        try:
            is_published = self._say({"do": "count", "room": key, "ask": name})
            while (  # noqa: ASYNC110 - nothing announces it
                is_published and backplane.state == "connecting" and not ask.answered.done()
            ):
                await asyncio.sleep(_LOOK_AGAIN)
            connections = backplane.counters.connections
            if self._looked_over != connections:
                # Others may have come while there was no connection, and are heard of only when they answer.
                ask.expected.add("")
                timers.append(clock.call_at(clock.time() + _LOOK_TIME, lambda: ask.expect_no_more("")))
            if is_published and backplane.state == "connected":
                ask.expect_no_more()
                await ask.answered
        finally:
            del self._asks[name]
            for timer in timers:
                timer.cancel()
        is_complete = is_published and backplane.state == "connected" and backplane.counters.connections == connections
        if is_complete:
            self._looked_over = connections
        return self._sum(ask, clock.time(), is_complete=is_complete)

    def _sum(self, ask: _Ask, now: float, *, is_complete: bool) -> RoomCount:
        total = len(self._rooms.sinks(ask.key)) + sum(ask.answers.values())
        age = 0.0 if is_complete or self._processes else math.inf
        for process in [process for process in self._processes if process not in ask.answers]:
            members, told_at = self._known.get((ask.key, process), (0, -math.inf))
            total += members
            age = max(age, now - told_at)
            if is_complete and now - self._processes[process] > _FORGET_AFTER:
                del self._processes[process]
        return RoomCount(total, age)

    # What processes tell each other.

    def begin(self) -> None:
        """Take part, in a new event loop."""
        # Not made in `__init__`: processes that were forked must not share it.
        self._name = os.urandom(8).hex()
        self._processes.clear()
        self._known.clear()
        self._looked_over = None
        backplane = self._rooms.backplane
        if backplane is not None:
            backplane.subscribe(CONTROL)
            if backplane.state != "closed":
                self._say({"do": "here"})

    def end(self) -> None:
        """Say goodbye."""
        backplane = self._rooms.backplane
        if backplane is not None and self._name and backplane.state == "connected":
            self._say({"do": "gone"})
        self._name = ""

    def _say(self, what: dict[str, object]) -> bool:
        backplane = self._rooms.backplane
        return backplane is None or backplane.publish_nowait(CONTROL, json.dumps({**what, "by": self._name}))

    def receive(self, data: Data) -> None:
        """Do what another process wants, or take its answer."""
        try:
            said: Any = json.loads(data) if len(data) <= _MAX_SIZE else None
        except (ValueError, RecursionError):
            return
        match said:
            case {"do": "close", "room": str(key), "code": int(code), "reason": str(reason)}:
                try:
                    code, reason = check_close_code(code), cut_close_reason(reason)
                except (TypeError, ValueError):
                    return
                _go_on(_close_some(self._rooms.sinks(key), code, reason))
            case {"do": "count", "room": str(key), "ask": str(name), "by": str(process)}:
                self._hear_of(process)
                self._say({"do": "counted", "ask": name, "members": len(self._rooms.sinks(key))})
            case {"do": "counted", "ask": str(name), "members": int(members), "by": str(process)} if members >= 0:
                self._hear_of(process)
                ask = self._asks.get(name)
                if ask is not None:
                    _remember(self._known, (ask.key, process), (members, self._time().time()), _MAX_ANSWERS)
                    ask.take(process, members)
            case {"do": "here", "by": str(process)}:
                self._hear_of(process)
            case {"do": "gone", "by": str(process)}:
                self._processes.pop(process, None)
                for waiting in tuple(self._asks.values()):
                    waiting.expect_no_more(process)
            case _:
                # A later version may say more.
                return

    def _hear_of(self, process: str) -> None:
        _remember(self._processes, process, self._time().time(), _MAX_PROCESSES)

    def _time(self) -> Clock:
        return self._clock or asyncio.get_running_loop()


def _remember(known: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)


def _close_some(sinks: list[Sink], code: int, reason: str) -> Iterator[None]:
    for number, sink in enumerate(sinks, 1):
        sink.close_nowait(code, reason)
        if number % _CLOSED_AT_ONCE == 0:
            yield


def _go_on(closing: Iterator[None]) -> None:
    # A callback, since nobody would await a task.
    if next(closing, _go_on) is not _go_on:
        asyncio.get_running_loop().call_soon(_go_on, closing)
