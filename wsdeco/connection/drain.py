"""Clients that are told to leave one after the other, so that they do not all come back at once."""

from __future__ import annotations

import math
import random
from typing import Final

from wsdeco.clock import Clock, sleep
from wsdeco.connection.live import LiveConnections

__all__ = ["drain", "whole_seconds"]

_RANDOM: Final = random.Random()  # noqa: S311 - an order, no secret
"""Not the generator of the module: a program that seeds that one would have all its processes drain in one order."""


async def drain(connections: LiveConnections, clock: Clock, seconds: float, text: str) -> None:
    """Close the connections of this moment with 1012, in random order, evenly over `seconds`.

    Each has the share of one connection in the time for itself, and is told at a random moment in it. Connections that
    begin later are left alone. Returns when the last one has been told, which may be before the time is over.

    Args:
        connections: The connections.
        clock: The clock that the time is of.
        seconds: The time.
        text: The reason that goes with the code.
    """
    order = connections.all()
    _RANDOM.shuffle(order)
    share = seconds / max(1, len(order))
    begun = clock.time()
    for place, connection in enumerate(order):
        left = begun + (place + _RANDOM.random()) * share - clock.time()
        # A connection that has left by itself needs no wait.
        if left > 0 and connection in connections:
            await sleep(clock, left)
        if connection in connections:
            connection.shut_down(text)


def whole_seconds(seconds: float) -> int:
    """Return `seconds` as header fields have them (RFC 9110, section 10.2.3): whole, and 1 at least."""
    return max(1, math.ceil(seconds))
