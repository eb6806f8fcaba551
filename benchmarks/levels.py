"""What compressed messages cost at the level that aiohttp compresses with, which is the fastest of zlib.

The command is `python -m benchmarks.levels`. It takes about a quarter of a minute: CPU of the server per message of
16 KiB that is echoed, medians of the rounds.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.loads import MICROSECONDS, load
from benchmarks.machine import choose_cores, pinned
from benchmarks.report import table
from benchmarks.servers import SERVERS, running
from benchmarks.sizes import KIB
from benchmarks.wire import ServerFault, make_message

CONNECTIONS: Final = 32

COMPARED: Final = {"wsdeco-direct": "/fastest", "aiohttp": "/ws"}
"""The servers, and where each compresses with level 1."""


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a load")
    arguments = parser.parse_args(argv)
    cores = choose_cores()
    message = make_message(16 * KIB, compressed=True)
    samples: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for server in (each for each in SERVERS if each.name in COMPARED and each.missing() is None):
            with running(server, core=cores.server, compression=True) as started, pinned(cores.client):
                traffic, used = load(
                    started,
                    CONNECTIONS,
                    message,
                    depth=1,
                    seconds=arguments.seconds,
                    compression=True,
                    path=COMPARED[server.name],
                )
                samples.setdefault(server.name, []).append(used / traffic.messages * MICROSECONDS)
    rows = [[name, f"{statistics.median(each):.1f}"] for name, each in samples.items()]
    print(table(["echo of 16 KiB, compressed with level 1", "CPU per message, us"], rows))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServerFault as fault:
        sys.exit(str(fault))
