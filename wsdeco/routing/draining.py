"""What comes before the shutdown of an app: it says that it closes, warns, and tells its clients one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from operator import call
from typing import Final, TypeAlias

from wsdeco.clock import Clock, sleep, whole_seconds
from wsdeco.routing.endpoints import Context
from wsdeco.routing.lifespan import WarningFunction

__all__ = ["Draining"]

logger: Final = logging.getLogger("wsdeco")

Warn: TypeAlias = Callable[[WarningFunction], Awaitable[object]]
"""Calls such a function, or sees to it that another process does."""

_WARNING: Final = 5.0
"""Seconds that the function may take beyond the delay of the drain."""


class Draining:
    """Drains the connections of one app.

    Args:
        context: What the endpoints of the app share.

    Attributes:
        on_drain: Called first; `None` for nothing.
        has_begun: Whether it has, since the app was served last.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.on_drain: WarningFunction | None = None
        self.has_begun: bool = False

    def time(self, seconds: float, delay: float) -> float:
        """Return the time that `run` takes at most."""
        return seconds + delay + (0.0 if self.on_drain is None else _WARNING)

    async def run(self, seconds: float, delay: float, *, is_replaced: bool = False, warn: Warn = call) -> None:
        """Refuse handshakes, wait for `delay`, then close the connections evenly over `seconds`.

        Args:
            seconds: How long that takes.
            delay: Seconds before it.
            is_replaced: Another process takes the clients already. Handshakes that have reached this one are served, as
                nobody else can answer them, and clients may come back at once. Nobody is warned: the app goes on.
            warn: Calls the function under `on_drain`, or sees to it that it is called.
        """
        self.has_begun = True
        connections = self._context.connections
        if not is_replaced:
            connections.closing = True
            connections.retry_after = whole_seconds(seconds + delay)
        loop = asyncio.get_running_loop()
        clock = self._context.clock or loop
        warning = None
        if self.on_drain is not None and not is_replaced:
            warning = loop.create_task(_warn(warn, self.on_drain))
        if delay:
            await sleep(clock, delay)
        if warning is not None:
            await _end(warning, clock)
        if seconds:
            # The first client comes back when the last one is told, so the returns are spread as far.
            retry = 1 if is_replaced else whole_seconds(seconds)
            await connections.drain(clock, seconds, f"service restart; retry={retry}")


async def _warn(warn: Warn, function: WarningFunction) -> None:
    try:
        await warn(function)
    except Exception:
        logger.exception("on_drain failed")


async def _end(warning: asyncio.Task[None], clock: Clock) -> None:
    late = asyncio.create_task(sleep(clock, _WARNING))
    await asyncio.wait((warning, late), return_when=asyncio.FIRST_COMPLETED)
    late.cancel()
    if not warning.done():
        logger.error("on_drain has not ended within %g s and is cancelled", _WARNING)
        warning.cancel()
