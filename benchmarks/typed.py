"""What a message with a type costs, against a text handler that calls msgspec itself.

The command is `python -m benchmarks.typed`: CPU of the server per message, the handlers in turn on one server, medians
of the rounds. It takes about a minute, and needs `wsdeco[typed]`.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.loads import MICROSECONDS, load
from benchmarks.machine import choose_cores, pinned
from benchmarks.report import table
from benchmarks.servers import running, server_called
from benchmarks.wire import Message, text_message

CONNECTIONS: Final = 32

DEPTHS: Final = (1, 16)
"""Messages in flight on each connection."""

HANDLERS: Final[dict[str, tuple[str, Message]]] = {
    "text, as it is": ("/ws", text_message('{"text":"hello"}')),
    "text, msgspec by hand": ("/by-hand", text_message('{"text":"hello"}')),
    "a dataclass": ("/typed", text_message('{"text":"hello"}')),
    "a union of dataclasses": ("/union", text_message('{"type":"Say","text":"hello"}')),
}
"""Each handler by its path, and a message that it sends back."""

BASE: Final = "text, msgspec by hand"


def main(argv: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.typed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a load")
    arguments = parser.parse_args(argv)
    cores = choose_cores()
    server = server_called("wsdeco-direct")
    samples: dict[tuple[str, int], list[float]] = {}
    for _ in range(arguments.rounds):
        with running(server, core=cores.server) as started, pinned(cores.client):
            for depth in DEPTHS:
                for name, (path, message) in HANDLERS.items():
                    seconds: float = arguments.seconds
                    traffic, used = load(started, CONNECTIONS, message, depth=depth, seconds=seconds, path=path)
                    samples.setdefault((name, depth), []).append(used / traffic.messages * MICROSECONDS)
    medians = {key: statistics.median(values) for key, values in samples.items()}
    rows: list[list[str]] = []
    for name in HANDLERS:
        costs = [(medians[name, depth], medians[name, depth] / medians[BASE, depth]) for depth in DEPTHS]
        rows.append([name, *(f"{cost:.2f} ({ratio:.2f} x)" for cost, ratio in costs)])
    print(table(["handler", *(f"{depth} in flight, us" for depth in DEPTHS)], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
