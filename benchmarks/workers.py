"""What a handshake costs if several processes share the port, and how evenly they get the clients.

The command is `python -m benchmarks.workers`. It takes about a minute. CPU of all processes of the server, which are
not pinned to a core; medians of the rounds. Clients come one after another, or many at once. One after another they
find a process asleep and the caches filled by another one: what that costs by itself is told by two servers that have
nothing to do with each other, and are asked in turn.
"""

import argparse
import os
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from benchmarks.client import HOST, PATIENCE, abort_connections, open_connections
from benchmarks.growth import MICROSECONDS, Asked, cpu_per_request, exchange
from benchmarks.report import table
from benchmarks.servers import Kind, PythonServer, RunningServer, running
from benchmarks.wire import FIN, TEXT, ServerFault, masked_frame, upgrade_request

COUNTS: Final = (1, 2, 4)
"""Worker processes."""

CROWD: Final = 300
"""Clients that come at once."""

CROWDS: Final = 5

SERVER: Final = PythonServer("wsdeco-workers", "wsdeco, worker processes", Kind.WSDECO, "wsdeco_workers", ())

HANDSHAKE: Final = Asked("handshake", "/ws", b"101")


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a load")
    parser.add_argument("--crowd", type=int, default=CROWD, help="clients that come at once")
    arguments = parser.parse_args(argv)
    samples: dict[int, list[tuple[float, float, float]]] = {}
    in_turn: list[float] = []
    for _ in range(arguments.rounds):
        with running_workers(1) as one, running_workers(1) as other:
            in_turn.append(cpu_in_turn([one, other], arguments.seconds))
        for workers in COUNTS:
            with running_workers(workers) as server:
                alone = cpu_per_request(server, HANDSHAKE, arguments.seconds)
                crowded, share = crowds(server, workers, arguments.crowd)
                samples.setdefault(workers, []).append((alone, crowded, share))
    rows: list[list[str]] = []
    for workers, found in samples.items():
        alone, crowded, share = (statistics.median(each) for each in zip(*found, strict=True))
        rows.append([str(workers), f"{alone:.0f}", f"{crowded:.0f}", f"{share:.2f}"])
    rows.append(["two servers in turn", f"{statistics.median(in_turn):.0f}", "", ""])
    columns = ["worker processes", "one after another, us", f"{arguments.crowd} at once, us", "least of the shares"]
    print(table(columns, rows))


@contextmanager
def running_workers(workers: int) -> Generator[RunningServer]:
    """Start a server, and wait until all of its processes serve."""
    os.environ["WORKERS"] = str(workers)
    try:
        # Any core will do: the scheduler deals them out.
        with running(SERVER, core=None) as server:
            deadline = time.monotonic() + PATIENCE
            seen: set[bytes] = set()
            while len(seen) < workers:
                if time.monotonic() > deadline:
                    raise ServerFault(f"{len(seen)} of {workers} workers have answered")
                opened = open_connections(server.port, workers)
                seen |= ask_who_serves(opened).keys()
                abort_connections(opened)
            server.find_processes()
            server.settle()
            yield server
    finally:
        os.environ.pop("WORKERS", None)


def cpu_in_turn(servers: Sequence[RunningServer], seconds: float) -> float:
    """Return the CPU per handshake, in microseconds, if one server is asked after the other."""
    requests = [(server.port, upgrade_request(server.port, HANDSHAKE.path)) for server in servers]
    before = sum(server.cpu_seconds() for server in servers)
    answered = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for port, request in requests:
            with socket.create_connection((HOST, port), PATIENCE) as opened:
                exchange(opened, HANDSHAKE, request)
        answered += len(requests)
    for server in servers:
        server.settle()
    return (sum(server.cpu_seconds() for server in servers) - before) / answered * MICROSECONDS


def crowds(server: RunningServer, workers: int, crowd: int) -> tuple[float, float]:
    """Return the CPU per client of a crowd, in microseconds, and the least share of a worker, 1 if all are the same."""
    taken: Counter[bytes] = Counter()
    used = 0.0
    for _ in range(CROWDS):
        before = server.cpu_seconds()
        opened = open_connections(server.port, crowd)
        server.settle()
        used += server.cpu_seconds() - before
        taken += ask_who_serves(opened)
        abort_connections(opened)
        server.settle()
    least = min(taken.values()) if len(taken) == workers else 0
    return used / (CROWDS * crowd) * MICROSECONDS, least / (CROWDS * crowd / workers)


def ask_who_serves(connections: Sequence[socket.socket]) -> Counter[bytes]:
    """Return how many of the connections each process has."""
    for each in connections:
        each.sendall(masked_frame(FIN | TEXT, b"?"))
    counted: Counter[bytes] = Counter()
    for each in connections:
        each.settimeout(PATIENCE)
        counted[each.recv(64)] += 1
    return counted


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServerFault as fault:
        sys.exit(str(fault))
