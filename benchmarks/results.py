"""What a run has measured, and the arithmetic on it: medians over rounds, ratios inside rounds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that is measured for every server.

    Attributes:
        key: Its name in the raw numbers, such as `echo-64-d1.cpu`.
        title: What it is called in tables and pictures.
        unit: Its unit.
        compared: Tables tell it as a ratio as well.
        pictured: The picture shows it.
    """

    key: str
    title: str
    unit: str
    compared: bool = True
    pictured: bool = True


@dataclass(slots=True)
class Results:
    """The raw numbers of a run.

    Attributes:
        samples: By figure and server, the number of each round; `None` for a round in which it was not measured.
        skipped: By server, or by what was asked for, why it was not measured at all.
        faults: What went wrong while something was measured, in order.
    """

    samples: dict[str, dict[str, list[float | None]]] = field(default_factory=dict[str, dict[str, list[float | None]]])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    faults: list[str] = field(default_factory=list[str])

    def add(self, key: str, server: str, round_number: int, value: float) -> None:
        """Keep what was measured in one round; rounds count from 0."""
        rounds = self.samples.setdefault(key, {}).setdefault(server, [])
        rounds.extend([None] * (round_number + 1 - len(rounds)))
        rounds[round_number] = value

    def rounds(self, key: str, server: str) -> Sequence[float | None]:
        """Return the numbers of a figure, one a round, as far as they were measured."""
        return self.samples.get(key, {}).get(server, ())

    def median(self, key: str, server: str) -> float | None:
        """Return the median over the rounds, or `None` when there is no number."""
        return median(self.rounds(key, server))

    def ratio(self, key: str, server: str, other: str) -> float | None:
        """Return how many times the figure of `other` that of `server` is.

        It is the median of the ratios of each round, in which both were measured within seconds of each other, so
        that a machine that slows down between two rounds does not change it.
        """
        pairs = zip(self.rounds(key, server), self.rounds(key, other), strict=False)
        return median(mine / theirs for mine, theirs in pairs if mine is not None and theirs)

    def best(self, key: str, servers: Iterable[str]) -> str | None:
        """Return which of `servers` has the smallest median of a figure, or `None` when there is no number."""
        medians = {server: value for server in servers if (value := self.median(key, server)) is not None}
        return min(medians, key=medians.__getitem__, default=None)


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the numbers that are there, or `None` when there are none."""
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them (above 0, up to 1) do not exceed."""
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)
    return ordered[min(max(rank, 1), len(ordered)) - 1]
