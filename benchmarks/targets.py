"""Where wsdeco wants to be: each target a ratio inside one run, or a size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from benchmarks.results import Results
from benchmarks.servers import SERVERS, Kind
from benchmarks.sizes import KINDS, SIZES

COMPILED: Final = "wsdeco-compiled"

Find: TypeAlias = Callable[[Results], tuple[float, str] | None]
"""Returns what was measured, and beside which server; `None` when a number for it is missing."""

PYTHON_PEERS: Final = tuple(server.name for server in SERVERS if server.kind is Kind.PYTHON)
PEERS: Final = (*PYTHON_PEERS, *(server.name for server in SERVERS if server.kind is Kind.NATIVE))
"""Every peer whose handlers are written in Python; those in Rust are a comparison of another kind."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target.

    Attributes:
        text: What it is about.
        limit: What must not be exceeded.
        unit: Unit of the limit; `x` for a ratio.
        find: Finds what was measured.
    """

    text: str
    limit: float
    unit: str
    find: Find


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target after a run.

    Attributes:
        target: The target.
        measured: What was measured, or `None`.
        beside: The server it was compared with, if any.
    """

    target: Target
    measured: float | None
    beside: str

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured <= self.target.limit else "not met"


def versus(text: str, limit: float, key: str, other: str, server: str = "wsdeco-direct") -> Target:
    """Return a target against one server."""

    def find(results: Results) -> tuple[float, str] | None:
        ratio = results.ratio(key, server, other)
        return None if ratio is None else (ratio, other)

    return Target(f"{text}: {server} against {other}", limit, "x", find)


def versus_best(
    text: str, limit: float, key: str, others: Sequence[str], whom: str, server: str = "wsdeco-direct"
) -> Target:
    """Return a target against whichever of `others` is best."""

    def find(results: Results) -> tuple[float, str] | None:
        best = results.best(key, others)
        if best is None:
            return None
        ratio = results.ratio(key, server, best)
        return None if ratio is None else (ratio, best)

    return Target(f"{text}: {server} against {whom}", limit, "x", find)


def absolute(text: str, limit: float, unit: str, key: str, server: str = "wsdeco-direct") -> Target:
    """Return a target that needs no other server."""

    def find(results: Results) -> tuple[float, str] | None:
        value = results.median(key, server)
        return None if value is None else (value, "")

    return Target(f"{text}: {server}", limit, unit, find)


TARGETS: Final = (
    *(
        versus(f"{kind} {size}", 0.9 if kind.startswith("compressed") else 0.8, f"{kind}-{size}.cpu", "starlette")
        for kind in KINDS
        for size in SIZES
    ),
    versus("echo 128 KiB", 0.7, "text-128k.cpu", "starlette"),
    versus("echo 128 KiB", 1.5, "text-128k.cpu", "picows"),
    versus("echo 1 MiB", 0.7, "text-1m.cpu", "starlette"),
    versus("echo 1 MiB", 1.5, "text-1m.cpu", "picows"),
    versus("text beyond ASCII, 64 KiB", 0.8, "beyond-64k.cpu", "starlette"),
    versus("text beyond ASCII, 64 KiB, compressed", 0.9, "compressed-beyond-64k.cpu", "starlette"),
    versus("1 MiB in fragments of 4 KiB", 0.9, "fragments.cpu", "starlette"),
    versus("1 MiB in fragments of 4 KiB", 0.8, "fragments.cpu", "websockets"),
    versus("256 KiB to 10 members", 1.2, "fan-out-256k.cpu", "picows"),
    versus("64 KiB to 1,000 members", 0.8, "fan-out-64k.cpu", "starlette"),
    versus("echo 64 B, 1 in flight", 1.15, "echo-64-d1.cpu", "picows"),
    versus("echo 64 B, 1 in flight", 0.95, "echo-64-d1.cpu", "aiohttp"),
    versus("echo 64 B, 1 in flight", 0.60, "echo-64-d1.cpu", "starlette"),
    versus_best("echo 64 B, 16 in flight", 0.60, "echo-64-d16.cpu", PEERS, "the best peer"),
    versus("echo 64 B, 16 in flight", 0.25, "echo-64-d16.cpu", "starlette"),
    versus("echo 16 KiB, 1 in flight", 1.25, "echo-16k.cpu", "picows"),
    absolute("memory of an idle connection", 4.0, "KiB", "idle.memory"),
    absolute("memory after one message", 4.0, "KiB", "idle.memory_after_message"),
    versus_best("memory of an idle connection", 0.35, "idle.memory", PYTHON_PEERS, "the best Python peer"),
    versus("handshake", 0.75, "idle.handshake", "aiohttp"),
    versus("fan-out, room of 1,000, 1 at a time", 0.95, "fan-out-1.cpu", "websockets"),
    versus("fan-out, room of 1,000, 8 at a time", 1.0, "fan-out-8.cpu", "socketify"),
    absolute("100,000 idle connections in one process, all reached by a broadcast", 0, "lost", "crowd.lost"),
    versus("echo 64 B, 1 in flight", 1.10, "echo-64-d1.cpu", "starlette", "wsdeco-asgi"),
    versus("echo 64 B, 16 in flight", 1.10, "echo-64-d16.cpu", "starlette", "wsdeco-asgi"),
    absolute("10,000 connections ÷ 32 connections", 1.3, "x", "growth.factor"),
    versus("echo 64 B, 1 in flight", 1.15, "echo-64-d1.cpu", "picows", COMPILED),
    versus("echo 64 B, 1 in flight", 1.05, "echo-64-d1.cpu", "ancestor", COMPILED),
    versus("echo 64 B, 1 in flight", 0.50, "echo-64-d1.cpu", "starlette", COMPILED),
    versus("echo 64 B, 16 in flight", 0.30, "echo-64-d16.cpu", "ancestor", COMPILED),
    versus_best("echo 64 B, 16 in flight", 0.30, "echo-64-d16.cpu", PYTHON_PEERS, "the best Python peer", COMPILED),
    versus("echo 16 KiB, 1 in flight", 1.15, "echo-16k.cpu", "picows", COMPILED),
    versus("echo 16 KiB, 1 in flight", 1.10, "echo-16k.cpu", "ancestor", COMPILED),
    versus("echo 128 KiB", 1.5, "text-128k.cpu", "picows", COMPILED),
    versus("echo 1 MiB", 1.5, "text-1m.cpu", "picows", COMPILED),
    absolute("memory of an idle connection", 3.5, "KiB", "idle.memory", COMPILED),
    versus("handshake", 0.55, "idle.handshake", "aiohttp", COMPILED),
    versus("fan-out, room of 1,000, 1 at a time", 0.70, "fan-out-1.cpu", "websockets", COMPILED),
    versus("fan-out, room of 1,000, 8 at a time", 1.2, "fan-out-8.cpu", "socketify", COMPILED),
    absolute("10,000 connections ÷ 32 connections", 1.35, "x", "growth.factor", COMPILED),
    absolute("10,000 connections ÷ 32 connections", 1.3, "x", "growth.factor", "wsdeco-asgi"),
)


def evaluate(results: Results) -> list[Outcome]:
    """Return what has become of each target."""
    outcomes: list[Outcome] = []
    for target in TARGETS:
        found = target.find(results)
        measured, beside = (None, "") if found is None else found
        outcomes.append(Outcome(target, measured, beside))
    return outcomes
