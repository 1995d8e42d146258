"""The figure of a study: improvement in rewarded against never-seen networks, with recall as colour."""

from __future__ import annotations

from collections.abc import Sequence

from sit_rl.runs.figure_files import png, pyplot
from sit_rl.runs.summary import SAMPLERS
from sit_rl.study.results import Line

SMALL, LARGE = 22, 90  # areas of a run's point and of a row's mean, square points
LEAST_SPAN = 0.02  # change of recall at the ends of the colours, at least: less is noise


def draw(lines: Sequence[Line]) -> bytes:
    """PNG with one panel a sampler: small points are runs, large ones with numbers are the rows' means.

    A row on the diagonal gains as much in networks that it never saw as in those that reward it.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), sharex=True, sharey=True, constrained_layout=True)
    recalls = [abs(f.qualities["recall"][s] or 0.0) for line in lines for f in line.found for s in SAMPLERS]
    span = max([LEAST_SPAN, *recalls])
    colours = {"cmap": "RdYlBu", "vmin": -span, "vmax": span, "edgecolors": "black", "linewidths": 0.5}
    points = None
    for axis, sampler in zip(axes, SAMPLERS, strict=True):
        for number, line in enumerate(lines, 1):
            runs = [(f.rewarded[sampler], f.unseen[sampler], f.qualities["recall"][sampler]) for f in line.found]
            known = [(-100 * a, -100 * b, c or 0.0) for a, b, c in runs if a is not None and b is not None]
            if not known:
                continue
            x, y, c = zip(*known, strict=True)
            axis.scatter(x, y, c=c, s=SMALL, alpha=0.6, **colours)
            centre = [sum(values) / len(values) for values in (x, y, c)]
            points = axis.scatter(centre[:1], centre[1:2], c=centre[2:], s=LARGE, **colours)
            axis.annotate(str(number), centre[:2], xytext=(6, 5), textcoords="offset points", fontsize=9)
        axis.axline((0, 0), slope=1, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="improvement of FD in rewarded networks, %", title=sampler.upper())
    axes[0].set(ylabel="improvement of FD in never-seen networks, %")
    if points is not None:
        figure.colorbar(points, ax=axes, label="change of recall")
    names = [f"{i} {line.row.name}".replace("$", r"\$") for i, line in enumerate(lines, 1)]
    figure.supxlabel(_wrapped(names), fontsize=8)
    return png(figure)


def _wrapped(names: Sequence[str], width: int = 150) -> str:
    """Names side by side in lines of at most `width` characters where they fit."""
    lines = [""]
    for name in names:
        joined = f"{lines[-1]}   {name}".strip()
        if len(joined) > width and lines[-1]:
            lines.append(name)
        else:
            lines[-1] = joined
    return "\n".join(lines)
