"""What memory stays once many large messages are over.

The command is `python -m benchmarks.afterwards`. It takes about three minutes: connections that stay open echo 1,000
messages of 1 MiB, and are quiet for ten seconds. Told is by how much the resident memory of the server has grown then,
and by how much it had at once. Each kind of message has a server of its own.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.client import abort_connections, exchange_once, open_connections
from benchmarks.machine import choose_cores, pinned
from benchmarks.report import table
from benchmarks.servers import SERVERS, RunningServer, running
from benchmarks.sizes import KINDS, MIB
from benchmarks.wire import Payload, ServerFault, make_message

COMPARED: Final = ("wsdeco-direct", "wsdeco-compiled", "wsdeco-asgi", "starlette")

KIND_NAMES: Final = ("text", "beyond", "binary", "compressed")

CONNECTIONS: Final = 4

ECHOES: Final = 1_000

QUIET_SECONDS: Final = 10.0


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.afterwards", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is measured")
    parser.add_argument("--echoes", type=int, default=ECHOES, help="messages over all connections")
    parser.add_argument("--quiet", type=float, default=QUIET_SECONDS, help="seconds until what stays is measured")
    parser.add_argument("--servers", default=",".join(COMPARED), help="only these")
    parser.add_argument("--kinds", default=",".join(KIND_NAMES), help="only these kinds of messages")
    arguments = parser.parse_args(argv)
    cores = choose_cores()
    chosen = [each for each in SERVERS if each.name in arguments.servers.split(",") and each.missing() is None]
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for kind in arguments.kinds.split(","):
            for server in chosen:
                compressed = KINDS[kind][1]
                with running(server, core=cores.server, compression=compressed) as started, pinned(cores.client):
                    found = growth(started, kind, arguments.echoes, arguments.quiet)
                samples.setdefault((kind, server.name), []).append(found)
    rows = [
        [*names, *(f"{statistics.median(each):.1f}" for each in zip(*found, strict=True))]
        for names, found in samples.items()
    ]
    print(table(["1 MiB of", "server", "more at once, MiB", f"after {arguments.quiet:g} s, MiB"], rows))


def growth(server: RunningServer, kind: str, echoes: int, quiet: float) -> tuple[float, float]:
    """Return by how many MiB of resident memory a server has grown: behind `echoes` messages, and some seconds later.

    Raises:
        ServerFault: A connection ends, or a reply takes too long.
    """
    payload, compressed = KINDS[kind]
    path = "/binary" if payload is Payload.BINARY else "/ws"
    opened = open_connections(server.port, CONNECTIONS, path, compression=compressed)
    try:
        exchange_once(opened, make_message(64, payload, compressed=compressed))
        server.settle()
        before = server.resident_bytes()
        message = make_message(MIB, payload, compressed=compressed)
        for _ in range(-(-echoes // CONNECTIONS)):
            exchange_once(opened, message)
        at_once = server.resident_bytes()
        time.sleep(quiet)
        return (at_once - before) / MIB, (server.resident_bytes() - before) / MIB
    finally:
        abort_connections(opened)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServerFault as fault:
        sys.exit(str(fault))
