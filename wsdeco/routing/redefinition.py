"""A handler class that is defined anew, by a cell that runs again or a reloaded module, while connections of it live.

Their instances become instances of the new class: Python lets `__class__` be set if the layout of both is the same.
"""

from __future__ import annotations

import inspect
import logging
from asyncio import AbstractEventLoop
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from wsdeco.clock import running_loop
from wsdeco.connection.lifecycle import Lifecycle
from wsdeco.connection.live import LiveConnections
from wsdeco.definition.base import source_of
from wsdeco.definition.factory import generated_from
from wsdeco.routing.announcements import is_interactive
from wsdeco.routing.endpoints import HandlerEndpoint

__all__ = ["PATIENCE", "redefine"]

logger: Final = logging.getLogger("wsdeco")

PATIENCE: Final = 1.0
"""Seconds for the event loop of the connections, which a hook may block."""


def redefine(connections: LiveConnections, endpoint: HandlerEndpoint, old: type, new: type) -> None:
    """Let the instances of `old` that serve connections of a route become instances of `new`; say how many have.

    Returns when the next message of each runs the new code, unless their event loop is busy for longer than a second.

    Args:
        connections: All that live.
        endpoint: What serves the route from now on.
        old: The class before.
        new: The class of the same name that has taken its place.
    """
    change = _Change(old, new, generated_from(new))
    by_loop: dict[AbstractEventLoop, list[Lifecycle]] = {}
    for each in connections.all():
        if each.channel.route_room is endpoint.room and change.concerns(each.handler):
            by_loop.setdefault(each.channel.loop, []).append(each)
    lines = [_exchange_in(loop, change, each) for loop, each in by_loop.items()]
    for line in lines:
        if is_interactive():
            # A cell shows it; a log below "warning" does not show in a notebook.
            print(f"{endpoint.__name__}: {line}", flush=True)  # noqa: T201 - as the banner
        else:
            logger.info("%s: %s", endpoint.__name__, line)


@dataclass(frozen=True)
class _Change:
    old: type
    new: type
    generated: type | None

    def concerns(self, handler: object) -> bool:
        return source_of(type(handler)) is self.old

    def exchange(self, handler: object) -> str | None:
        """Give an instance its new class; return what keeps it from that, if something does."""
        kind = self.new if type(handler) is self.old else self.generated
        if kind is None or inspect.isabstract(kind):
            return "the new class is made by a factory"
        try:
            # A frozen dataclass refuses plain assignment.
            object.__setattr__(handler, "__class__", kind)
        except TypeError as exc:
            return str(exc)
        return None


def _exchange_in(loop: AbstractEventLoop, change: _Change, connections: Iterable[Lifecycle]) -> str:
    if loop is running_loop():
        return _exchange(change, connections)
    done: Future[str] = Future()
    try:
        loop.call_soon_threadsafe(lambda: done.set_result(_exchange(change, connections)))
        return done.result(PATIENCE)
    except (RuntimeError, TimeoutError):
        # Closed since it was asked, or busy.
        return "its connections run the new code as soon as their event loop is free"


def _exchange(change: _Change, connections: Iterable[Lifecycle]) -> str:
    changed, faults = 0, list[str]()
    # Some may have ended meanwhile.
    for each in [each for each in connections if change.concerns(each.handler)]:
        fault = change.exchange(each.handler)
        if fault is None:
            each.redefined()
            changed += 1
        else:
            faults.append(fault)
    line = f"{_counted(changed, 'run')} the new code"
    return f"{line}, {_counted(len(faults), 'keep')} the old: {faults[0]}" if faults else line


def _counted(number: int, verb: str) -> str:
    return f"{number} connection {verb}s" if number == 1 else f"{number} connections {verb}"
