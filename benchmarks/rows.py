"""The rows: what is done with a server that listens, and which numbers come out."""

from collections.abc import Mapping
from typing import Final

from benchmarks.client import (
    abort_connections,
    check_echo,
    close_connections,
    closed_loop,
    exchange_once,
    fan_out,
    open_connections,
    open_loop,
)
from benchmarks.loads import MICROSECONDS, SETUP_TIME, Effort, Row, load
from benchmarks.results import Figure, percentile
from benchmarks.servers import RunningServer
from benchmarks.sizes import SIZE_ROWS
from benchmarks.wire import NotOffered, make_message

CONNECTIONS: Final = 32
"""Connections of every row that does not say otherwise."""

MEMBERS: Final = 1_000
"""Connections in the room of the rows that fan out."""

CROWD: Final = 100_000
"""Idle connections that one process is to hold."""

CROWD_TIME: Final = 300.0
"""Seconds that opening the crowd may take."""

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def echo_row(name: str, title: str, size: int, depth: int, *, compression: bool = False) -> Row:
    """Return a row that echoes messages of `size` bytes, `depth` of them in flight per connection."""

    def measure(running: RunningServer, effort: Effort) -> Mapping[str, float]:
        message = make_message(size, compressed=compression)
        traffic, used = load(
            running, CONNECTIONS, message, depth=depth, seconds=effort.seconds, compression=compression
        )
        return {
            f"{name}.cpu": used / traffic.messages * MICROSECONDS,
            f"{name}.messages_per_second": traffic.messages / traffic.seconds,
            f"{name}.server_busy": used / traffic.seconds,
            f"{name}.client_busy": traffic.client_cpu / traffic.seconds,
        }

    figure = Figure(f"{name}.cpu", title, "µs CPU per message")
    return Row(name, "Echo", (figure,), measure, fresh=compression, compression=compression)


def measure_idle(running: RunningServer, effort: Effort) -> Mapping[str, float]:
    """Open connections that do nothing; then let each echo one message."""
    message = make_message(64)
    count = effort.idle_connections
    # What a server does once, at its first connection, belongs to none of those that are counted.
    first = open_connections(running.port, CONNECTIONS)
    exchange_once(first, message)
    running.settle()
    opened = list(first)
    try:
        before, memory = running.cpu_seconds(), running.resident_bytes()
        opened += open_connections(running.port, count, within=SETUP_TIME)
        running.settle()
        used, idle = running.cpu_seconds() - before, running.resident_bytes() - memory
        exchange_once(opened[len(first) :], message)
        running.settle()
        messaged = running.resident_bytes() - memory
    finally:
        abort_connections(opened)
    return {
        "idle.handshake": used / count * MICROSECONDS,
        "idle.memory": idle / count / 1024,
        "idle.memory_after_message": messaged / count / 1024,
    }


def measure_growth(running: RunningServer, effort: Effort) -> Mapping[str, float]:
    """Echo with one message in flight on each of more and more connections."""
    message = make_message(64)
    costs: dict[str, float] = {}
    for level in effort.levels:
        # Each connection has at least a few turns, however many there are.
        seconds = effort.seconds * max(1.0, level / 5_000)
        traffic, used = load(running, level, message, depth=1, seconds=seconds)
        costs[f"growth.{level}"] = used / traffic.messages * MICROSECONDS
    least, most = GROWTH_LEVELS[0], GROWTH_LEVELS[-1]
    if {least, most} <= set(effort.levels):
        costs["growth.factor"] = costs[f"growth.{most}"] / costs[f"growth.{least}"]
    return costs


def measure_latency(running: RunningServer, effort: Effort) -> Mapping[str, float]:
    """Find out what the server can do, then send half as much per second and take the latencies."""
    message = make_message(64)
    opened = open_connections(running.port, CONNECTIONS)
    try:
        check_echo(opened[0], message)
        closed_loop(opened, message, depth=1, seconds=effort.seconds / 4)
        capacity = closed_loop(opened, message, depth=1, seconds=effort.seconds / 2)
        rate = capacity.messages / capacity.seconds / 2
        latencies = open_loop(opened, message, rate=rate, seconds=effort.latency_seconds, spin=effort.spin)
        close_connections(opened)
    finally:
        abort_connections(opened)
    running.settle()
    found = {f"latency.{name}": percentile(latencies, share) * MICROSECONDS for name, share in PERCENTILES.items()}
    return found | {"latency.rate": rate}


def fan_out_row(name: str, title: str, window: int) -> Row:
    """Return a row that broadcasts to a room, `window` messages at a time on their way."""

    def measure(running: RunningServer, effort: Effort) -> Mapping[str, float]:
        message = make_message(64)
        members = open_connections(running.port, MEMBERS, "/room", within=SETUP_TIME)
        try:
            fan_out(members, message, window=window, seconds=effort.seconds / 4)
            before = running.cpu_seconds()
            traffic = fan_out(members, message, window=window, seconds=effort.seconds)
            used = running.cpu_seconds() - before
        finally:
            abort_connections(members)
        running.settle()
        return {
            f"{name}.cpu": used / traffic.messages * MICROSECONDS,
            f"{name}.deliveries_per_second": traffic.messages / traffic.seconds,
        }

    figure = Figure(f"{name}.cpu", title, "µs CPU per delivery")
    return Row(name, f"Fan-out to a room of {MEMBERS:,}", (figure,), measure, room=True)


def measure_crowd(running: RunningServer, effort: Effort) -> Mapping[str, float]:
    """Hold as many idle connections as there are to be, and broadcast to all of them."""
    if not effort.crowd:
        raise NotOffered("not with --quick, or the limit of file descriptors is too low")
    message = make_message(64)
    before = running.resident_bytes()
    members = open_connections(running.port, effort.crowd, "/room", within=CROWD_TIME)
    try:
        running.settle()
        held = running.resident_bytes() - before
        used = running.cpu_seconds()
        traffic = fan_out(members, message, window=1, seconds=effort.seconds)
        used = running.cpu_seconds() - used
    finally:
        abort_connections(members)
    return {
        "crowd.lost": float(CROWD - len(members)),
        "crowd.memory": held / len(members) / 1024,
        "crowd.delivery": used / traffic.messages * MICROSECONDS,
    }


GROWTH_LEVELS: Final = (32, 1_000, 10_000)

ROWS: Final[tuple[Row, ...]] = (
    echo_row("echo-64-d1", "64 B, 1 in flight", 64, 1),
    echo_row("echo-64-d16", "64 B, 16 in flight", 64, 16),
    echo_row("echo-1k", "1 KiB, 1 in flight", 1024, 1),
    echo_row("echo-16k", "16 KiB, 1 in flight", 16 * 1024, 1),
    echo_row("echo-1m", "1 MiB, 1 in flight", 1024 * 1024, 1),
    echo_row("deflate-1k", "1 KiB, permessage-deflate", 1024, 1, compression=True),
    Row(
        "latency",
        "Latency at half load",
        (
            Figure("latency.rate", "half load", "messages per second", compared=False, pictured=False),
            Figure("latency.p50", "50 %", "µs", compared=False),
            Figure("latency.p90", "90 %", "µs", compared=False, pictured=False),
            Figure("latency.p99", "99 %", "µs", compared=False),
            Figure("latency.p99.9", "99.9 %", "µs", compared=False),
        ),
        measure_latency,
    ),
    Row(
        "growth",
        "As connections grow",
        (
            *(Figure(f"growth.{level}", f"{level:,} connections", "µs CPU per message") for level in GROWTH_LEVELS),
            Figure("growth.factor", "10,000 ÷ 32 connections", "times", compared=False, pictured=False),
        ),
        measure_growth,
    ),
    Row(
        "idle",
        "Connections",
        (
            Figure("idle.handshake", "handshake", "µs CPU"),
            Figure("idle.memory", "memory, idle", "KiB resident"),
            Figure("idle.memory_after_message", "memory after one message", "KiB resident"),
        ),
        measure_idle,
        fresh=True,
    ),
    *SIZE_ROWS,
    fan_out_row("fan-out-1", "1 broadcast at a time", 1),
    fan_out_row("fan-out-8", "8 broadcasts at a time", 8),
    Row(
        "crowd",
        f"{CROWD:,} idle connections in one process",
        (
            Figure("crowd.lost", "connections lost", "connections", compared=False, pictured=False),
            Figure("crowd.memory", "memory, idle", "KiB resident", compared=False, pictured=False),
            Figure("crowd.delivery", "broadcast to all", "µs CPU per delivery", compared=False, pictured=False),
        ),
        measure_crowd,
        fresh=True,
        room=True,
        servers=("wsdeco-direct",),
    ),
)

FIGURES: Final = tuple(figure for row in ROWS for figure in row.figures)
