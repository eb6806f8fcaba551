"""The picture: a panel of bars for each figure, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from benchmarks.report import format_number, titles
from benchmarks.results import Figure, Results
from benchmarks.rows import ROWS
from benchmarks.servers import SERVERS, Kind

TITLE: Final = "wsdeco beside its peers (shorter is better)"

COLUMNS: Final = 3
PANEL_WIDTH: Final = 430
LABEL_WIDTH: Final = 180
VALUE_WIDTH: Final = 62
LINE_HEIGHT: Final = 18
BAR_HEIGHT: Final = 12
HEAD_HEIGHT: Final = 46
MARGIN: Final = 20
LEGEND_HEIGHT: Final = 64

COLORS: Final = {
    Kind.WSDECO: "#0b6bcb",
    Kind.PYTHON: "#8d99a6",
    Kind.NATIVE: "#c1c9d2",
    Kind.RUST: "#d9864a",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        label: Whose it is.
        value: How long it is.
        kind: What color it has.
    """

    label: str
    value: float
    kind: Kind


def to_svg(results: Results) -> str:
    """Return a picture of the medians; shorter bars are better in every panel."""
    panels = [
        (f"{row.section}: {figure.title}", figure.unit, bars)
        for row in ROWS
        for figure in row.figures
        if figure.pictured and (bars := bars_of(figure, results))
    ]
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    parts: list[str] = []
    y = MARGIN + LEGEND_HEIGHT
    for row in rows:
        for column, (title, unit, bars) in enumerate(row):
            parts += draw_panel(title, unit, bars, MARGIN + column * PANEL_WIDTH, y)
        y += HEAD_HEIGHT + LINE_HEIGHT * max(len(bars) for _, _, bars in row) + MARGIN
    width = 2 * MARGIN + COLUMNS * PANEL_WIDTH
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">',
            f"<title>{TITLE}</title>",
            rectangle(0, 0, width, y, "#ffffff"),
            '<g font-family="system-ui, sans-serif" font-size="12">',
            *draw_legend({bar.kind for _, _, bars in panels for bar in bars}),
            *parts,
            "</g>\n</svg>\n",
        ]
    )


def bars_of(figure: Figure, results: Results) -> list[Bar]:
    """Return the bars of a figure, the shortest first."""
    kinds = {server.name: server.kind for server in SERVERS}
    bars = [
        Bar(titles()[name], value, kinds[name])
        for name in results.samples.get(figure.key, {})
        if (value := results.median(figure.key, name)) is not None
    ]
    return sorted(bars, key=lambda bar: bar.value)


def draw_panel(title: str, unit: str, bars: Sequence[Bar], x: int, y: int) -> list[str]:
    """Return the elements of one panel whose upper left corner is at `x`, `y`."""
    room = PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH - MARGIN
    longest = max(bar.value for bar in bars)
    parts = [
        text(x, y + 14, title, 'font-size="14" font-weight="600"'),
        text(x, y + 32, unit, 'fill="#5b6570"'),
    ]
    for index, bar in enumerate(bars):
        top = y + HEAD_HEIGHT + index * LINE_HEIGHT
        length = room * bar.value / longest if longest > 0 else 0.0
        weight = 'font-weight="600"' if bar.kind is Kind.WSDECO else ""
        parts += [
            text(x + LABEL_WIDTH - 8, top + 10, bar.label, f'text-anchor="end" {weight}'),
            rectangle(x + LABEL_WIDTH, top, max(length, 1.0), BAR_HEIGHT, COLORS[bar.kind]),
            text(x + LABEL_WIDTH + round(length) + 6, top + 10, format_number(bar.value), weight),
        ]
    return parts


def draw_legend(kinds: set[Kind]) -> list[str]:
    """Return the title, and what the colors mean."""
    parts = [text(MARGIN, MARGIN + 14, TITLE, 'font-size="17" font-weight="600"')]
    x = MARGIN
    for kind in (kind for kind in Kind if kind in kinds):
        parts += [
            rectangle(x, MARGIN + 30, BAR_HEIGHT, BAR_HEIGHT, COLORS[kind]),
            text(x + BAR_HEIGHT + 6, MARGIN + 40, kind.value),
        ]
        x += BAR_HEIGHT + 40 + 7 * len(kind.value)
    return parts


def rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    """Return a filled rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill="{color}"/>'


def text(x: int, y: int, content: str, attributes: str = "") -> str:
    """Return a text whose baseline starts at `x`, `y`."""
    return f'<text x="{x}" y="{y}" {attributes}>{escape(content)}</text>'
