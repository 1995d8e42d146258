"""The report of an evaluation as one self-contained HTML file.

It shows the scores with their intervals, some samples beside some real images, the distance against the number of
samples, precision and recall within each class, the samples that change the Fréchet distance most when they are left
out, also class by class, the nearest real images of some samples, and the whole provenance.  The pictures are read
again from their sources and embedded.

The design is that of fastfid/pages; the layout is in templates/report.html.jinja.  The template escapes every value,
because names of files are not to be trusted.  This module prepares what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastfid.evaluation.results import EvaluationResult, Json, Score, left_out_lines, worst_first
from fastfid.images.source import ImageSource
from fastfid.pages.charts import Chart, Line, chart
from fastfid.pages.pictures import grid, png
from fastfid.pages.templates import template
from fastfid.runtime.atomic_files import write_atomically

PICTURE_SIDE = 192  # pixels of an embedded picture's longer side: twice what is shown, for screens of high resolution
GRID_IMAGES, GRID_COLUMNS = 60, 10  # of each side, drawn by chance
GRID_SEED = 0  # of that draw, so that a report can be repeated
CLASSES_WITH_PICTURES = 20  # most classes whose worst images are shown; the JSON has all
# Axis of the whiskers: an interval's ends relative to the score.  It is linear near 0 and logarithmic beyond SMALL, so
# that intervals of 0.2% and of 200% are both visible and look different.
AXIS, SMALL, LARGE = 200, 0.005, 1.0
AXIS_TICKS = (-1.0, -0.1, -0.01, 0.01, 0.1, 1.0)

# What is written beside a score's name.
BETTER = {
    **dict.fromkeys(
        ("fd", "fdr", "sfid", "fd_infinity", "kid", "mmd", "cmmd", "sliced_wasserstein"), "↓ lower is better"
    ),
    **dict.fromkeys(("is", "precision", "recall", "density", "coverage"), "↑ higher is better"),
}

# Key of the outliers → verb of the heading, colour of the numbers, note.
OUTLIERS = {
    "hurt": ("hurt", "worse", "The number below an image tells by how much the distance falls without it."),
    "help": ("help", "good", "The number below an image tells by how much the distance rises without it."),
}


def write_report(result: EvaluationResult, path: str | Path) -> Path:
    """Write the report of `result` to `path`, whole or not at all, and return the path."""
    page = report_html(result)
    write_atomically(path, lambda file: file.write(page.encode("utf-8", "backslashreplace")))  # names of files
    return Path(path)


def report_html(result: EvaluationResult) -> str:
    """The whole document."""
    known = result.provenance
    return template("fastfid.evaluation", "report.html.jinja").render(
        title=f"{known['samples']['name']} against {known['real']['name']}",
        refresh=0,
        words=_words(result),
        facts=_facts(known),
        warnings=result.warnings,
        scores=[_score(result, score) for score in result.scores],
        left_out=left_out_lines(result.left_out),
        grids=_grids(result),
        charts=_charts(result),
        classes=[_classes(result, network) for network in _networks(result.classes)],
        outliers=[section for found in result.outliers for section in _outliers(result, found)],
        class_outliers=[_class_outliers(result, found) for found in result.outliers if found["classes"]],
        neighbours=[_neighbours(result, network) for network in _networks(result.neighbours)],
        command=known["command"],
        settings=[(name, "default" if value is None else value) for name, value in known["settings"].items()],
        json=result.to_json(indent=1),
    )


def _networks(entries: Iterable[Json]) -> list[str]:
    """The networks of the entries, each once, in their order."""
    return list(dict.fromkeys(entry["network"] for entry in entries))


# --- sections ----------------------------------------------------------------------------------------------------


def _words(result: EvaluationResult) -> list[str]:
    """A sentence for the Fréchet distance in each network."""
    sentences = []
    for score in result.scores:
        if score.metric == "fd":
            interval = f", 95% interval {_interval(score.interval)}" if score.interval else ""
            sentences.append(f"{score.label} is {score.value:.5g}{interval}.")
    return sentences


def _facts(known: Json) -> list[tuple[str, str]]:
    """Name and text of each line at the top: both sides, networks, protocol."""
    facts = [
        (name, f"{known[role]['count'] or 'unknown number of'} images, {known[role]['name']}")
        for role, name in (("samples", "samples"), ("real", "real images"))
    ]
    for network in known["networks"]:
        weights = (network["weights_sha256"] or "unknown")[:12]
        facts.append(("network", f"{network['name']}, d = {network['dim']}, weights {weights}"))
        facts.append(("preprocessing", network["preprocessing"] or "unknown"))
    protocol = known["protocol"]
    facts.append(("protocol", f"{protocol['name']} ({protocol['source']})"))
    return facts + [(name, known[name]) for name in ("version", "commit", "date", "torch", "device") if known[name]]


def _score(result: EvaluationResult, score: Score) -> Json:
    """A row of the table of scores."""
    return {
        "label": result.label(score),
        "better": BETTER[score.metric],
        "value": f"{score.value:.5g}",
        "interval": _interval(score.interval),
        "whisker": _whisker(score),
        "method": score.method,
    }


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def _whisker(score: Score) -> Json | None:
    """The interval relative to the score, on the axis of all whiskers."""
    if score.interval is None or score.value == 0:
        return None
    low, high = sorted((end - score.value) / abs(score.value) for end in score.interval)
    return {
        "label": f"{low:+.2%} to {high:+.2%}",
        "low": _place(low),
        "high": _place(high),
        "ticks": [_place(tick) for tick in AXIS_TICKS],
    }


def _place(share: float) -> float:
    """Where a relative deviation is drawn; the widest that the axis has room for is 10 times LARGE."""
    part = math.asinh(share / SMALL) / math.asinh(10 * LARGE / SMALL)
    return round(AXIS / 2 * (1 + max(-1.0, min(1.0, part))), 1)


def _charts(result: EvaluationResult) -> list[Chart]:
    """The Fréchet distance against the number of samples, of each network whose FD∞ was computed."""
    drawn = []
    for score in result.scores:
        if score.metric == "fd_infinity":
            sizes, distances, slope = (score.details[name] for name in ("sizes", "distances", "slope"))
            line = [(n, score.value + slope / n) for n in np.linspace(sizes[0], sizes[-1], 40).round().tolist()]
            drawn.append(
                chart(
                    f"{score.label.replace('∞', '')} against the number of samples",
                    [Line("subsets", list(zip(sizes, distances, strict=True)), "dots"), Line("line in 1/N", line)],
                    "samples",
                    "distance",
                    levels=[(score.value, f"{score.label}: {score.value:.4g}")],
                    note="A distance of few images is too large. The level is the estimate for infinitely many.",
                    from_zero=False,
                )
            )
    return [each for each in drawn if each is not None]


def _classes(result: EvaluationResult, network: str) -> Json:
    """The table of the classes in one network, the worst classes first."""
    entries = worst_first([entry for entry in result.classes if entry["network"] == network])
    return {"network": network, "nearest_k": entries[0]["nearest_k"], "entries": entries}


def _outliers(result: EvaluationResult, found: Json) -> list[Json]:
    """A section for the samples that hurt most and one for those that help most, where there are any."""
    source = result.sources.get("samples")
    return [
        {
            "network": found["network"],
            "verb": verb,
            "note": note,
            "figures": [_figure(source, entry, _change(entry), kind) for entry in found[end]],
        }
        for end, (verb, kind, note) in OUTLIERS.items()
        if found[end]
    ]


def _class_outliers(result: EvaluationResult, found: Json) -> Json:
    """The samples of each class that hurt most, of the classes with the worst samples."""
    source, shown = result.sources.get("samples"), found["classes"][:CLASSES_WITH_PICTURES]
    return {
        "network": found["network"],
        "more": len(found["classes"]) - len(shown),
        "rows": [
            (entry["class"], [_figure(source, each, _change(each), "worse") for each in entry["hurt"]])
            for entry in shown
        ],
    }


def _change(entry: Json) -> str:
    """How far the distance moves without the image; its direction is in the section's note."""
    return f"{abs(entry['change_if_left_out']):.3g}"


def _neighbours(result: EvaluationResult, network: str) -> Json:
    """A row for each sample: the sample, then its nearest real images."""
    samples, real = result.sources.get("samples"), result.sources.get("real")
    rows = [
        {
            "sample": _figure(samples, entry, "sample"),
            "nearest": [_figure(real, near, f"{near['distance']:.4g}") for near in entry["nearest"]],
        }
        for entry in result.neighbours
        if entry["network"] == network
    ]
    return {"network": network, "rows": rows}


# --- pictures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One picture with a number and its name below it.

    png      base64 of a PNG; None where there is no picture to show
    problem  why the picture cannot be shown, or None
    kind     class of the number in the style sheet
    """

    number: str
    name: str
    kind: str
    png: str | None = None
    problem: str | None = None


def _figure(source: ImageSource | None, entry: Json, number: str, kind: str = "") -> Figure:
    """The picture of the entry {index, name}, without one where there are no images."""
    if source is None:
        return Figure(number, entry["name"], kind)
    try:
        return Figure(number, entry["name"], kind, png=png(_pixels(source.image(entry["index"])), PICTURE_SIDE))
    except (ValueError, OSError) as error:
        return Figure(number, entry["name"], kind, problem=f"{error}")


def _grids(result: EvaluationResult) -> Json | None:
    """Samples beside real images, drawn by chance; None unless both sides can be read again."""
    sides = [_grid(result.sources.get(role)) for role in ("samples", "real")]
    if not all(sides):
        return None
    samples, real = sides
    return {"samples": {"name": "samples", "png": samples}, "real": {"name": "real images", "png": real}}


def _grid(source: ImageSource | None) -> str | None:
    """Some images of a source in one picture; None if they cannot be read."""
    if source is None:
        return None
    count = min(GRID_IMAGES, len(source))
    rows = np.random.default_rng(GRID_SEED).choice(len(source), count, replace=False)
    try:
        return grid([_pixels(source.image(int(row))) for row in sorted(rows)], GRID_COLUMNS)
    except (ValueError, OSError):  # the files are gone; the figures below say which
        return None


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    """uint8 [C, H, W] → [H, W] or [H, W, 3]."""
    pixels: npt.NDArray[np.uint8] = (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()
    return pixels
