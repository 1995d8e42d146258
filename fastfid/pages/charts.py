"""Charts as plain numbers, which the macro `chart` of parts.html.jinja draws as SVG.

A mouse that rests on a point shows the point's values.  A table below the picture has them as well, for a phone and for
a reader who copies them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

# Of the drawing, in CSS pixels of a phone's column; a wider screen shows two charts side by side, a little larger.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 22, 10, 34  # room for the numbers of the axes
TICKS = 5  # about as many numbers on an axis
HOVERED = 150  # most points of a line that can be hovered: two pixels each
KEY = (26, 12)  # width and height of a line's sample in the legend
ROWS = 60  # most rows of a table
BINS = 30  # of a histogram
COLORS = 4  # of style.css, for lines without a colour of their own
# Two families of colours of style.css, so that each line of two groups has its own and the groups are told apart.
COLD, WARM = (1, 3, 4, 5), (2, 6, 7, 8)
# Shapes of a mark: what is drawn around its middle.
SHAPES = {
    "circle": "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
    "square": "m-3.2 -3.2h6.4v6.4h-6.4z",
    "diamond": "m0 -4.6l4.6 4.6l-4.6 4.6l-4.6 -4.6z",
    "triangle": "m0 -4.4l4.4 7.6h-8.8z",
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One series of a chart.

    points  (x, y); a y that is not finite leaves a gap
    kind    line: joined; dots: single marks; dashed: joined by dashes, with marks; bars: the outline of a histogram,
            whose points are the middles of its bins
    color   1 to 8; by the order of the lines unless given
    mark    a shape of SHAPES at every point; without one, dots, dashed lines and single points have circles
    """

    name: str
    points: Sequence[Point]
    kind: Literal["line", "dots", "dashed", "bars"] = "line"
    color: int | None = None
    mark: str = ""


@dataclass(frozen=True)
class Chart:
    """What the macro `chart` draws; lengths in the units of the SVG.

    lines   [{name, color, path, marks [path], hover [{x, y, text}], dashed, key}], key being the mark of the legend
    levels  [{y, name}], horizontal lines
    head, rows  of the table
    more    what the table leaves out, or ""
    """

    title: str
    x_label: str
    y_label: str
    note: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[dict[str, Any]]
    levels: list[dict[str, Any]]
    head: list[str]
    rows: list[list[str]]
    more: str
    size: tuple[int, int] = (WIDTH, HEIGHT)
    key: tuple[int, int] = KEY
    box: dict[str, int] = field(
        default_factory=lambda: {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
    )


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    note: str = "",
    levels: Sequence[tuple[float | None, str]] = (),
    from_zero: bool = True,
) -> Chart | None:
    """A chart of the lines; None where no line has a finite point.

    levels     (value, name) of horizontal lines; a value of None is left out
    from_zero  whether the vertical axis contains 0
    """
    lines = [line for line in lines if any(_finite(p) for p in line.points)]
    if not lines:
        return None
    shown = [(value, name) for value, name in levels if value is not None and math.isfinite(value)]
    points = [p for line in lines for p in line.points if _finite(p)]
    x_axis = Axis.over([x for line in lines for x in _reach(line)], LEFT, WIDTH - RIGHT)
    heights = [y for _, y in points] + [value for value, _ in shown] + ([0.0] if from_zero else [])
    y_axis = Axis.over(heights, HEIGHT - BOTTOM, TOP, rounded=True)
    rows, more = _table(lines)
    return Chart(
        title, x_label, y_label, note, x_axis.ticks(), y_axis.ticks(),
        [_drawn(line, line.color or i % COLORS + 1, x_axis, y_axis) for i, line in enumerate(lines)],
        [{"y": y_axis.place(value), "name": name} for value, name in shown],
        [x_label, *(line.name for line in lines)], rows, more,
    )  # fmt: skip


def histogram(
    title: str, values: Mapping[str, Sequence[float]], x_label: str, y_label: str, note: str = ""
) -> Chart | None:
    """A histogram of each set of values, over the same bins; None without finite values."""
    finite = {name: np.array([v for v in each if math.isfinite(v)]) for name, each in values.items()}
    together = np.concatenate(list(finite.values())) if finite else np.empty(0)
    if not len(together):
        return None
    edges = np.histogram_bin_edges(together, bins=min(BINS, max(3, len(together) // 4)))
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    lines = [
        Line(name, list(zip(middles, np.histogram(each, edges)[0].astype(float).tolist(), strict=True)), "bars")
        for name, each in finite.items()
    ]
    return chart(title, lines, x_label, y_label, note=note)


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: int
    end: int

    @classmethod
    def over(cls, values: Sequence[float], start: int, end: int, rounded: bool = False) -> Axis:
        """The axis that holds all values; `rounded` lets it end on its numbers."""
        low, high = min(values), max(values)
        if high == low:
            margin = abs(low) / 10 or 0.5
            low, high = low - margin, high + margin
        if rounded:
            step = _step(low, high)
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(low, high, start, end)

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of round numbers within the axis."""
        step = _step(self.low, self.high)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(self.place(i * step), number(i * step)) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number with as many digits as a reader needs: 12,000, 0.744, 3.1e-05."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten: about TICKS of them from low to high."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999))


def _reach(line: Line) -> list[float]:
    """The places that a line takes on the horizontal axis; a bar reaches half of its width to both sides."""
    places = [x for x, y in line.points if _finite((x, y))]
    half = (places[1] - places[0]) / 2 if line.kind == "bars" and len(places) > 1 else 0.0
    return [x + side for x in places for side in ((-half, half) if half else (0.0,))]


def _finite(point: Point) -> bool:
    return all(math.isfinite(value) for value in point)


def _drawn(line: Line, color: int, x_axis: Axis, y_axis: Axis) -> dict[str, Any]:
    """A line in the units of the SVG."""
    places = [(x_axis.place(x), y_axis.place(y)) if _finite((x, y)) else None for x, y in line.points]
    known = [(point, place) for point, place in zip(line.points, places, strict=True) if place is not None]
    marked = known if line.mark or line.kind in ("dots", "dashed") or len(known) == 1 else []
    shape = SHAPES[line.mark or "circle"]
    stride = max(1, -(-len(known) // HOVERED))
    return {
        "name": line.name,
        "color": color,
        "dashed": line.kind == "dashed",
        "path": _path(line, places, y_axis),
        "marks": [f"M{x} {y}{shape}" for _, (x, y) in marked],
        "key": f"M{KEY[0] / 2} {KEY[1] / 2}{shape}" if marked else "",
        "hover": [
            {"x": x, "y": y, "text": f"{line.name}: {number(value)} at {number(at)}"}
            for (at, value), (x, y) in known[::stride]
        ],
    }


def _path(line: Line, places: Sequence[tuple[float, float] | None], y_axis: Axis) -> str:
    if line.kind == "dots":
        return ""
    return _outline(places, y_axis) if line.kind == "bars" else _joined(places)


def _joined(places: Sequence[tuple[float, float] | None]) -> str:
    """The path through the places, with a new start after each gap."""
    path, pen = "", "M"
    for place in places:
        if place is not None:
            path += f"{pen}{place[0]} {place[1]}"
        pen = "M" if place is None else "L"
    return path


def _outline(places: Sequence[tuple[float, float] | None], y_axis: Axis) -> str:
    """The outline of bars over the places, which are equally far from each other."""
    known = [place for place in places if place is not None]
    half = (known[1][0] - known[0][0]) / 2 if len(known) > 1 else 4.0
    ground = y_axis.place(0.0)
    bars = "".join(f"L{x - half:.1f} {y}L{x + half:.1f} {y}" for x, y in known)
    return f"M{known[0][0] - half:.1f} {ground}{bars}L{known[-1][0] + half:.1f} {ground}"


def _table(lines: Sequence[Line]) -> tuple[list[list[str]], str]:
    """A row for each x that a line has, at most ROWS of them evenly spaced, and what is left out."""
    columns = [dict(line.points) for line in lines]
    places = sorted({x for column in columns for x in column})
    stride = max(1, -(-len(places) // ROWS))
    rows = [
        [number(x), *(number(column[x]) if x in column and math.isfinite(column[x]) else "" for column in columns)]
        for x in places[::stride]
    ]
    return rows, f"Every {stride}th of {len(places):,} values." if stride > 1 else ""
