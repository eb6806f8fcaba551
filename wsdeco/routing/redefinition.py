"""A handler class that is defined anew, by a cell that runs again or a reloaded module, while connections of it live.

Their instances become instances of the new class: Python lets `__class__` be set if the layout of both is the same.
"""

from __future__ import annotations

import inspect
import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
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
    by_loop: dict[AbstractEventLoop, list[Lifecycle]] = {}
    for each in connections.all():
        if each.channel.route_room is endpoint.room and _is_made_from(old, each.handler):
            by_loop.setdefault(each.channel.loop, []).append(each)
    for loop, found in by_loop.items():
        line = _called_in(loop, partial(_exchange, found, old, new))
        if is_interactive():
            # A cell shows it; a log below "warning" does not show in a notebook.
            print(f"{endpoint.__name__}: {line}", flush=True)  # noqa: T201 - as the banner
        else:
            logger.info("%s: %s", endpoint.__name__, line)


def _called_in(loop: AbstractEventLoop, exchange: Callable[[], str]) -> str:
    if loop is running_loop():
        return exchange()
    done: Future[str] = Future()
    try:
        loop.call_soon_threadsafe(lambda: done.set_result(exchange()))
        return done.result(PATIENCE)
    except (RuntimeError, TimeoutError):
        # Closed since it was asked, or busy.
        return "its connections run the new code as soon as their event loop is free"


def _exchange(connections: Iterable[Lifecycle], old: type, new: type) -> str:
    changed, faults = 0, list[str]()
    # Some may have ended meanwhile.
    for each in [each for each in connections if _is_made_from(old, each.handler)]:
        fault = _fault_of_change(each.handler, old, new)
        if fault is None:
            each.redefined()
            changed += 1
        else:
            faults.append(fault)
    line = f"{_counted(changed, 'run')} the new code"
    return f"{line}, {_counted(len(faults), 'keep')} the old: {faults[0]}" if faults else line


def _is_made_from(cls: type, handler: object) -> bool:
    return source_of(type(handler)) is cls


def _fault_of_change(handler: object, old: type, new: type) -> str | None:
    """Give an instance of `old` its new class; return what keeps it from that, if something does."""
    kind = new if type(handler) is old else generated_from(new)
    if kind is None or inspect.isabstract(kind):
        return "the new class is made by a factory"
    try:
        # A frozen dataclass refuses plain assignment.
        object.__setattr__(handler, "__class__", kind)
    except TypeError as exc:
        return str(exc)
    return None


def _counted(number: int, verb: str) -> str:
    return f"{number} connection {verb}s" if number == 1 else f"{number} connections {verb}"
