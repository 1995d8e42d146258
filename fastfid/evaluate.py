"""One pass over the images, every metric, its uncertainty, and where it all came from.

    result = evaluate("samples/", "reference.npz")
    print(result.table()); result["fd"].interval; result.to_json()

Images are read once and go through each network once; all metrics follow from the features.

Uncertainty of a Fréchet distance.  SwapEngine.leave_one_out gives the exact change c_i of the distance when image i is
left out, for all of them at about the price of one distance.  The jackknife (Efron & Stein 1981) turns these into

    SE² = (N − 1)/N · Σ (c_i − mean c)²,      95% interval  FD ± 1.96 SE,

once over the samples and, where its features are known, once over the reference, whose squares add up.  It covers the
chance of which images were drawn.  Near the floor, where both sides come from one distribution, the linear part of the
distance vanishes and the jackknife errs on the wide side: by √2 for a squared mean, by 1.4 to 1.6 measured on 500 and
1,000 images of Fashion-MNIST against others; away from it, it agrees with the spread of repeated draws (tests).

It does not cover the bias of a finite N.  FD∞ estimates that: the line through FD_N against 1/N at 1/N = 0 (Chong &
Forsyth 2020, arXiv 1911.07023).  The jackknife's own estimate, (N − 1) mean c_i, is in the score's details.

A difference FD(A) − FD(B) against the same reference pairs what both share: leaving reference image j out changes both,
and only the difference of the two changes counts.

Legend: N samples, M reference images, d feature dimension.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastfid.cache import PROGRESS_DELAY, SHARD_IMAGES, FeatureCache, extract
from fastfid.extractors import NETWORK_NAMES, build_extractor
from fastfid.features import FeatureExtractor
from fastfid.frechet import frechet_distance, frechet_terms, prepare
from fastfid.images import ImageSource, open_images
from fastfid.kernel_distance import kid, mmd
from fastfid.moments import FeatureMoments
from fastfid.neighbours import prdc, precision_recall
from fastfid.protocols import DEFAULT_METRICS, Protocol, protocol_named
from fastfid.statistics import Statistics, check_comparable, holds_statistics, read_statistics, without_provenance
from fastfid.swap import SwapEngine

SCHEMA = "fastfid.evaluation/1"  # of EvaluationResult.to_dict(); the number grows when a key changes its meaning
DIFF_SCHEMA = "fastfid.difference/1"
NORMAL_95 = 1.959964  # 97.5% quantile of the standard normal

# Error of a leave-one-out change relative to the largest root eigenvalue: 10 times below the engine's default, since
# the jackknife looks at differences between changes that are themselves about FD/N.
LEAVE_ONE_OUT_TOL = 1e-7

INFINITY_POINTS = 15  # subset sizes of FD∞, as Chong & Forsyth take them
INFINITY_SMALLEST = 5000  # their smallest subset; a tenth of the images where there are fewer than 50,000
INFINITY_RANK = 2  # times d images at least in the smallest subset: below d the distance is not linear in 1/N

OUTLIERS = 12  # images listed at each end
NEIGHBOURS = 5  # nearest reference images listed for a sample
NEIGHBOUR_SAMPLES = 12  # samples they are listed for: a third each that hurt, that help, and evenly spaced
DISTANCE_ROWS = 512  # reference rows a block of the neighbour search

METRICS = DEFAULT_METRICS
UNKNOWN = "unknown network"  # of statistics that do not tell


# --- results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One number with its name, network, uncertainty and the words that say how both were computed.

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
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A metric that was not computed, and why."""

    metric: str
    network: str
    reason: str


@dataclass
class EvaluationResult:
    """Scores of one set of samples against one reference, with provenance; `result["fd"]` is a Score.

    scores, left_out  what was computed, and what was not and why
    warnings          sentences about anything repaired, skipped or forced
    outliers          per network: images whose absence would lower (hurt) or raise (help) the FD most
    neighbours        per network: nearest reference images of some samples
    provenance        samples, reference, networks, protocol, settings, version, seconds
    """

    scores: list[Score]
    left_out: list[LeftOut]
    warnings: list[str]
    outliers: list[dict]
    neighbours: list[dict]
    provenance: dict
    sources: dict = field(default_factory=dict, repr=False, compare=False)  # open images, for the report's pictures

    def __getitem__(self, key: str | tuple[str, str]) -> Score:
        """The score of a metric, or of (metric, network) where there are several networks; KeyError with the reason."""
        metric, network = key if isinstance(key, tuple) else (key, None)
        for score in self.scores:
            if score.metric == metric and network in (None, score.network):
                return score
        for left in self.left_out:
            if left.metric == metric and network in (None, left.network):
                raise KeyError(f"{metric} was left out: {left.reason}")
        raise KeyError(f"{metric} was not asked for; computed: {', '.join(s.metric for s in self.scores)}")

    def to_dict(self) -> dict:
        """Everything as plain containers, by the names of the versioned schema (`schema` names it)."""
        return {
            "schema": SCHEMA,
            **self.provenance,
            "scores": [asdict(score) for score in self.scores],
            "left_out": [asdict(left) for left in self.left_out],
            "warnings": self.warnings,
            "outliers": self.outliers,
            "neighbours": self.neighbours,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as strict JSON; numbers that are not finite become null."""
        return json.dumps(_plain(self.to_dict()), indent=indent, allow_nan=False)

    def table(self) -> str:
        """Scores, intervals, what was left out and warnings as aligned text."""
        rows = [[s.label, f"{s.value:.6g}", _interval_text(s)] for s in self.scores]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = _provenance_lines(self.provenance)
        lines += [f"{name.ljust(widths[0])}  {value.rjust(widths[1])}  {more}".rstrip() for name, value, more in rows]
        lines += [f"left out: {left.metric} ({left.network}): {left.reason}" for left in self.left_out]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


@dataclass
class DifferenceResult:
    """FD(A) − FD(B) against one reference, below zero if A is nearer, with its 95% jackknife interval.

    better  "A" or "B" where the interval excludes zero, else None
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
    provenance: dict

    def to_dict(self) -> dict:
        """Everything as plain containers, by the names of the versioned schema."""
        return {"schema": DIFF_SCHEMA, **asdict(self)}

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as strict JSON."""
        return json.dumps(_plain(self.to_dict()), indent=indent, allow_nan=False)

    def table(self) -> str:
        """The two distances, their difference, and the verdict as text."""
        low, high = self.interval
        verdict = (
            f"{self.better} is nearer to the reference"
            if self.better
            else "no difference can be told from the chance of drawing these images"
        )
        return "\n".join([
            *_provenance_lines(self.provenance),
            f"{self.label} of A  {self.a:.6g}",
            f"{self.label} of B  {self.b:.6g}",
            f"A - B  {self.difference:+.6g}  95% interval {low:+.4g} to {high:+.4g} ({self.method})",
            verdict,
            *(f"warning: {warning}" for warning in self.warnings),
        ])  # fmt: skip


# --- entry points ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How an evaluation is run; see `evaluate`."""

    weights: str | Path | dict | None = None
    device: str = "cpu"
    batch_size: int = SHARD_IMAGES
    cache: bool | str | Path = True
    skip_corrupt: bool = False
    force: bool = False
    value_range: tuple[float, float] | None = None
    kid_subset_size: int | None = None
    nearest_k: int | None = None
    seed: int = 2020
    progress: bool = False

    def open_cache(self) -> FeatureCache | None:
        """The cache of features that `cache` asks for."""
        return None if self.cache is False else FeatureCache(None if self.cache is True else self.cache)


def evaluate(
    samples,
    reference,
    *,
    metrics: Sequence[str] | None = None,
    features: str | FeatureExtractor | Sequence | None = None,
    protocol: str | Protocol | None = None,
    **settings,
) -> EvaluationResult:
    """Every metric of `samples` against `reference` that their contents allow.

    samples, reference  folder, .zip, .npz, .npy of images; a file of statistics or features (`read_statistics`); an
                        ImageSource, Statistics, FeatureMoments; a tensor or array of images, or of features [n, d]
    metrics             of METRICS; the protocol's unless given
    features            network name, FeatureExtractor, or several; what saved statistics record, else the protocol's
    protocol            name of fastfid.protocols, setting network, resizing and metric defaults together
    weights             None    path of the network's weights file, or {network: path} for several
    device              "cpu"   where the network runs
    batch_size          256     images a network sees at once
    cache               True    keep features under `cache_folder()`; False, or another folder
    skip_corrupt        False   leave unreadable images out, counted in the warnings, instead of stopping
    force               False   compare sides whose provenance differs, with a warning
    value_range         None    (0, 1) or (-1, 1), of float images in memory
    kid_subset_size     None    rows of a KID subset; the protocol's unless given
    nearest_k           None    neighbour of precision, recall, density, coverage; the protocol's unless given
    seed                2020    of KID's subsets, the Inception Score's order and FD∞'s subsets
    progress            False   bars on stderr for whatever takes over two seconds

    What cannot be computed is in `left_out` with the reason.  ValueError in one sentence for unfit input.
    """
    started = time.perf_counter()
    settings, chosen = Settings(**settings), protocol_named(protocol)
    metrics = _checked_metrics(metrics, chosen)
    sides = [_open(samples, "samples", settings), _open(reference, "reference", settings)]
    extractors = _extractors(features, chosen, sides, settings, spatial="sfid" in metrics)
    warnings: list[str] = []
    materials = _gather(sides, extractors, settings, warnings)
    read = time.perf_counter()
    scores, left_out, outliers, neighbours = [], [], [], []
    for mine, theirs in zip(*materials, strict=True):
        pair = _Pair(mine, theirs, chosen, settings)
        warnings += check_comparable(mine.as_statistics(), theirs.as_statistics(), settings.force)
        warnings += _few_images(mine, theirs)
        _score(pair, metrics, scores, left_out, warnings)
        if "outliers" in metrics and pair.sample_changes is not None:
            outliers.append(pair.outliers())
            neighbours += pair.neighbours()
    seconds = {"features": read - started, "metrics": time.perf_counter() - read}
    provenance = _provenance(materials, chosen, settings, seconds)
    opened = {side.role: side.images for side in sides if side.images is not None}
    return EvaluationResult(scores, left_out, warnings, outliers, neighbours, provenance, opened)


def diff(
    a,
    b,
    reference,
    *,
    features: str | FeatureExtractor | None = None,
    protocol: str | Protocol | None = None,
    same_noise: bool = False,
    **settings,
) -> DifferenceResult:
    """Is A nearer to the reference than B?  FD(A) − FD(B) with a 95% interval by the jackknife over all sides.

    a, b, reference  as in `evaluate`; a and b need features, the reference is treated as fixed if it has none
    same_noise       image i of A and image i of B were made from the same noise: they are left out together
    settings         as in `evaluate`
    """
    started = time.perf_counter()
    settings, chosen = Settings(**settings), protocol_named(protocol)
    sides = [_open(x, role, settings) for x, role in ((a, "A"), (b, "B"), (reference, "reference"))]
    extractor = _extractors(features, chosen, sides, settings, spatial=False)
    if len(extractor) > 1:
        raise ValueError(f"diff compares in one network, {len(extractor)} were given; call it once for each")
    warnings: list[str] = []
    first, second, third = (m[0] for m in _gather(sides, extractor, settings, warnings))
    for side in (first, second):
        if side.features is None:
            raise ValueError(f"{side.name} holds statistics only, and an interval needs its images; pass images")
        warnings += check_comparable(side.as_statistics(), third.as_statistics(), settings.force)
    pairs = [_Pair(side, third, chosen, settings) for side in (first, second)]
    variance, method = _difference_variance(pairs, same_noise)
    values = [pair.terms.total for pair in pairs]
    difference, error = values[0] - values[1], math.sqrt(variance)
    interval = (difference - NORMAL_95 * error, difference + NORMAL_95 * error)
    better = "A" if interval[1] < 0 else "B" if interval[0] > 0 else None
    provenance = _provenance(
        ([first], [third]), chosen, settings, {"total": time.perf_counter() - started}, {"A": first, "B": second}
    )
    label = _fd_label(first.network)
    return DifferenceResult(
        label, first.network, *values, difference, error, interval, better, method, warnings, provenance
    )


def _difference_variance(pairs: list[_Pair], same_noise: bool) -> tuple[float, str]:
    """Jackknife variance of FD(A) − FD(B), and the words for it."""
    of_a, of_b = (pair.sample_changes for pair in pairs)
    if same_noise:
        if len(of_a) != len(of_b):
            raise ValueError(f"same_noise pairs images, but A has {len(of_a)} and B {len(of_b)}; pass equal numbers")
        variance, words = jackknife_variance(of_a - of_b), "jackknife over pairs of samples"
    else:
        variance, words = jackknife_variance(of_a) + jackknife_variance(of_b), "jackknife over the samples of A and B"
    theirs = [pair.reference_changes for pair in pairs]
    if theirs[0] is None:
        return variance, f"{words}, reference taken as fixed"
    return variance + jackknife_variance(theirs[0] - theirs[1]), f"{words} and over the shared reference"


def jackknife_variance(changes: Tensor) -> float:
    """(N − 1)/N Σ (c_i − mean c)² of leave-one-out changes c [N]: the variance of what they are changes of."""
    n = len(changes)
    return (n - 1) / n * (changes - changes.mean()).square().sum().item()


# --- the two sides -----------------------------------------------------------------------------------------------


@dataclass
class Side:
    """One side as it was given: images, or statistics, or both (ADM's references)."""

    role: str
    name: str
    images: ImageSource | None = None
    statistics: Statistics | None = None
    path: Path | None = None  # of the statistics file, which may hold several networks


@dataclass
class Material:
    """One side in one network: moments always, the rest where there are images or saved features."""

    name: str
    network: str
    moments: FeatureMoments
    provenance: dict
    features: Tensor | None = None
    logits: Tensor | None = None
    spatial: FeatureMoments | None = None
    names: list[str] | None = None
    indices: list[int] | None = None
    skipped: list[str] = field(default_factory=list)

    def as_statistics(self) -> Statistics:
        """The moments with provenance, for comparing."""
        moments = self.moments
        return Statistics(FeatureMoments(moments.count, moments.mean, moments.cov, self.provenance), self.name)

    def image_name(self, row: int) -> str:
        """Name of the image behind feature row `row`."""
        return self.names[row] if self.names else f"row {row}"

    def image_index(self, row: int) -> int:
        """Its number in the source, which counts skipped images too."""
        return self.indices[row] if self.indices else row


def _open(source, role: str, settings: Settings) -> Side:
    """Open one side without reading its images; statistics files of several networks are opened later."""
    if isinstance(source, Statistics):
        return Side(role, source.name, statistics=source)
    if isinstance(source, FeatureMoments):
        return Side(role, f"the {role}", statistics=Statistics(source, f"the {role}"))
    if isinstance(source, ImageSource):
        return Side(role, source.name, images=source)
    if isinstance(source, Tensor | np.ndarray):
        return _open_array(source, role, settings)
    path = Path(source)
    if not holds_statistics(path):
        return Side(role, str(path), images=open_images(path, settings.value_range, settings.skip_corrupt))
    side = Side(role, str(path), path=path)
    if path.suffix.lower() in (".npz", ".npy"):
        side.statistics = read_statistics(path)
        if side.statistics.images:
            side.images = open_images(path, settings.value_range, settings.skip_corrupt)
    return side


def _open_array(array: Tensor | np.ndarray, role: str, settings: Settings) -> Side:
    if array.ndim == 2:
        statistics = Statistics.from_features(torch.as_tensor(array), name=f"the {role}")
        return Side(role, statistics.name, statistics=statistics)
    images = open_images(array, settings.value_range)
    images.name = f"the {role}"
    return Side(role, images.name, images=images)


def _extractors(features, protocol: Protocol, sides: list[Side], settings: Settings, spatial: bool) -> list:
    """The networks asked for, built only if some side has images; else their names."""
    asked = features if isinstance(features, list | tuple) else [features]
    if not asked:
        raise ValueError("features is empty; name a network")
    asked = [_recorded_network(sides, protocol) if x is None else x for x in asked]
    if len(asked) > 1 and isinstance(settings.weights, str | Path):
        raise ValueError(
            f"one weights file for {len(asked)} networks; pass weights={{network: path}} (--weights NAME=PATH)"
        )
    needed = any(side.images is not None for side in sides)
    built = []
    for network in asked:
        if isinstance(network, str) and needed:
            weights = settings.weights.get(network) if isinstance(settings.weights, dict) else settings.weights
            network = build_extractor(network, protocol.input_of(network), weights, settings.device, spatial)
        built.append(network)
    return built


def _recorded_network(sides: list[Side], protocol: Protocol) -> str:
    """The network that statistics were made with, where one is recorded and known here; else the protocol's.

    Without images any recorded name will do: nothing has to be run.
    """
    images = any(side.images is not None for side in sides)
    for side in sides:
        recorded = side.statistics.provenance.get("extractor") if side.statistics else None
        if recorded in NETWORK_NAMES or (recorded and not images):
            return recorded
    return protocol.network if images or protocol.name != "fastfid" else UNKNOWN


def _gather(sides: list[Side], extractors: list, settings: Settings, warnings: list[str]) -> list[list[Material]]:
    """For each side, its material in each network; everything known is checked before an image is read."""
    given = [[_given(side, extractor) for extractor in extractors] for side in sides]
    for of_network, extractor in zip(zip(*given, strict=True), extractors, strict=True):
        _check_early(of_network, extractor, settings)
    return [_material(side, extractors, ready, settings, warnings) for side, ready in zip(sides, given, strict=True)]


def _given(side: Side, extractor) -> Statistics | None:
    """The side's statistics in this network, None where it only has images (or also images, of another network)."""
    name = extractor if isinstance(extractor, str) else extractor.name
    if side.path is not None and side.statistics is None:
        return read_statistics(side.path, None if name == UNKNOWN else name)
    recorded = side.statistics.provenance.get("extractor") if side.statistics else None
    if side.images is not None and recorded != name:
        return None
    return side.statistics


def _check_early(given: Sequence[Statistics | None], extractor, settings: Settings) -> None:
    """ValueError before any image is read if statistics do not fit each other or the network."""
    known = [statistics for statistics in given if statistics is not None]
    if not isinstance(extractor, str):
        dim = extractor.dim
        blank = FeatureMoments(None, torch.zeros(dim), torch.zeros(dim, dim), _identity(extractor))
        known.append(Statistics(blank, f"the network {extractor.name}"))
    elif extractor != UNKNOWN:
        for statistics in known:
            recorded = statistics.provenance.get("extractor")
            if recorded not in (None, extractor) and not settings.force:
                raise ValueError(
                    f"{statistics.name} holds features of {recorded}, not of {extractor}; leave the network out, or "
                    "pass force=True (--force)"
                )
    for other in known[1:]:
        check_comparable(known[0], other, settings.force)


def _material(side: Side, extractors: list, given: list, settings: Settings, warnings: list[str]) -> list[Material]:
    """Saved statistics as they are, images through all networks in one pass."""
    names = [x if isinstance(x, str) else x.name for x in extractors]
    if side.images is None:
        return [_from_statistics(side, name, x) for name, x in zip(names, given, strict=True)]
    cache = settings.open_cache()
    extracted = extract(side.images, extractors, cache, settings.batch_size, settings.progress)
    skipped = list(side.images.skipped)
    if skipped:
        warnings.append(f"{len(skipped)} unreadable images of {side.name} were left out, the first: {skipped[0]}")
    if cache is not None and cache.problem:
        warnings.append(cache.problem)
    found = []
    for extractor, x, statistics in zip(extractors, extracted, given, strict=True):
        source = {"source": side.name, "source_sha256": x.source_sha256, "dtype": "float32"}
        material = Material(
            side.name, extractor.name, x.moments, {**_identity(extractor), **source}, x.outputs["features"],
            x.outputs.get("logits"), x.spatial, x.names, x.indices, skipped,
        )  # fmt: skip
        if statistics is not None:
            material.moments, material.spatial = statistics.moments, statistics.spatial or material.spatial
            warnings.append(
                f"FD and sFID use the mu and sigma in {side.name}; its {len(x.names)} images serve the other metrics"
            )
        found.append(material)
    return found


def _from_statistics(side: Side, network: str, statistics: Statistics) -> Material:
    if network == UNKNOWN:
        network = statistics.provenance.get("extractor") or network
    return Material(
        side.name, network, statistics.moments, statistics.provenance, statistics.features, spatial=statistics.spatial
    )


def _identity(extractor: FeatureExtractor) -> dict:
    return {
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
    }


def statistics_of(
    images, *, features: str | FeatureExtractor | None = None, protocol: str | Protocol | None = None,
    keep_features: bool = False, spatial: bool = False, **settings,
) -> Statistics:  # fmt: skip
    """Statistics of images with their provenance, ready for `.save`; arguments as in `evaluate`.

    keep_features  also keep the features [n, d], which KID and the neighbours need; else memory does not grow with n
    spatial        also moments of the spatial features (sFID), Inception only
    """
    settings, chosen = Settings(**settings), protocol_named(protocol)
    side = _open(images, "images", settings)
    if side.images is None:
        raise ValueError(f"{side.name} holds statistics already; pass images")
    side.statistics = None  # ADM's references: these are the statistics of the images
    (extractor,) = _extractors(features, chosen, [side], settings, spatial)
    cache = settings.open_cache()
    (x,) = extract(side.images, [extractor], cache, settings.batch_size, settings.progress, keep_features)
    provenance = {
        **_identity(extractor),
        "protocol": chosen.name,
        "dtype": "float32",
        "source": side.name,
        "source_sha256": x.source_sha256,
    }
    if side.images.skipped:
        provenance["skipped"] = str(len(side.images.skipped))
    moments = FeatureMoments(x.moments.count, x.moments.mean, x.moments.cov, provenance)
    return Statistics(moments, side.name, x.outputs.get("features"), x.spatial)


# --- what several metrics share ----------------------------------------------------------------------------------


class _Pair:
    """Samples and reference in one network, and what more than one metric needs of them."""

    def __init__(self, samples: Material, reference: Material, protocol: Protocol, settings: Settings):
        self.samples, self.reference, self.protocol, self.settings = samples, reference, protocol, settings
        self.network = samples.network

    @property
    def nearest_k(self) -> int:
        return self.settings.nearest_k or self.protocol.nearest_k

    @cached_property
    def terms(self):
        return frechet_terms(without_provenance(self.samples.moments), without_provenance(self.reference.moments))

    @cached_property
    def sample_changes(self) -> Tensor | None:
        """Change of FD when each sample is left out, float64 [N]; None without features."""
        return leave_one_out(self.reference.moments, self.samples.features)

    @cached_property
    def reference_changes(self) -> Tensor | None:
        """Change of FD when each reference image is left out, float64 [M]; None without features of these moments."""
        features = self.reference.features
        if features is None or self.reference.moments.count != len(features):
            return None  # ADM's references: the moments are of more images than the file holds
        return leave_one_out(self.samples.moments, features)

    @cached_property
    def neighbour_scores(self) -> dict[str, float]:
        return prdc(self.reference.features, self.samples.features, self.nearest_k)

    @cached_property
    def inclusive_scores(self) -> dict[str, float]:
        return precision_recall(self.reference.features, self.samples.features, self.nearest_k)

    def outliers(self) -> dict:
        """The samples that hurt and help the distance most, by what leaving them out would change."""
        changes = self.sample_changes
        order = changes.argsort().tolist()
        entry = lambda row: {  # noqa: E731
            "index": self.samples.image_index(row),
            "name": self.samples.image_name(row),
            "change_if_left_out": changes[row].item(),
        }
        hurt = [entry(row) for row in order[:OUTLIERS] if changes[row] < 0]
        help_ = [entry(row) for row in reversed(order[-OUTLIERS:]) if changes[row] > 0]
        return {"network": self.network, "hurt": hurt, "help": help_}

    def neighbours(self) -> list[dict]:
        """Nearest reference images of some samples: of those that hurt, that help, and evenly spaced ones."""
        if self.reference.features is None:
            return []
        order = self.sample_changes.argsort().tolist()
        third = NEIGHBOUR_SAMPLES // 3
        spaced = np.linspace(0, len(order) - 1, third).round().astype(int).tolist()
        rows = list(dict.fromkeys(order[:third] + order[-third:] + spaced))
        distances, nearest = nearest_rows(self.samples.features[rows], self.reference.features, NEIGHBOURS)
        return [
            {
                "network": self.network,
                "index": self.samples.image_index(row),
                "name": self.samples.image_name(row),
                "nearest": [
                    {"index": self.reference.image_index(j), "name": self.reference.image_name(j), "distance": d}
                    for j, d in zip(nearest[i].tolist(), distances[i].tolist(), strict=True)
                ],
            }
            for i, row in enumerate(rows)
        ]


def leave_one_out(other: FeatureMoments, features: Tensor | None) -> Tensor | None:
    """Exact change of the distance between features [n, d] and moments `other` without each row: float64 [n].

    None without features or for n < 3: two rows must stay for a covariance.
    """
    if features is None or len(features) < 3:
        return None
    return SwapEngine(without_provenance(other), features, tol=LEAVE_ONE_OUT_TOL).leave_one_out()


def nearest_rows(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances float64 [q, k] and indices [q, k] of the k rows [m, d] nearest to each query [q, d]."""
    queries, k = queries.double(), min(k, len(rows))
    exact = "donot_use_mm_for_euclid_dist"  # differences squared: a copy is at distance 0
    blocks = [torch.cdist(queries, block.double(), compute_mode=exact) for block in rows.split(DISTANCE_ROWS)]
    found = torch.cat(blocks, dim=1).topk(k, dim=1, largest=False)
    return found.values, found.indices


# --- metrics: each returns a Score, or the reason it cannot be computed ------------------------------------------


def _fd_label(network: str) -> str:
    return "FID" if network == "inception" else f"FD ({network})"


def _fd(pair: _Pair) -> Score:
    terms = pair.terms
    details = {key: value for key, value in asdict(terms).items() if isinstance(value, int | float | str)}
    variances, words = [], []
    for name, changes in (("samples", pair.sample_changes), ("reference", pair.reference_changes)):
        if changes is not None:
            variances.append(jackknife_variance(changes))
            words.append(name)
            details[f"jackknife_bias_{name}"] = (len(changes) - 1) * changes.mean().item()
    if not variances:
        method = "moments only: no interval without features"
        return Score("fd", _fd_label(pair.network), pair.network, terms.total, method=method, details=details)
    error = math.sqrt(sum(variances))
    fixed = "" if len(words) == 2 else f", {'reference' if words == ['samples'] else 'samples'} taken as fixed"
    method = f"jackknife over {' and '.join(words)}{fixed}; which images were drawn, not the bias of finite N"
    interval = (terms.total - NORMAL_95 * error, terms.total + NORMAL_95 * error)
    return Score("fd", _fd_label(pair.network), pair.network, terms.total, error, interval, method, details)


def _sfid(pair: _Pair) -> Score | str:
    mine, theirs = pair.samples.spatial, pair.reference.spatial
    if mine is None or theirs is None:
        missing = pair.samples.name if mine is None else pair.reference.name
        return f"{missing} has no spatial features; they come from images through inception, or ADM's mu_s and sigma_s"
    terms = frechet_terms(without_provenance(mine), without_provenance(theirs))
    return Score("sfid", "sFID", pair.network, terms.total, method="Fréchet distance of spatial features")


def _inception_score(pair: _Pair) -> Score | str:
    logits = pair.samples.logits
    if logits is None:
        return f"{pair.network} gives no logits for {pair.samples.name}; they come from images through inception"
    p, n = pair.protocol, len(logits)
    bounds = [*range(0, n, p.is_split_size), n] if p.is_split_size else _equal_parts(n, min(p.is_splits, n))
    mean, std = _score_of_parts(logits, bounds, pair.settings.seed if p.is_shuffle else None)
    label = "Inception Score" if pair.network == "inception" else f"Classifier score ({pair.network})"
    details = {"splits": len(bounds) - 1, "std_over_splits": std, "shuffled": p.is_shuffle}
    method = f"mean of {len(bounds) - 1} splits, std {std:.4g}"
    return Score("is", label, pair.network, mean, method=method, details=details)


def inception_score(logits: Tensor, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """exp E[KL(p(y|x) ‖ p(y))], mean and population deviation over `splits` parts of logits [n, C]; float64 inside.

    seed  permutes the rows by RandomState(seed), as torch-fidelity does; None keeps their order
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits is {splits} for {len(logits)} rows; it must be from 1 to their number")
    return _score_of_parts(logits, _equal_parts(len(logits), splits), seed)


def _equal_parts(n: int, parts: int) -> list[int]:
    return [i * n // parts for i in range(parts + 1)]


def _score_of_parts(logits: Tensor, bounds: list[int], seed: int | None) -> tuple[float, float]:
    """Mean and population deviation of the score over the row ranges between `bounds`."""
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    log_p = logits.double().log_softmax(dim=1)
    scores = []
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        part = log_p[low:high]
        marginal = part.exp().mean(dim=0, keepdim=True).log()
        scores.append((part.exp() * (part - marginal)).sum(dim=1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def _both_features(pair: _Pair) -> str | None:
    """Why metrics of both sides' features cannot be computed, None if they can."""
    for side in (pair.samples, pair.reference):
        if side.features is None:
            return f"{side.name} holds statistics only; pass its images, or features saved with --keep-features"
    return None


def _kid(pair: _Pair) -> Score | str:
    if reason := _both_features(pair):
        return reason
    p, available = pair.protocol, min(len(pair.samples.features), len(pair.reference.features))
    size = pair.settings.kid_subset_size or p.kid_subset_size
    if size > available and pair.settings.kid_subset_size is None and p.kid_caps:
        size = available
    if size > available:
        return f"subsets of {size} rows from {available} images; pass kid_subset_size={available} or less"
    found = kid(pair.reference.features, pair.samples.features, p.kid_subsets, size, seed=pair.settings.seed)
    details = {k: v for k, v in asdict(found).items() if k not in ("mean", "std")} | {"std_over_subsets": found.std}
    kernel = f"(x·y/{pair.samples.moments.dim} + 1)^{found.degree}"
    method = f"mean of {found.subsets} subsets of {size}, std {found.std:.4g}, kernel {kernel}"
    return Score("kid", "KID", pair.network, found.mean, method=method, details=details)


def _mmd(pair: _Pair) -> Score | str:
    if reason := _both_features(pair):
        return reason
    if min(len(pair.samples.features), len(pair.reference.features)) < 2:
        return "fewer than 2 images on a side"
    try:
        found = mmd(pair.reference.features, pair.samples.features)
    except ValueError as unfit:  # most rows identical: no median distance
        return str(unfit)
    method = f"{found.kernel} kernel, bandwidth {found.bandwidth:.4g} (median distance), {found.estimator}"
    return Score("mmd", "MMD²", pair.network, found.value, method=method, details=asdict(found))


def _neighbour_metric(name: str) -> Callable[[_Pair], Score | str]:
    def metric(pair: _Pair) -> Score | str:
        if reason := _both_features(pair):
            return reason
        k, available = pair.nearest_k, min(len(pair.samples.features), len(pair.reference.features))
        if available <= k:
            return f"{available} images have no neighbour number {k}; pass nearest_k={available - 1} or less"
        inclusive = pair.protocol.inclusive and name in ("precision", "recall")
        found = pair.inclusive_scores if inclusive else pair.neighbour_scores
        method = f"k = {k}, distance {'<=' if inclusive else '<'} radius, exact"
        details = {"nearest_k": k, "inclusive": inclusive}
        return Score(name, name.capitalize(), pair.network, found[name], method=method, details=details)

    return metric


def _fd_infinity(pair: _Pair) -> Score | str:
    features = pair.samples.features
    if features is None:
        return f"{pair.samples.name} holds statistics only; pass images"
    n, d = features.shape
    smallest = max(min(INFINITY_SMALLEST, n // 10), INFINITY_RANK * d)
    if 2 * smallest > n:
        return f"{n} samples are too few for subsets of {smallest} and more; d = {d} needs at least {2 * smallest}"
    sizes = np.linspace(smallest, n, INFINITY_POINTS).round().astype(int)
    reference = prepare(without_provenance(pair.reference.moments))
    rng = np.random.RandomState(pair.settings.seed)
    rows = [torch.from_numpy(rng.choice(n, size, replace=False)) for size in sizes]
    values = np.array([frechet_distance(FeatureMoments.from_features(features[r]), reference) for r in rows])
    slope, intercept = np.polyfit(1 / sizes, values, 1)
    residual = values - (intercept + slope / sizes)
    details = {
        "sizes": sizes.tolist(),
        "distances": values.tolist(),
        "slope": float(slope),
        "rms_residual": float(np.sqrt(np.mean(residual**2))),
    }
    method = f"line in 1/N through {len(sizes)} subsets of {sizes[0]} to {sizes[-1]} samples"
    label = "FID∞" if pair.network == "inception" else f"FD∞ ({pair.network})"
    return Score("fd_infinity", label, pair.network, float(intercept), method=method, details=details)


_COMPUTE: dict[str, Callable[[_Pair], Score | str]] = {
    "fd": _fd,
    "fd_infinity": _fd_infinity,
    "sfid": _sfid,
    "is": _inception_score,
    "kid": _kid,
    "mmd": _mmd,
    **{name: _neighbour_metric(name) for name in ("precision", "recall", "density", "coverage")},
}


def _score(pair: _Pair, metrics: Sequence[str], scores: list, left_out: list, warnings: list[str]) -> None:
    """Append every metric's Score, or the reason it was left out; metrics with silent repairs tell them."""
    for metric in _shown(metrics, pair):
        if metric == "outliers":
            if pair.sample_changes is None:
                reason = f"{pair.samples.name} holds statistics only, or fewer than 3 images; pass images"
                left_out.append(LeftOut(metric, pair.network, reason))
            continue
        found = _COMPUTE[metric](pair)
        if isinstance(found, str):
            left_out.append(LeftOut(metric, pair.network, found))
            continue
        scores.append(found)
        wanted = pair.settings.kid_subset_size or pair.protocol.kid_subset_size
        if metric == "kid" and found.details["subset_size"] < wanted:
            warnings.append(f"KID subsets shrank from {wanted} to the {found.details['subset_size']} images there are")
        if metric == "fd" and found.details.get("clipped"):
            clipped = found.details["clipped"]
            warnings.append(f"{clipped} eigenvalues under the root of {found.label} were below 0 and taken for 0")


def _shown(metrics: Sequence[str], pair: _Pair):
    """The metrics, with a bar on stderr if they take more than PROGRESS_DELAY seconds."""
    from tqdm import tqdm

    shown = pair.settings.progress
    name = f"metrics ({pair.network})"
    return tqdm(metrics, unit="metric", desc=name, file=sys.stderr, delay=PROGRESS_DELAY, disable=not shown)


# --- provenance and text -----------------------------------------------------------------------------------------


def _checked_metrics(metrics: Sequence[str] | None, protocol: Protocol) -> tuple[str, ...]:
    if metrics is None:
        return protocol.metrics if "outliers" in protocol.metrics else (*protocol.metrics, "outliers")
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown)) or '()'}; choose of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


def _few_images(*sides: Material) -> list[str]:
    return [
        f"{side.name}: {side.moments.count} images for d = {side.moments.dim} features: the distance is biased "
        "upwards, use more"
        for side in sides
        if side.moments.count is not None and side.moments.count <= side.moments.dim
    ]


def _provenance(materials, protocol: Protocol, settings: Settings, seconds: dict, named: dict | None = None) -> dict:
    """Who was compared with whom, in which networks, how, and in what time."""
    from fastfid import __version__

    mine, theirs = materials[0], materials[-1]
    sides = {name: _side_record([m]) for name, m in named.items()} if named else {"samples": _side_record(mine)}
    return {
        **sides,
        "reference": _side_record(theirs),
        "networks": [_network_record(a, b) for a, b in zip(mine, theirs, strict=True)],
        "protocol": {"name": protocol.name, "source": protocol.source},
        "settings": {k: v if v is None or isinstance(v, int | float) else str(v) for k, v in asdict(settings).items()},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "version": f"fastfid {__version__}",
    }


def _side_record(materials: list[Material]) -> dict:
    first = materials[0]
    return {
        "name": first.name,
        "count": first.moments.count,
        "images": len(first.names) if first.names else None,
        "source_sha256": first.provenance.get("source_sha256"),
        "skipped": first.skipped,
    }


def _network_record(mine: Material, theirs: Material) -> dict:
    known = {**theirs.provenance, **{k: v for k, v in mine.provenance.items() if v is not None}}
    return {
        "name": mine.network,
        "dim": mine.moments.dim,
        "preprocessing": known.get("preprocessing"),
        "weights_sha256": known.get("weights_sha256"),
    }


def _provenance_lines(provenance: dict) -> list[str]:
    lines = [
        f"network {n['name']}, d = {n['dim']}, weights {(n['weights_sha256'] or 'unknown')[:12]}, "
        f"preprocessing: {n['preprocessing'] or 'unknown'}"
        for n in provenance["networks"]
    ]
    for role in ("samples", "A", "B", "reference"):
        if role in provenance:
            side = provenance[role]
            lines.append(f"{role}: {side['count'] or 'unknown number of'} images, {side['name']}")
    return [*lines, f"protocol {provenance['protocol']['name']}, {provenance['version']}"]


def _interval_text(score: Score) -> str:
    if score.interval is None:
        return f"({score.method})" if score.method else ""
    low, high = score.interval
    return f"95% {low:.6g} to {high:.6g} ({score.method})"


def _plain(value):
    """Containers with numbers that JSON knows; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
