"""What grows with an app: requests as there are more routes, start-up as there are more handler classes.

The command is `python -m benchmarks.growth`: CPU of the server per request, with and without 500 routes that nobody
asks for, and the definition of a class; wsdeco and Starlette in turn, medians of the rounds. It takes about a minute.
`CLIFFS.md` beside it has what this and the other commands found.
"""

import argparse
import gc
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.client import HOST
from benchmarks.machine import choose_cores, pinned
from benchmarks.report import table
from benchmarks.servers import SERVERS, RunningServer, running
from benchmarks.wire import ServerFault, upgrade_request
from wsdeco import Address, App, DisconnectReason, Sink

COMPARED: Final = ("wsdeco-direct", "starlette")

ROUTES: Final = (0, 500)

CLASSES: Final = 1_000
"""Handler classes whose definition is timed."""

MICROSECONDS: Final = 1e6

PATIENCE: Final = 15.0
"""Seconds that a server may take for an answer."""

READ_SIZE: Final = 4096
"""Largest read, in bytes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose cost is measured.

    Attributes:
        name: What the table calls it.
        path: What is asked for.
        status: How it must be answered.
        handshake: It opens a WebSocket connection, on a TCP connection of its own; plain HTTP stays on one.
    """

    name: str
    path: str
    status: bytes
    handshake: bool = True


REQUESTS: Final = (
    Asked("handshake", "/ws", b"101"),
    Asked("handshake with a path parameter", "/rooms/blue", b"101"),
    Asked("handshake on an unknown path", "/nothing", b"40"),
    Asked("HTTP 404", "/nothing", b"404", handshake=False),
    Asked("HTTP 200", "/page", b"200", handshake=False),
)


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a load")
    arguments = parser.parse_args(argv)
    cores = choose_cores()
    samples: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(arguments.rounds):
        for server in (each for each in SERVERS if each.name in COMPARED):
            for routes in ROUTES:
                with running(server, core=cores.server, routes=routes) as started, pinned(cores.client):
                    for asked in REQUESTS:
                        cost = cpu_per_request(started, asked, arguments.seconds)
                        samples.setdefault((asked.name, server.name, routes), []).append(cost)
    print(report({key: statistics.median(values) for key, values in samples.items()}))
    app = App()
    ours = cpu_per_definition(lambda number: app.add(f"/classes/{number}", new_class(number)))
    theirs = cpu_per_definition(lambda number: WebSocketRoute(f"/routes/{number}", endpoint))
    print(f"\nDefinition of one class of {CLASSES:,}: {ours:.0f} us; of a Starlette route: {theirs:.0f} us.")


def report(medians: Mapping[tuple[str, str, int], float]) -> str:
    """Return the table of requests."""
    columns = [(server, routes) for server in COMPARED for routes in ROUTES]
    rows = [[asked.name, *(f"{medians[asked.name, *column]:.0f}" for column in columns)] for asked in REQUESTS]
    return table(["CPU per request, us", *(f"{server}, {routes} routes" for server, routes in columns)], rows)


def cpu_per_request(server: RunningServer, asked: Asked, seconds: float) -> float:
    """Return the CPU of the server per request, in microseconds."""
    if asked.handshake:
        request = upgrade_request(server.port, asked.path)
    else:
        request = f"GET {asked.path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode("ascii")
    connection = None if asked.handshake else socket.create_connection((HOST, server.port), PATIENCE)
    try:
        ask(server, asked, request, connection, seconds / 4)
        server.settle()
        before = server.cpu_seconds()
        answered = ask(server, asked, request, connection, seconds)
        server.settle()
        return (server.cpu_seconds() - before) / answered * MICROSECONDS
    finally:
        if connection is not None:
            connection.close()


def ask(server: RunningServer, asked: Asked, request: bytes, connection: socket.socket | None, seconds: float) -> int:
    """Ask again and again, one at a time; return how often it was answered."""
    answered = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if connection is not None:
            exchange(connection, asked, request)
        else:
            with socket.create_connection((HOST, server.port), PATIENCE) as opened:
                exchange(opened, asked, request)
        answered += 1
    return answered


def exchange(connection: socket.socket, asked: Asked, request: bytes) -> None:
    """Send a request, and read its answer.

    Raises:
        ServerFault: It is not answered as it must be.
    """
    connection.sendall(request)
    answer = connection.recv(READ_SIZE)
    while answer and b"\r\n\r\n" not in answer:
        answer += connection.recv(READ_SIZE)
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 " + asked.status):
        raise ServerFault(f"{asked.path} was answered {head[:80]!r}")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    while not asked.handshake and len(body) < int(length):
        body += connection.recv(READ_SIZE)


def cpu_per_definition(define: Callable[[int], object]) -> float:
    """Return the CPU that it takes to define one of many, in microseconds."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        before = time.process_time()
        for number in range(CLASSES):
            define(number)
        return (time.process_time() - before) / CLASSES * MICROSECONDS
    finally:
        if collecting:
            gc.enable()


def new_class(number: int) -> type:
    """Return a handler class as an application has it."""

    class Handler:
        def __init__(self, headers: Headers) -> None:
            self.headers = headers

        async def on_connect(self, addr: Address, sink: Sink) -> None: ...

        async def on_message(self, text: str) -> str:
            return text

        async def on_disconnect(self, reason: DisconnectReason) -> None: ...

        def helper(self) -> None: ...

    Handler.__name__ = Handler.__qualname__ = f"Handler{number}"
    return Handler


async def endpoint(websocket: WebSocket) -> None: ...


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServerFault as fault:
        sys.exit(str(fault))
