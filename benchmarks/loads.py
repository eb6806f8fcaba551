"""What every row is made of: how much is done, what is measured, and a load of echoes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from benchmarks.client import (
    Traffic,
    abort_connections,
    check_echo,
    close_connections,
    closed_loop,
    open_connections,
)
from benchmarks.results import Figure
from benchmarks.servers import RunningServer
from benchmarks.wire import Message

MICROSECONDS: Final = 1e6

SETUP_TIME: Final = 120.0
"""Seconds that opening the connections of a row may take."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for each number.

    Attributes:
        rounds: How often everything is measured.
        seconds: Length of a load.
        latency_seconds: Length of the load whose latencies are taken.
        idle_connections: Connections whose memory is measured.
        levels: Numbers of connections for the cost as they grow.
        spin: The client has a core of its own.
        crowd: Idle connections that one process is to hold; 0 leaves it out.
    """

    rounds: int
    seconds: float
    latency_seconds: float
    idle_connections: int
    levels: tuple[int, ...]
    spin: bool = True
    crowd: int = 0


Measure: TypeAlias = Callable[[RunningServer, Effort], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is done with every server.

    Attributes:
        name: What it is called on the command line.
        section: The table it belongs to.
        figures: The numbers it gives, as tables show them.
        measure: Does it, and returns its numbers by the keys of the figures; what tables do not show may be added.
        fresh: It needs a server that has done nothing yet.
        compression: It needs a server that agrees to permessage-deflate.
        room: It needs a server that broadcasts what comes in on `/room` to all connections there.
        servers: It is for these alone; for all, if there are none.
    """

    name: str
    section: str
    figures: tuple[Figure, ...]
    measure: Measure
    fresh: bool = False
    compression: bool = False
    room: bool = False
    servers: tuple[str, ...] = ()


def load(
    running: RunningServer,
    connections: int,
    message: Message,
    *,
    depth: int,
    seconds: float,
    compression: bool = False,
    path: str = "/ws",
) -> tuple[Traffic, float]:
    """Open connections, warm up, and return the traffic of a load with the CPU seconds the server used for it."""
    opened = open_connections(running.port, connections, path, compression=compression, within=SETUP_TIME)
    try:
        check_echo(opened[0], message)
        closed_loop(opened, message, depth=depth, seconds=seconds / 4)
        before = running.cpu_seconds()
        traffic = closed_loop(opened, message, depth=depth, seconds=seconds)
        used = running.cpu_seconds() - before
        close_connections(opened)
    finally:
        abort_connections(opened)
    running.settle()
    return traffic, used
