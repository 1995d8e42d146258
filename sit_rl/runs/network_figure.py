"""Rewarded against never-seen networks over a run: the figure, the table on the terminal, and the gap in words.

What the rewarded networks gain and the others do not is over-optimisation: the images fit those networks, and are no
closer to real ones.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastfid.pages.charts import SHAPES
from sit_rl.runs.columns import GROUPS, columns
from sit_rl.runs.figure_files import COLD, WARM
from sit_rl.runs.summary import SAMPLERS, percent, relative_change, sampler_kinds

Colour = TypeVar("Colour", int, str)
# Names of the marks in matplotlib.
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}
# A gap that changed by less, of the first FD, is called steady: FD of 500 images moves by some percent between draws.
STEADY = 0.05
CHANGES = ("precision", "recall", "coverage", "sliced_w2")  # columns of relative changes after FD's
HEAD = ("FD before", "after", "change", "× real", "precision", "recall", "coverage", "sliced W₂")
Point = tuple[int, dict[str, float]]  # a step, and FD by network


def network_groups(summary: Mapping[str, Any]) -> dict[str, bool]:
    """Name → whether it was rewarded, of a run's networks; empty for a summary of an earlier version."""
    before = summary["before"]["ode"].get("networks") or {}
    return {name: scores["rewarded"] for name, scores in before.items()}


def line_styles(groups: Mapping[str, bool], colours: Mapping[bool, Sequence[Colour]]) -> dict[str, tuple[Colour, str]]:
    """Name → colour and mark of its line: no two alike among the first 16 networks of a group."""
    shapes = list(SHAPES)
    styles = {}
    for rewarded, family in colours.items():
        for i, name in enumerate(name for name, group in groups.items() if group == rewarded):
            styles[name] = family[i % len(family)], shapes[(i + i // len(family)) % len(shapes)]
    return styles


def network_rows(summary: Mapping[str, Any], sampler: str) -> list[list[str]]:
    """A row for each network under `sampler`: its FD before and after, and the change of every score.

    Columns: name, group, FD before, FD after, change, FD as a multiple of real images', changes of CHANGES.
    """
    before, after = (summary[when][sampler].get("networks") or {} for when in ("before", "after"))
    return [
        [
            name,
            GROUPS[rewarded],
            _number(before[name]["fd"]),
            _number(after[name]["fd"]),
            percent(relative_change(before[name]["fd"], after[name]["fd"])),
            _number(after[name]["fdr"], 1),
            *(percent(relative_change(before[name][key], after[name][key])) for key in CHANGES),
        ]
        for name, rewarded in network_groups(summary).items()
    ]


def network_table(summary: Mapping[str, Any]) -> str:
    """Aligned text of the rows of both samplers; empty for a summary of an earlier version."""
    if not network_groups(summary):
        return ""
    rows: list[list[str]] = []
    for sampler, kind in zip(SAMPLERS, sampler_kinds(dict(summary)), strict=True):
        rows += [[kind, "", *HEAD], *network_rows(summary, sampler)]
    return "\n".join(columns(rows, words=2))


def gap_in_words(summary: Mapping[str, Any], records: list[dict[str, Any]]) -> str:
    """How far the rewarded networks are ahead of the others at the end, and whether the gap grew on the way."""
    groups = set(network_groups(summary).values())
    if groups == {True, False}:
        kinds = zip(SAMPLERS, sampler_kinds(dict(summary)), strict=True)
        return "\n".join(_gap_of_sampler(summary, records, *each) for each in kinds)
    return "Over-optimisation is unknown: every network that judged was rewarded." if groups else ""


def _gap_of_sampler(summary: Mapping[str, Any], records: list[dict[str, Any]], sampler: str, kind: str) -> str:
    before, after = (
        (step, {name: scores["fd"] for name, scores in summary[when][sampler]["networks"].items()})
        for step, when in ((0, "before"), (summary["config"]["steps"], "after"))
    )
    gains = {rewarded: _mean(summary, before, after, rewarded) for rewarded in GROUPS}
    text = (
        f"{kind}: FD changed by {percent(gains[True] - 1)} in the rewarded networks and by {percent(gains[False] - 1)} "
        f"in those that the reward never saw; the gap is {_points(gains[False] - gains[True])}"
    )
    points = curve(summary, records, sampler)
    if len(points) < 3:
        return f"{text}."
    start, *later = points
    gaps = [_mean(summary, start, point, False) - _mean(summary, start, point, True) for point in later]
    grown, since = gaps[-1] - gaps[0], f"since step {later[0][0]}, when it was {_points(gaps[0])}"
    if abs(grown) < STEADY:
        return f"{text}; it has changed by less than {STEADY:.0%} of the first FD {since}."
    return f"{text}; it has {'grown' if grown > 0 else 'shrunk'} {since}."


def curve(summary: Mapping[str, Any], records: list[dict[str, Any]], sampler: str) -> list[Point]:
    """FD of every network at each evaluation of a run, on the same number of images from the same noise."""
    ends = [summary[when][sampler].get("first_images") for when in ("before", "after")]
    if None in ends:
        return []
    way = [(r["step"] + 1, r["evaluation"][sampler].get("networks")) for r in records if r.get("evaluation")]
    found = [(0, ends[0]["networks"]), *way, (summary["config"]["steps"], ends[1]["networks"])]
    return [(step, {name: s["fd"] for name, s in networks.items()}) for step, networks in found if networks]


def draw_networks(summary: Mapping[str, Any], records: list[dict[str, Any]]) -> bytes | None:
    """PNG: FD of each network relative to the base model's, over the run; None without several evaluations."""
    from matplotlib.figure import Figure

    curves = {sampler: curve(summary, records, sampler) for sampler in SAMPLERS}
    groups = network_groups(summary)
    if not all(curves.values()) or not groups:
        return None
    figure = Figure(figsize=(9, 3.8))
    panels = figure.subplots(1, 2, sharey=True)
    styles = line_styles(groups, {True: COLD, False: WARM})
    for axes, sampler, kind in zip(panels, SAMPLERS, sampler_kinds(dict(summary)), strict=True):
        points = curves[sampler]
        steps, first = [step for step, _ in points], points[0][1]
        for name, rewarded in sorted(groups.items(), key=lambda item: not item[1]):  # rewarded ones first
            label = f"{name}, {GROUPS[rewarded]}".replace("$", r"\$")  # not as a formula
            heights = [fds[name] / first[name] for _, fds in points]
            colour, shape = styles[name]
            axes.plot(steps, heights, "-" if rewarded else "--", marker=MARKERS[shape], color=colour, ms=4, label=label)
        axes.axhline(1, color="black", lw=0.6)
        images = summary["before"][sampler]["first_images"]["images"]
        axes.set(xlabel="training step", title=f"{kind}, {images} images", ylim=(0, None))
    panels[0].set_ylabel("FD / FD of the base model")
    panels[0].legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _mean(summary: Mapping[str, Any], start: Point, point: Point, rewarded: bool) -> float:
    """Mean FD of a group's networks, each in units of its first."""
    names = [name for name, group in network_groups(summary).items() if group == rewarded]
    return statistics.mean(point[1][name] / start[1][name] for name in names)


def _points(gap: float) -> str:
    points = round(gap * 100) + 0
    return f"{points} point{'' if abs(points) == 1 else 's'}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
