"""How long others wait while a message of 16 MiB arrives and leaves.

The command is `python -m benchmarks.fairness`. It takes some minutes: one connection echoes 16 MiB again and again, and
another one a short message meanwhile. Servers in turn; of each round the longest and the 99th percentile of the round
trips of the short message, and of these the medians.
"""

import argparse
import contextlib
import select
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.client import PATIENCE, READ_SIZE, abort_connections, check_echo, make_counter, open_connections
from benchmarks.machine import choose_cores, pinned
from benchmarks.report import table
from benchmarks.results import percentile
from benchmarks.servers import SERVERS, running
from benchmarks.sizes import KINDS, MIB
from benchmarks.wire import Message, NotOffered, Payload, ServerFault, make_message

SIZE: Final = 16 * MIB

COMPARED: Final = ("wsdeco-direct", "wsdeco-asgi", "starlette", "websockets", "picows")


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--messages", type=int, default=10, help="large messages of each round")
    parser.add_argument("--servers", default=",".join(COMPARED), help="only these")
    parser.add_argument("--kinds", default=",".join(KINDS), help="only these kinds of messages")
    arguments = parser.parse_args(argv)
    chosen = [each for each in SERVERS if each.name in arguments.servers.split(",") and each.missing() is None]
    kinds = [each for each in KINDS if each in arguments.kinds.split(",")]
    cores = choose_cores()
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for server in chosen:
            for compressed in (False, True):
                with running(server, core=cores.server, compression=compressed) as started, pinned(cores.client):
                    for kind in (each for each in kinds if KINDS[each][1] is compressed):
                        with contextlib.suppress(NotOffered):
                            times = round_trips(started.port, kind, arguments.messages)
                            samples.setdefault((kind, server.name), []).append((max(times), percentile(times, 0.99)))
    rows = [
        [kind, name, *(f"{statistics.median(each[which] for each in found) * 1000:.1f}" for which in (0, 1))]
        for (kind, name), found in sorted(samples.items())
    ]
    print(table(["16 MiB of", "server", "longest round trip of another, ms", "99 %, ms"], rows))


def round_trips(port: int, kind: str, count: int) -> list[float]:
    """Return the round trips of a short message, one at a time, in seconds, while `count` large ones are echoed.

    Raises:
        NotOffered: The server does not compress, and the kind wants it.
        ServerFault: A connection ends, or the last echo takes too long.
    """
    payload, compressed = KINDS[kind]
    large, short = make_message(SIZE, payload, compressed=compressed), make_message(64)
    path = "/binary" if payload is Payload.BINARY else "/ws"
    opened: list[socket.socket] = []
    try:
        opened += open_connections(port, 1, path, compression=compressed)
        opened += open_connections(port, 1)
        check_echo(opened[0], large)
        check_echo(opened[1], short)
        return _exchange(opened[0], large, opened[1], short, count)
    finally:
        abort_connections(opened)


def _exchange(heavy: socket.socket, large: Message, light: socket.socket, short: Message, count: int) -> list[float]:
    times: list[float] = []
    large_replies, large_buffer = make_counter([heavy.fileno()], large)
    short_replies, short_buffer = make_counter([light.fileno()], short)
    unsent = memoryview(large.frame)
    deadline = time.monotonic() + PATIENCE
    with select.epoll() as poller:
        poller.register(heavy.fileno(), select.EPOLLIN | select.EPOLLOUT)
        poller.register(light.fileno(), select.EPOLLIN)
        sent_at = time.perf_counter()
        light.send(short.frame)
        while count:
            if time.monotonic() > deadline:
                raise ServerFault("it does not answer")
            for descriptor, events in poller.poll(1.0):
                if descriptor == light.fileno():
                    if short_replies(descriptor, _read(light, short_buffer)):
                        now = time.perf_counter()
                        times.append(now - sent_at)
                        sent_at = now
                        light.send(short.frame)
                    continue
                if events & select.EPOLLIN and large_replies(descriptor, _read(heavy, large_buffer)):
                    count -= 1
                    unsent = memoryview(large.frame)
                    deadline = time.monotonic() + PATIENCE
                if events & select.EPOLLOUT and unsent:
                    unsent = unsent[heavy.send(unsent[:READ_SIZE]) :]
                poller.modify(heavy.fileno(), select.EPOLLIN | (select.EPOLLOUT if unsent else 0))
    return times


def _read(connection: socket.socket, buffer: bytearray) -> int:
    size = connection.recv_into(buffer)
    if not size:
        raise ServerFault("it ended a connection")
    return size


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServerFault as fault:
        sys.exit(str(fault))
