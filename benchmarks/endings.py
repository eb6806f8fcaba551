"""What the end of many clients at once costs, and how long another client waits meanwhile.

The command is `python -m benchmarks.endings`. It takes about half a minute. While the server stands still all clients
send a close frame; then it goes on, and a client that stays asks for an echo again and again. Its longest wait is told
as CPU of the server, which other processes on the machine do not lengthen.
"""

import argparse
import socket
import statistics
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.client import PATIENCE, abort_connections, open_connections
from benchmarks.growth import MICROSECONDS
from benchmarks.machine import choose_cores, many_descriptors, pinned
from benchmarks.report import table
from benchmarks.servers import SERVERS, RunningServer, running
from benchmarks.wire import CLOSE, FIN, TEXT, ServerFault, frame_header, masked_frame

COMPARED: Final = ("wsdeco-direct", "starlette", "picows")

CLIENTS: Final = 5_000

CALM: Final = 100
"""Echoes in a row that come at once, behind which the server has nothing left to do."""

AT_ONCE: Final = 0.001
"""CPU seconds of the server."""

MILLISECONDS: Final = 1e3


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endings", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="clients that leave at once")
    arguments = parser.parse_args(argv)
    cores = choose_cores()
    samples: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for server in (each for each in SERVERS if each.name in COMPARED and each.missing() is None):
            with many_descriptors(), running(server, core=cores.server) as started, pinned(cores.client):
                samples.setdefault(server.name, []).append(leave(started, arguments.clients))
    rows = [
        [name, *(f"{statistics.median(each):.1f}" for each in zip(*found, strict=True))]
        for name, found in samples.items()
    ]
    print(
        table([f"{arguments.clients:,} clients leave at once", "CPU per client, us", "longest wait, ms of CPU"], rows)
    )


def leave(server: RunningServer, clients: int) -> tuple[float, float]:
    """Return the CPU of the server per client, in microseconds, and the longest wait of another, in milliseconds."""
    leaving = open_connections(server.port, clients)
    (staying,) = open_connections(server.port, 1)
    farewell = masked_frame(FIN | CLOSE, (1000).to_bytes(2))
    try:
        server.settle()
        begun = server.cpu_seconds()
        with server.standing_still():
            for connection in leaving:
                connection.sendall(farewell)
            staying.sendall(masked_frame(FIN | TEXT, b"x"))
        longest = 0.0
        calm = 0
        now = begun
        while calm < CALM:
            receive_echo(staying)
            before, now = now, server.cpu_seconds()
            longest = max(longest, now - before)
            calm = calm + 1 if now - before < AT_ONCE else 0
            staying.sendall(masked_frame(FIN | TEXT, b"x"))
        return (now - begun) / clients * MICROSECONDS, longest * MILLISECONDS
    finally:
        abort_connections([*leaving, staying])


def receive_echo(connection: socket.socket) -> None:
    """Wait for an echo.

    Raises:
        ServerFault: None comes.
    """
    connection.settimeout(PATIENCE)
    if connection.recv(64) != frame_header(FIN | TEXT, 1) + b"x":
        raise ServerFault("the client that stays was not answered")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServerFault as fault:
        sys.exit(str(fault))
