"""Runs rows against servers, round after round, every server in turn."""

import contextlib
import sys
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
    with pinned(cores.client):
        for round_number in range(effort.rounds):
            _measure_round(results, servers, rows, effort, cores, round_number)
    return results


def _measure_round(
    results: Results, servers: Sequence[Server], rows: Sequence[Row], effort: Effort, cores: Cores, round_number: int
) -> None:
    with _Pool(cores) as pool:
        for row in rows:
            for server in servers:
                if row.servers and server.name not in row.servers:
                    continue
                if row.room and not server.has_room:
                    results.skipped[f"{server.name}, {row.name}"] = "it has no room to broadcast to here"
                    continue
                _tell(f"round {round_number + 1} of {effort.rounds}: {row.name} {server.name}", end="")
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
