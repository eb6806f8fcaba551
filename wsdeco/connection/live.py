"""All connections of an app that live, to be told to leave: one after the other, and at shutdown."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import Final

from wsdeco.clock import Clock, sleep
from wsdeco.connection.admission import Ticket
from wsdeco.connection.lifecycle import Lifecycle

__all__ = ["LiveConnections"]

_AT_ONCE: Final = 64
"""Connections that are closed in one turn of the loop. About 3 ms."""

_RANDOM: Final = random.Random()  # noqa: S311 - an order, no secret
"""Not the generator of the module: a program that seeds that one would have all its processes drain in one order."""

logger: Final = logging.getLogger("wsdeco")


class LiveConnections:
    """The live connections of an app.

    Attributes:
        closing_time: Seconds that peers get for their side of the closing handshake at the end; by default the
            `close_timeout` of each.
        closing: Whether the app shuts down, so that no connection may be added.
        retry_after: Seconds after which somebody who is refused meanwhile may try again.
    """

    def __init__(self) -> None:
        self._live: dict[Lifecycle, Ticket | None] = {}
        # What is given up at the end keeps its ticket until its hooks have ended.
        self._given_up: dict[Lifecycle, Ticket | None] = {}
        self._waiters: set[asyncio.Event] = set()
        self.closing: bool = False
        self.closing_time: float | None = None
        self.retry_after: int = 1

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._live)

    def add(self, connection: Lifecycle, ticket: Ticket | None) -> None:
        """Take in a connection that begins, and what it holds as long as it lives, if anything."""
        self._live[connection] = ticket

    def discard(self, connection: Lifecycle) -> None:
        """Let go of a connection about which everything has ended, and give its ticket back."""
        ticket = (self._live if connection in self._live else self._given_up).pop(connection)
        if not self._live:
            for gone in self._waiters:
                gone.set()
        if ticket is not None:
            ticket.give_back()

    def all(self) -> list[Lifecycle]:
        """Return those of this moment."""
        return list(self._live)

    def open(self) -> None:
        """Let connections in (again)."""
        self.closing = False
        self.retry_after = 1

    @property
    def shutdown_time(self) -> float:
        """Seconds that `shut_down` takes at most, as of now; any thread may ask."""
        return max((connection.shutdown_time for connection in tuple(self._live)), default=0.0)

    async def drain(self, clock: Clock, seconds: float, text: str) -> None:
        """Close the connections of this moment with 1012, in random order, evenly over `seconds`.

        So they do not all come back at once. Each has the share of one connection in the time for itself, and is told
        at a random moment in it. Connections that begin later are left alone. Returns when the last one has been told,
        which may be before the time is over.

        Args:
            clock: The clock that the time is of.
            seconds: The time.
            text: The reason that goes with the code.
        """
        order = self.all()
        _RANDOM.shuffle(order)
        share = seconds / max(1, len(order))
        begun = clock.time()
        for place, connection in enumerate(order):
            left = begun + (place + _RANDOM.random()) * share - clock.time()
            # A connection that has left by itself needs no wait.
            if left > 0 and connection in self._live:
                await sleep(clock, left)
            if connection in self._live:
                connection.shut_down(text)

    async def shut_down(self) -> None:
        """Close every connection with 1012, let no new one in, and wait until all have ended.

        Each of them is bounded by its `close_timeout`; one whose hook ignores its cancellation is given up.
        """
        self.closing = True
        for number, connection in enumerate(self.all()):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            connection.shut_down()
            if self.closing_time is not None:
                connection.limit_closing(self.closing_time)
        gone = asyncio.Event()
        self._waiters.add(gone)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.shutdown_time):
                    while self._live:
                        gone.clear()
                        await gone.wait()
        finally:
            self._waiters.discard(gone)
        if self._live:
            logger.error("shutdown goes on without %d connections: their hooks ignore cancellation", len(self._live))
            self._given_up |= self._live
            self._live.clear()
