"""The command: `python -m benchmarks`, see `--help`."""

import argparse
import contextlib
import datetime
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

from benchmarks.chart import to_svg
from benchmarks.loads import Effort, Row
from benchmarks.machine import choose_cores, describe_machine, many_descriptors
from benchmarks.measure import measure
from benchmarks.report import Run, to_json, to_markdown
from benchmarks.rows import CONNECTIONS, CROWD, GROWTH_LEVELS, ROWS
from benchmarks.servers import CHECKOUT, SERVERS, CompiledServer, RustServer, Server

FULL: Final = Effort(rounds=3, seconds=1.5, latency_seconds=2.0, idle_connections=4_000, levels=GROWTH_LEVELS)
QUICK: Final = Effort(rounds=3, seconds=0.2, latency_seconds=0.4, idle_connections=500, levels=GROWTH_LEVELS[:-1])

OTHERS: Final = ("afterwards", "backplanes", "endings", "fairness", "growth", "levels", "rooms", "typed", "workers")
"""Commands beside this one, for what a row of one server cannot measure."""

Named = TypeVar("Named", Server, Row)


def main(argv: Sequence[str]) -> int:
    """Run the benchmarks, and return the exit status: 1 when a server failed."""
    arguments = parse(argv)
    with many_descriptors() as allowed:
        effort, skipped = choose_effort(arguments, allowed)
        servers = choose("server", SERVERS, arguments.servers)
        rows = choose("row", ROWS, arguments.rows)
        cores = choose_cores()
        machine = describe_machine(cores)
        skipped |= find_missing(servers, build=arguments.build)
        present = [server for server in servers if server.name not in skipped]
        for what, reason in skipped.items():
            print(f"skipped: {what}: {reason}", file=sys.stderr)
        results = measure(present, rows, replace(effort, spin=not cores.shared), cores)
    results.skipped = skipped | results.skipped
    run = Run(
        command=shlex.join(["python", "-m", "benchmarks", *argv]),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine,
        versions={server.name: server.versions() for server in present},
        effort=effort,
        results=results,
    )
    write(run, arguments.output)
    return 1 if results.faults else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure wsdeco and every peer that is installed, in turn, with the same client. Installs nothing.",
        epilog=f"What is no row has commands of its own, `python -m benchmarks.NAME`: {', '.join(OTHERS)}.",
    )
    parser.add_argument("--quick", action="store_true", help="short loads and fewer connections: shows that it works")
    parser.add_argument("--servers", metavar="A,B", help=f"only these: {', '.join(each.name for each in SERVERS)}")
    parser.add_argument("--rows", metavar="A,B", help=f"only these: {', '.join(each.name for each in ROWS)}")
    parser.add_argument("--rounds", type=positive(int), help=f"how often everything is measured ({FULL.rounds})")
    parser.add_argument("--seconds", type=positive(float), help=f"length of a load ({FULL.seconds:g})")
    parser.add_argument("--output", metavar="DIR", type=Path, default=CHECKOUT / "benchmarks" / "results")
    parser.add_argument(
        "--build",
        action="store_true",
        help="build first what has to be: wsdeco compiled, and servers in Rust, for which cargo fetches crates",
    )
    return parser.parse_args(argv)


def positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Return what reads a number above 0 from the command line."""

    def read(text: str) -> int | float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return read


def choose(what: str, known: Sequence[Named], names: str | None) -> list[Named]:
    """Return those of `known` that are named, or all of them, in their own order.

    Raises:
        SystemExit: A name is not known.
    """
    if names is None:
        return list(known)
    wanted = names.split(",")
    for name in wanted:
        if name not in [each.name for each in known]:
            raise SystemExit(f"there is no {what} {name!r}: {', '.join(each.name for each in known)}")
    return [each for each in known if each.name in wanted]


def choose_effort(arguments: argparse.Namespace, allowed: int) -> tuple[Effort, dict[str, str]]:
    """Return how much is to be done with `allowed` connections at a time, and what is left out for that."""
    effort = QUICK if arguments.quick else FULL
    if arguments.rounds is not None:
        effort = replace(effort, rounds=arguments.rounds)
    if arguments.seconds is not None:
        effort = replace(effort, seconds=arguments.seconds, latency_seconds=arguments.seconds)
    skipped: dict[str, str] = {}
    for level in GROWTH_LEVELS:
        if level > allowed:
            skipped[f"{level:,} connections"] = f"the limit of file descriptors allows {allowed:,}"
        elif level not in effort.levels:
            skipped[f"{level:,} connections"] = "not with --quick"
    levels = tuple(level for level in effort.levels if level <= allowed)
    crowd = CROWD if not arguments.quick and allowed >= CROWD + CONNECTIONS else 0
    idle = max(1, min(effort.idle_connections, allowed - CONNECTIONS))
    return replace(effort, levels=levels, idle_connections=idle, crowd=crowd), skipped


def find_missing(servers: Sequence[Server], *, build: bool) -> dict[str, str]:
    """Return the servers that cannot be started, and why; those that are to be built are, when `build` is set."""
    missing: dict[str, str] = {}
    for server in servers:
        reason = None
        if build and isinstance(server, RustServer | CompiledServer):
            print(f"building {server.title} in {server.target}", file=sys.stderr)
            reason = server.build()
        reason = reason or server.missing()
        if reason is not None:
            missing[server.name] = reason
    return missing


def write(run: Run, directory: Path) -> None:
    """Write report, raw numbers and picture, and print the report."""
    report = to_markdown(run)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("report.md", report), ("results.json", to_json(run)), ("results.svg", to_svg(run.results))):
        (directory / name).write_text(content, "utf-8")
    print(report)
    print(f"written to {directory}: report.md, results.json, results.svg", file=sys.stderr)


def end(number: int, _frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that every server is stopped on the way out."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
