"""The report of an evaluation as one self-contained HTML file.

It shows the scores with their intervals, precision and recall within each class, the samples that change the Fréchet
distance most when they are left out, the nearest reference images of some samples, and the whole provenance.  The few
dozen pictures are read again from their sources and embedded.

The layout is in templates/report.html.jinja.  The template escapes every value, because names of files are not to be
trusted.  This module prepares what it shows.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from fastfid.evaluation.results import EvaluationResult, Json, Score, left_out_lines, worst_first
from fastfid.images.source import ImageSource
from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.templates import template

PICTURE_SIDE = 192  # pixels of an embedded picture's longer side: twice what is shown, for screens of high resolution
AXIS = 120  # width in CSS pixels of the axis that the template draws an interval on

# What is written beside a score's name.
BETTER = {
    **dict.fromkeys(("fd", "fdr", "sfid", "fd_infinity", "kid", "mmd", "sliced_wasserstein"), "lower is better"),
    **dict.fromkeys(("is", "precision", "recall", "density", "coverage"), "higher is better"),
}

# Key of the outliers → verb of the heading, colour of the numbers, note.
OUTLIERS = {
    "hurt": ("hurt", "worse", "Without the image the distance would fall by the number below it."),
    "help": ("help", "good", "Without the image the distance would rise by the number below it."),
}


def write_report(result: EvaluationResult, path: str | Path) -> Path:
    """Write the report of `result` to `path`, whole or not at all, and return the path."""
    page = report_html(result)
    write_atomically(path, lambda file: file.write(page.encode()))
    return Path(path)


def report_html(result: EvaluationResult) -> str:
    """The whole document."""
    known = result.provenance
    return template("fastfid.evaluation", "report.html.jinja").render(
        title=f"{known['samples']['name']} against {known['reference']['name']}",
        facts=_facts(known),
        warnings=result.warnings,
        scores=[_score(result, score) for score in result.scores],
        left_out=left_out_lines(result.left_out),
        classes=[_classes(result, network) for network in _networks(result.classes)],
        outliers=[section for found in result.outliers for section in _outliers(result, found)],
        neighbours=[_neighbours(result, network) for network in _networks(result.neighbours)],
        json=result.to_json(indent=1),
    )


def _networks(entries: Iterable[Json]) -> list[str]:
    """The networks of the entries, each once, in their order."""
    return list(dict.fromkeys(entry["network"] for entry in entries))


# --- sections ----------------------------------------------------------------------------------------------------


def _facts(known: Json) -> list[tuple[str, str]]:
    """Name and text of each line at the top: both sides, networks, protocol."""
    facts = [
        (role, f"{known[role]['count'] or 'unknown number of'} images, {known[role]['name']}")
        for role in ("samples", "reference")
    ]
    for network in known["networks"]:
        weights = (network["weights_sha256"] or "unknown")[:12]
        facts.append(("network", f"{network['name']}, d = {network['dim']}, weights {weights}"))
        facts.append(("preprocessing", network["preprocessing"] or "unknown"))
    protocol = known["protocol"]
    return [*facts, ("protocol", f"{protocol['name']} ({protocol['source']}), {known['version']}")]


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
    """The interval on an axis from 75% to 125% of the value; an end beyond the axis has no cap."""
    if score.interval is None or score.value == 0:
        return None
    middle, half = AXIS // 2, abs(score.value) / 4
    ends = [middle + (end - score.value) / half * middle for end in score.interval]
    return {
        "label": _interval(score.interval),
        "low": f"{max(ends[0], 0):.1f}",
        "high": f"{min(ends[1], AXIS):.1f}",
        "ends": [f"{end:.1f}" for end in ends if 0 <= end <= AXIS],
    }


def _classes(result: EvaluationResult, network: str) -> Json:
    """The table of the classes in one network, the worst classes first."""
    entries = worst_first([entry for entry in result.classes if entry["network"] == network])
    columns = ("samples", "reference", "precision", "recall", "density", "coverage")
    return {"network": network, "nearest_k": entries[0]["nearest_k"], "columns": columns, "entries": entries}


def _outliers(result: EvaluationResult, found: Json) -> list[Json]:
    """A section for the samples that hurt most and one for those that help most, where there are any."""
    source = result.sources.get("samples")
    return [
        {
            "network": found["network"],
            "verb": verb,
            "note": note,
            "figures": [_figure(source, entry, f"{entry['change_if_left_out']:+.3g}", kind) for entry in found[end]],
        }
        for end, (verb, kind, note) in OUTLIERS.items()
        if found[end]
    ]


def _neighbours(result: EvaluationResult, network: str) -> Json:
    """A row for each sample: the sample, then its nearest reference images."""
    samples, reference = result.sources.get("samples"), result.sources.get("reference")
    rows = [
        {
            "sample": _figure(samples, entry, "sample"),
            "nearest": [_figure(reference, near, f"{near['distance']:.4g}") for near in entry["nearest"]],
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
        return Figure(number, entry["name"], kind, png=_png(source.image(entry["index"])))
    except (ValueError, OSError) as error:
        return Figure(number, entry["name"], kind, problem=f"{error}")


def _png(image: Tensor) -> str:
    """uint8 [C, H, W] → base64 of a PNG of at most PICTURE_SIDE pixels a side."""
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
