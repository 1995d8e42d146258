"""Results of an evaluation and of a difference, and their text and JSON.

Schema "fastfid.evaluation/2" of `EvaluationResult.to_json`.  The order of keys is fixed; an unknown value is null.

    schema, version, commit, command, date, torch, device, protocol {name, source}, settings {…},
    seconds {features, metrics}
    samples, real  {name, count, images, source_sha256, skipped: [sentence]}
    networks    [{name, dim, preprocessing, weights_sha256}]
    scores      [{metric, label, network, value, standard_error, interval: [low, high], method, details {…}}]
    classes     [{network, class, samples, real, nearest_k, inclusive, precision, precision_interval, recall,
                recall_interval, density, coverage}], where both sides have labels
    left_out    [{metric, network, reason}]
    warnings    [sentence]
    outliers    [{network, hurt: [{index, name, change_if_left_out}], help: [the same],
                classes: [{class, hurt: [the same]}], where the samples have labels}]
    neighbours  [{network, index, name, nearest: [{index, name, distance}]}]

"fastfid.difference/2" of `DifferenceResult.to_json` has the fields of that class, and beside its schema what
`fastfid.runtime.version_commit_date` records, as all results have.  The number of a schema grows when a
key is removed or changes its meaning, not when one is added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container
from dataclasses import asdict, dataclass, field
from typing import Any

from fastfid.images.source import ImageSource
from fastfid.protocols import HIGHER_IS_BETTER
from fastfid.runtime.terminal import printable

Json = dict[str, Any]  # plain containers of strings, numbers and None, by the names of a schema
Details = dict[str, Any]  # of a score: what is needed to repeat it

SCHEMA = "fastfid.evaluation/2"
DIFF_SCHEMA = "fastfid.difference/2"
# What a result records of its origin, by `fastfid.runtime.version_commit_date`.
ORIGIN = ("version", "commit", "command", "date", "torch", "device")
REAL = "real images"  # what the side with the key "real" is called wherever it is shown
CLASSES_SHOWN = 20  # most rows of the text table of classes, the worst ones; JSON and HTML have all


@dataclass(frozen=True)
class Score:
    """One number with its name, network and interval, and how both were computed.

    metric          key, e.g. "fd"
    label           name to print, e.g. "FID" or "FD (fashion-a)"
    value           float
    standard_error  float or None
    interval        (low, high) at 95%, or None
    method          one sentence
    details         what is needed to repeat it: numbers and strings
    """

    metric: str
    label: str
    network: str
    value: float
    standard_error: float | None = None
    interval: tuple[float, float] | None = None
    method: str = ""
    details: Details = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A metric that was not computed, and why."""

    metric: str
    network: str
    reason: str


@dataclass
class EvaluationResult:
    """Scores of one set of samples against one set of real images, with provenance; `result["fd"]` is a Score.

    scores            metrics that were computed
    left_out          metrics that were not, and why
    warnings          sentences about anything repaired, skipped or forced
    classes           per network and class: precision and recall within the class
    outliers          per network: images whose absence would lower (hurt) or raise (help) the FD most
    neighbours        per network: nearest real images of some samples
    provenance        samples, real, networks, protocol, settings, version, seconds
    sources           role → open images, for the pictures of the report
    """

    scores: list[Score]
    left_out: list[LeftOut]
    warnings: list[str]
    classes: list[Json]
    outliers: list[Json]
    neighbours: list[Json]
    provenance: Json
    sources: dict[str, ImageSource] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, key: str | tuple[str, str]) -> Score:
        """The score of a metric, or of (metric, network) among several networks; KeyError with the reason."""
        metric, network = key if isinstance(key, tuple) else (key, None)
        for score in self.scores:
            if score.metric == metric and network in (None, score.network):
                return score
        for left in self.left_out:
            if left.metric == metric and network in (None, left.network):
                raise KeyError(f"{metric} was left out: {left.reason}")
        raise KeyError(f"{metric} was not asked for; computed: {', '.join(s.metric for s in self.scores)}")

    def label(self, score: Score) -> str:
        """Name of a score to print, with its network."""
        return score.label if score.network in score.label else f"{score.label} ({score.network})"

    def to_dict(self) -> Json:
        """Everything as plain containers, by the names of the versioned schema."""
        return {
            "schema": SCHEMA,
            **self.provenance,
            "scores": [asdict(score) for score in self.scores],
            "classes": self.classes,
            "left_out": [asdict(left) for left in self.left_out],
            "warnings": self.warnings,
            "outliers": self.outliers,
            "neighbours": self.neighbours,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as strict JSON, in which numbers that are not finite become null."""
        return json.dumps(_plain(self.to_dict()), indent=indent, allow_nan=False)

    def table(self) -> str:
        """Scores, intervals, classes, what was left out and warnings as aligned text; ↑ where higher is better."""
        rows = [[f"{self.label(s)} {arrow(s.metric)}", f"{s.value:.6g}", _interval_text(s)] for s in self.scores]
        lines = _provenance_lines(self.provenance) + _aligned(rows, right=(1,))
        for network in dict.fromkeys(entry["network"] for entry in self.classes):
            lines += _class_lines([entry for entry in self.classes if entry["network"] == network])
        lines += [f"left out: {line}" for line in left_out_lines(self.left_out)]
        return _text(lines + [f"warning: {warning}" for warning in self.warnings])


@dataclass
class DifferenceResult:
    """FD(A) − FD(B) against one set of real images with its 95% jackknife interval; below zero, A is nearer.

    label, network        name of the distance and of the network
    a, b                  both distances
    difference            a − b
    standard_error        of the difference
    interval              (low, high) at 95%
    better                "A" or "B" where the interval excludes zero, else None
    method                one sentence
    warnings, provenance  as in EvaluationResult; the sides are A, B and real
    """

    label: str
    network: str
    a: float
    b: float
    difference: float
    standard_error: float
    interval: tuple[float, float]
    better: str | None
    method: str
    warnings: list[str]
    provenance: Json

    def to_dict(self) -> Json:
        """Everything as plain containers, by the names of the versioned schema."""
        told = {name: self.provenance[name] for name in ORIGIN if name in self.provenance}
        return {"schema": DIFF_SCHEMA, **told, **asdict(self)}

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as strict JSON, in which numbers that are not finite become null."""
        return json.dumps(_plain(self.to_dict()), indent=indent, allow_nan=False)

    def table(self) -> str:
        """The two distances, their difference, and the verdict as text."""
        low, high = self.interval
        verdict = (
            f"{self.better} is nearer to the {REAL}"
            if self.better
            else "no difference can be told from chance: the interval contains 0"
        )
        return _text([
            *_provenance_lines(self.provenance),
            f"{self.label} of A  {self.a:.6g}",
            f"{self.label} of B  {self.b:.6g}",
            f"A - B  {self.difference:+.6g}  95% interval {low:+.4g} to {high:+.4g} ({self.method})",
            verdict,
            *(f"warning: {warning}" for warning in self.warnings),
        ])  # fmt: skip


def arrow(metric: str) -> str:
    """↑ where a higher value is better, ↓ where a lower one is."""
    return "↑" if metric in HIGHER_IS_BETTER else "↓"


def left_out_lines(left_out: list[LeftOut]) -> list[str]:
    """A line for each reason, with the metrics that were left out for it."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for left in left_out:
        grouped.setdefault((left.network, left.reason), []).append(left.metric)
    return [f"{', '.join(metrics)} ({network}): {reason}" for (network, reason), metrics in grouped.items()]


def worst_first(classes: list[Json]) -> list[Json]:
    """Entries of `EvaluationResult.classes` by the lower of precision and recall, ascending."""
    return sorted(classes, key=lambda entry: (min(entry["precision"], entry["recall"]), entry["class"]))


# --- text --------------------------------------------------------------------------------------------------------


def _text(lines: list[str]) -> str:
    """The lines as one text; a name of a file in them neither breaks a line nor commands a terminal."""
    return "\n".join(printable(line, kept="") for line in lines)


def _class_lines(classes: list[Json]) -> list[str]:
    """The classes of one network as a table."""
    first = classes[0]
    rows = [["class", "samples", "real", "precision", "recall", "density", "coverage"]]
    for entry in worst_first(classes)[:CLASSES_SHOWN]:
        rows.append([entry["class"], str(entry["samples"]), str(entry["real"])])
        for name in ("precision", "recall"):
            rows[-1].append(f"{entry[name]:.3f} ({' to '.join(f'{x:.3f}' for x in entry[f'{name}_interval'])})")
        rows[-1] += [f"{entry['density']:.3f}", f"{entry['coverage']:.3f}"]
    more = len(classes) - CLASSES_SHOWN
    return [
        f"within each class ({first['network']}), k = {first['nearest_k']}, worst first; 95% intervals with the "
        "balls taken as fixed",
        *_aligned(rows, right=range(1, 7)),
        *([f"and {more} classes more in --json and --html"] if more > 0 else []),
    ]


def _aligned(rows: list[list[str]], right: Container[int]) -> list[str]:
    """The rows as lines of columns, flush left except the columns in `right`."""
    if not rows:
        return []
    columns = [(i in right, max(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    return ["  ".join(map(_padded, row, columns)).rstrip() for row in rows]


def _padded(cell: str, column: tuple[bool, int]) -> str:
    """The cell as wide as its column, given as (flush right, width)."""
    flush_right, width = column
    return cell.rjust(width) if flush_right else cell.ljust(width)


def _provenance_lines(provenance: Json) -> list[str]:
    """Networks, sides and protocol, a line each."""
    lines = [
        f"network {n['name']}, d = {n['dim']}, weights {(n['weights_sha256'] or 'unknown')[:12]}, "
        f"preprocessing: {n['preprocessing'] or 'unknown'}"
        for n in provenance["networks"]
    ]
    for role in ("samples", "A", "B", "real"):
        if role in provenance:
            side = provenance[role]
            name = REAL if role == "real" else role
            lines.append(f"{name}: {side['count'] or 'unknown number of'} images, {side['name']}")
    return [*lines, f"protocol {provenance['protocol']['name']}, {provenance['version']}"]


def _interval_text(score: Score) -> str:
    if score.interval is None:
        return f"({score.method})" if score.method else ""
    low, high = score.interval
    return f"95% {low:.6g} to {high:.6g} ({score.method})"


def _plain(value: Any) -> Any:
    """The value with lists for tuples and None for numbers that are not finite, which strict JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
