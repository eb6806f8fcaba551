"""What is written after a run: a report in Markdown, and the raw numbers in JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from benchmarks.loads import Effort
from benchmarks.machine import LOAD
from benchmarks.results import Figure, Results
from benchmarks.rows import CONNECTIONS, ROWS
from benchmarks.servers import SERVERS
from benchmarks.targets import Outcome, evaluate

REFERENCE: Final = "starlette"
"""The server that ratios are told against, where it was measured."""

SHARED: Final = 1.0
"""Processes that want a core before a run, above which the machine is not ours alone."""

SATURATED: Final = 0.95
"""Share of its core above which the client may have been what limited the messages per second."""


@dataclass(frozen=True, slots=True)
class Run:
    """Everything there is to tell about a run.

    Attributes:
        command: What repeats it.
        date: When it was.
        machine: Where it was.
        versions: By server, what it was made of.
        effort: How much was done.
        results: The raw numbers.
    """

    command: str
    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]
    effort: Effort
    results: Results


def to_json(run: Run) -> str:
    """Return the raw numbers, with all that is needed to judge them."""
    outcomes = [
        {
            "target": outcome.target.text,
            "limit": outcome.target.limit,
            "unit": outcome.target.unit,
            "measured": outcome.measured,
            "beside": outcome.beside,
            "verdict": outcome.verdict,
        }
        for outcome in evaluate(run.results)
    ]
    return json.dumps(asdict(run) | {"targets": outcomes}, indent=2, ensure_ascii=False) + "\n"


def to_markdown(run: Run) -> str:
    """Return the report."""
    return "\n\n".join([*_introduction(run), *_left_out(run.results), *_sections(run), *_targets(run)]) + "\n"


def format_number(value: float) -> str:
    """Return a number with about three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    ruler = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ruler, *lines))


def titles() -> dict[str, str]:
    """Return what each server is called in tables and pictures."""
    return {server.name: server.title for server in SERVERS}


def _introduction(run: Run) -> list[str]:
    effort = run.effort
    method = [
        "Server CPU, user and system, of all processes of the server, from the operating system's accounting.",
        f"Every server in turn, {effort.rounds} rounds, medians; a ratio is the median of the ratios of each round.",
        f"{CONNECTIONS} connections where not said otherwise, {effort.seconds:g} s of load for each number.",
        f"Handshakes and memory over {effort.idle_connections:,} connections.",
        "One client for all, on the loopback address: prebuilt masked frames, replies counted by their size.",
        "uvloop for all that run on asyncio, no keepalive pings, permessage-deflate only where it is said.",
        "Absolute times differ from run to run; only ratios inside one run count.",
    ]
    if float(run.machine.get(LOAD, "0").split()[0]) > SHARED:
        method.append(
            "The machine was shared with other work, see its load: times are longer than on one that idles, and even "
            "ratios waver."
        )
    versions = [
        (titles()[name], ", ".join(f"{package} {version}".strip() for package, version in found.items()))
        for name, found in run.versions.items()
    ]
    return [
        "# wsdeco beside its peers",
        f"`{run.command}`, {run.date}.",
        "\n".join(f"- {line}" for line in method),
        table(["machine", ""], run.machine.items()).replace("--:", "---"),
        table(["server", "made of"], versions).replace("--:", "---"),
    ]


def _left_out(results: Results) -> list[str]:
    lines = [f"- skipped: {what}: {reason}" for what, reason in results.skipped.items()]
    lines += [f"- failed: {fault}" for fault in results.faults]
    return ["## Left out", "\n".join(lines)] if lines else []


def _sections(run: Run) -> list[str]:
    results = run.results
    parts: list[str] = []
    for section in dict.fromkeys(row.section for row in ROWS):
        figures = [
            figure
            for row in ROWS
            for figure in row.figures
            if row.section == section and results.samples.get(figure.key)
        ]
        if figures:
            parts += [f"## {section}", _caption(figures, results), _figure_table(figures, results)]
    if saturated := _saturated(results):
        parts.append(f"The client used its core to more than {SATURATED:.0%} in: {', '.join(saturated)}.")
    return parts


def _caption(figures: Sequence[Figure], results: Results) -> str:
    units = ", ".join(dict.fromkeys(figure.unit for figure in figures))
    measured = any(results.median(figure.key, REFERENCE) for figure in figures if figure.compared)
    return f"Unit: {units}. In brackets: the ratio to {titles()[REFERENCE]}." if measured else f"Unit: {units}."


def _figure_table(figures: Sequence[Figure], results: Results) -> str:
    def rank(server: str) -> float:
        first = results.median(figures[0].key, server)
        return float("inf") if first is None else first

    servers = dict.fromkeys(server for figure in figures for server in results.samples[figure.key])
    lines = [
        [titles()[server], *(_cell(figure, server, results) for figure in figures)]
        for server in sorted(servers, key=rank)
    ]
    return table(["server", *(figure.title for figure in figures)], lines)


def _cell(figure: Figure, server: str, results: Results) -> str:
    value = results.median(figure.key, server)
    if value is None:
        return "-"
    ratio = results.ratio(figure.key, server, REFERENCE) if figure.compared else None
    return format_number(value) if ratio is None else f"{format_number(value)} ({ratio:.2f}x)"


def _saturated(results: Results) -> list[str]:
    return [
        f"{key.removesuffix('.client_busy')} {server}"
        for key, servers in results.samples.items()
        if key.endswith(".client_busy")
        for server in servers
        if (results.median(key, server) or 0) > SATURATED
    ]


def _targets(run: Run) -> list[str]:
    lines = [_target_line(outcome) for outcome in evaluate(run.results)]
    return ["## Targets", table(["target", "at most", "measured", ""], lines)]


def _target_line(outcome: Outcome) -> list[str]:
    target = outcome.target
    measured = "-" if outcome.measured is None else f"{outcome.measured:.2f} {target.unit}"
    if outcome.beside and outcome.beside not in target.text:
        measured += f" ({outcome.beside})"
    return [target.text, f"{target.limit:g} {target.unit}", measured, outcome.verdict]
