"""The rows by size: every kind of message from 64 B to 16 MiB, fragments, and large broadcasts."""

from collections.abc import Mapping
from typing import Final

from benchmarks.client import abort_connections, fan_out, open_connections
from benchmarks.loads import MICROSECONDS, SETUP_TIME, Effort, Row, load
from benchmarks.results import Figure
from benchmarks.servers import RunningServer
from benchmarks.wire import Payload, answered_with_length, make_message

KIB: Final = 1024
MIB: Final = 1024 * KIB

SIZES: Final = {"64": 64, "1k": KIB, "16k": 16 * KIB, "256k": 256 * KIB, "4m": 4 * MIB, "16m": 16 * MIB}
"""By powers of 16, and the largest message that servers take without being told."""

BETWEEN: Final = {"64k": 64 * KIB, "128k": 128 * KIB, "1m": MIB}
"""Where a server takes another way: past one read, and past one buffer of the kernel."""

KINDS: Final = {
    "text": (Payload.ASCII, False),
    "beyond": (Payload.BEYOND_ASCII, False),
    "binary": (Payload.BINARY, False),
    "compressed": (Payload.ASCII, True),
    "compressed-beyond": (Payload.BEYOND_ASCII, True),
}
"""What messages are made of, and whether they are compressed."""

COMPARED: Final = ("wsdeco-direct", "wsdeco-compiled", "wsdeco-asgi", "starlette", "websockets", "aiohttp", "picows")
"""The servers that are measured by size."""

ASSEMBLING: Final = ("wsdeco-direct", "wsdeco-compiled", "wsdeco-asgi", "starlette", "websockets")
"""Those of them with a place that answers with the length of what has come."""

BYTES_IN_FLIGHT: Final = 4 * MIB
"""What all connections of a row send at a time, in bytes: caches and buffers see the same however long a message is."""

LEAST_CONNECTIONS: Final = 4
MOST_CONNECTIONS: Final = 32


def connections_for(size: int) -> int:
    """Return how many connections send messages of `size` bytes."""
    return max(LEAST_CONNECTIONS, min(MOST_CONNECTIONS, BYTES_IN_FLIGHT // size))


def size_row(kind: str, size: str) -> Row:
    """Return the row that echoes messages of one kind and size, one in flight per connection."""
    payload, compressed = KINDS[kind]
    length = (SIZES | BETWEEN)[size]
    name = f"{kind}-{size}"
    path = "/binary" if payload is Payload.BINARY else "/ws"

    def measure(running: RunningServer, effort: Effort) -> Mapping[str, float]:
        message = make_message(length, payload, compressed=compressed)
        count = connections_for(length)
        traffic, used = load(
            running, count, message, depth=1, seconds=effort.seconds, compression=compressed, path=path
        )
        return {f"{name}.cpu": used / traffic.messages * MICROSECONDS}

    title = f"{payload.value}{', compressed' if compressed else ''}"
    figure = Figure(f"{name}.cpu", _title(size), "µs CPU per message", pictured=False)
    return Row(name, f"By size: {title}", (figure,), measure, compression=compressed, servers=COMPARED)


def measure_fragments(running: RunningServer, effort: Effort) -> Mapping[str, float]:
    """Send messages of 1 MiB in fragments of 4 KiB, which are answered with a few bytes."""
    message = answered_with_length(make_message(MIB, fragment=4 * KIB))
    traffic, used = load(running, LEAST_CONNECTIONS, message, depth=1, seconds=effort.seconds, path="/length")
    return {"fragments.cpu": used / traffic.messages * MICROSECONDS}


def large_fan_out_row(size: str, members: int) -> Row:
    """Return a row that broadcasts large messages to a room, one at a time."""
    name = f"fan-out-{size}"

    def measure(running: RunningServer, effort: Effort) -> Mapping[str, float]:
        message = make_message((SIZES | BETWEEN)[size])
        opened = open_connections(running.port, members, "/room", within=SETUP_TIME)
        try:
            fan_out(opened, message, window=1, seconds=effort.seconds / 4)
            before = running.cpu_seconds()
            traffic = fan_out(opened, message, window=1, seconds=effort.seconds)
            used = running.cpu_seconds() - before
        finally:
            abort_connections(opened)
        running.settle()
        return {f"{name}.cpu": used / traffic.messages * MICROSECONDS}

    figure = Figure(f"{name}.cpu", f"{_title(size)} to {members:,}", "µs CPU per delivery", pictured=False)
    return Row(name, "Large broadcasts", (figure,), measure, room=True, servers=COMPARED)


def _title(size: str) -> str:
    return f"{size} B" if size.isdigit() else f"{size[:-1]} {size[-1].upper()}iB"


SIZE_ROWS: Final[tuple[Row, ...]] = (
    *(size_row(kind, size) for kind in KINDS for size in SIZES),
    size_row("text", "128k"),
    size_row("text", "1m"),
    size_row("beyond", "64k"),
    size_row("compressed-beyond", "64k"),
    Row(
        "fragments",
        "By size: fragments",
        (Figure("fragments.cpu", "1 MiB in 4 KiB, received", "µs CPU per message", pictured=False),),
        measure_fragments,
        servers=ASSEMBLING,
    ),
    large_fan_out_row("256k", 10),
    large_fan_out_row("64k", 1_000),
)
