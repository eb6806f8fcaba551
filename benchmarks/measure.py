"""Runs rows against servers, round after round, every server in turn."""

import contextlib
import math
import sys
import time
from collections.abc import Generator, Sequence
from typing import Self

from benchmarks.loads import Effort, Row
from benchmarks.machine import Cores, pinned
from benchmarks.results import Results
from benchmarks.servers import RunningServer, Server, running
from benchmarks.wire import NotOffered, ServerFault


def measure(servers: Sequence[Server], rows: Sequence[Row], effort: Effort, cores: Cores) -> Results:
    """Measure every row with every server, and return the raw numbers.

    A server that fails in a row is reported, and started again for the next one.
    """
    results = Results()
    progress = Progress(effort.rounds * sum(_takes_part(server, row) for row in rows for server in servers))
    with pinned(cores.client):
        for round_number in range(effort.rounds):
            _measure_round(results, servers, rows, effort, cores, round_number, progress)
    return results


def _takes_part(server: Server, row: Row) -> bool:
    return not row.servers or server.name in row.servers


class Progress:
    """How much is done, and how long the rest takes if it goes on like this."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._begun = time.monotonic()
        self._done = 0

    def step(self) -> str:
        """Return the line that goes with the next step."""
        done, self._done = self._done, self._done + 1
        seconds = (time.monotonic() - self._begun) / done * (self._steps - done) if done else 0.0
        left = f"{math.ceil(seconds / 60)} min left" if done else "the first"
        return f"[{done + 1} of {self._steps}, {left}]"


def _measure_round(
    results: Results,
    servers: Sequence[Server],
    rows: Sequence[Row],
    effort: Effort,
    cores: Cores,
    round_number: int,
    progress: "Progress",
) -> None:
    with _Pool(cores) as pool:
        for row in rows:
            for server in servers:
                if not _takes_part(server, row):
                    continue
                told = progress.step()
                if row.room and not server.has_room:
                    results.skipped[f"{server.name}, {row.name}"] = "it has no room to broadcast to here"
                    continue
                _tell(f"{told} round {round_number + 1} of {effort.rounds}: {row.name} {server.name}", end="")
                try:
                    with pool.lend(server, row) as started:
                        numbers = row.measure(started, effort)
                except NotOffered as fault:
                    results.skipped[f"{server.name}, {row.name}"] = str(fault)
                    _tell(f" skipped: {fault}")
                    continue
                except (ServerFault, OSError) as fault:
                    results.faults.append(f"round {round_number + 1}, {row.name}, {server.name}: {fault}")
                    _tell(f" failed: {fault}")
                    continue
                for key, value in numbers.items():
                    results.add(key, server.name, round_number, value)
                shown = (f"{numbers[figure.key]:.4g}" for figure in row.figures if figure.key in numbers)
                _tell(f" {' '.join(shown)}")


class _Pool:
    """The servers of one round: started when they are first needed, and stopped together."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._started: dict[str, tuple[RunningServer, contextlib.ExitStack]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name in list(self._started):
            self._stop(name)

    @contextlib.contextmanager
    def lend(self, server: Server, row: Row) -> Generator[RunningServer]:
        if row.fresh or row.compression:
            with running(server, core=self._cores.server, compression=row.compression) as started:
                yield started
            return
        if server.name not in self._started:
            stack = contextlib.ExitStack()
            self._started[server.name] = (stack.enter_context(running(server, core=self._cores.server)), stack)
        try:
            yield self._started[server.name][0]
        except BaseException:
            # Whatever state a failure has left it in is not what the next row is to measure.
            self._stop(server.name)
            raise

    def _stop(self, name: str) -> None:
        _, stack = self._started.pop(name)
        stack.close()


def _tell(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)
