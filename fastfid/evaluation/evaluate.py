"""One pass over the images, every metric, its uncertainty, and where it all came from.

    result = evaluate("samples/", "reference.npz")
    print(result.table()); result["fd"].interval; result.to_json()

Images are read once and go through each network once (extraction.py); all metrics follow from the features
(scores.py), each with an interval where it has a meaning (uncertainty.py).

A difference FD(A) − FD(B) against the same reference pairs what both share: leaving reference image j out changes both,
and only the difference of the two changes counts.

Memory does not grow with the number of images, but for their names and a few numbers each: images pass by in shards,
moments are d × d, rows of features are read a block at a time, from a temporary file where they are more than a GiB
(large_arrays.py).

Under a process group (`torchrun -m fastfid eval …`) every rank calls the same function with the same arguments; the
images are divided among them and all get the same result.  What one rank alone evaluates, as in a training loop, goes
into `with fastfid.runtime.distributed.alone():`, or it waits for the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch

from fastfid.distances.frechet import FrechetTerms, frechet_terms
from fastfid.distances.moments import FeatureMoments
from fastfid.evaluation.classes_and_outliers import class_scores, neighbours, outliers
from fastfid.evaluation.frechet_scores import fd_label
from fastfid.evaluation.intervals import jackknife_variance, normal_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import DifferenceResult, EvaluationResult
from fastfid.evaluation.scores import compute
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import SideInNetwork, gather, holds_features, networks_of, open_side
from fastfid.features.extractor import FeatureExtractor
from fastfid.identity import check_comparable
from fastfid.protocols import METRICS, Protocol, protocol_named
from fastfid.runtime import distributed
from fastfid.statistics.statistics import Statistics, without_provenance

CLASS_METRICS = {"precision", "recall", "density", "coverage"}  # any of them asks for them within each class, too


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
                        ImageSource, Statistics, FeatureMoments; a tensor or array of images, or of features [n, d];
                        a pair (images, labels); a DataLoader, generator or other iterable of batches, read once
    metrics             of fastfid.protocols.METRICS; the protocol's unless given
    features            network name, FeatureExtractor, or several; what saved statistics record, else the protocol's
    protocol            name of fastfid.protocols, setting network, resizing and metric defaults together
    weights             None    path of the network's weights file, or {network: path} for several
    device              "cpu"   where the network runs
    batch_size          256     images a network sees at once
    cache               True    keep features under `cache_folder()`; False, or another folder
    skip_corrupt        False   leave unreadable images out, counted in the warnings, instead of stopping
    force               False   compare sides whose provenance differs, with a warning
    value_range         None    (0, 1) or (-1, 1), of float images in memory
    workers             None    threads that decode image files; one for each usable core up to 8
    kid_subset_size     None    rows of a KID subset; the protocol's unless given
    nearest_k           None    neighbour of precision, recall, density, coverage; the protocol's unless given
    seed                2020    of KID's subsets, the Inception Score's order and FD∞'s subsets
    progress            False   bars on stderr for whatever takes over two seconds

    What cannot be computed is in `left_out` with the reason.  ValueError in one sentence for unfit input.
    """
    started = time.perf_counter()
    settings, chosen = Settings.of(settings), protocol_named(protocol)
    metrics = checked_metrics(metrics, chosen)
    with distributed.agreement():
        sides = [open_side(x, role, settings) for x, role in ((samples, "samples"), (reference, "reference"))]
        networks = networks_of(features, chosen, sides, settings, spatial="sfid" in metrics)
    warnings: list[str] = []
    materials = gather(sides, networks, settings, warnings)
    read = time.perf_counter()

    def scored() -> EvaluationResult:
        result = EvaluationResult([], [], warnings, [], [], [], {})
        for mine, theirs in zip(*materials, strict=True):
            _add_scores(result, Pair(mine, theirs, chosen, settings, metrics), metrics)
        seconds = {"features": read - started, "metrics": time.perf_counter() - read}
        result.provenance = _provenance(materials, chosen, settings, seconds)
        return result

    result = distributed.from_main(scored)
    result.sources = {side.role: side.images for side in sides if side.images is not None and not side.images.once}
    return result


def _add_scores(result: EvaluationResult, pair: Pair, metrics: Sequence[str]) -> None:
    """Everything that one network tells, appended to `result`."""
    mine, theirs = pair.samples, pair.reference
    result.warnings += check_comparable(mine, theirs, pair.settings.force)
    result.warnings += _untold(mine, theirs) + _few_images(mine, theirs) + _same_images(mine, theirs)
    scores, left_out = compute(pair, metrics, result.warnings)
    result.scores += scores
    result.left_out += left_out
    if CLASS_METRICS.intersection(metrics):
        classes, left_out = class_scores(pair)
        result.classes += classes
        result.left_out += left_out
    if "outliers" in metrics and pair.sample_changes is not None:
        result.outliers.append(outliers(pair))
        result.neighbours += neighbours(pair)


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
    settings, chosen = Settings.of(settings), protocol_named(protocol)
    with distributed.agreement():
        sides = [open_side(x, role, settings) for x, role in ((a, "A"), (b, "B"), (reference, "reference"))]
        networks = networks_of(features, chosen, sides, settings)
        if len(networks) > 1:
            raise ValueError(f"diff compares in one network, {len(networks)} were given; call it once for each")
        for side in sides[:2]:
            if side.images is None and not holds_features(side, networks[0]):
                raise ValueError(f"{side.name} holds statistics only, and an interval needs its images; pass images")
    warnings: list[str] = []
    materials = gather(sides, networks, settings, warnings)

    def compared() -> DifferenceResult:
        first, second, third = (material for (material,) in materials)
        for side in (first, second):
            warnings.extend(check_comparable(side, third, settings.force))
        warnings.extend(_untold(first, second, third))
        pairs = [Pair(side, third, chosen, settings) for side in (first, second)]
        variance, method = _difference_variance(pairs, same_noise)
        values = [pair.terms.total for pair in pairs]
        difference, error = values[0] - values[1], math.sqrt(variance)
        interval = normal_interval(difference, error)
        better = "A" if interval[1] < 0 else "B" if interval[0] > 0 else None
        seconds = {"total": time.perf_counter() - started}
        provenance = _provenance(([first], [third]), chosen, settings, seconds, {"A": first, "B": second})
        label = fd_label(first.network)
        return DifferenceResult(
            label, first.network, *values, difference, error, interval, better, method, warnings, provenance
        )

    return distributed.from_main(compared)


def _difference_variance(pairs: list[Pair], same_noise: bool) -> tuple[float, str]:
    """Jackknife variance of FD(A) − FD(B), and the words for it."""
    of_a, of_b = (pair.sample_changes for pair in pairs)
    for pair, changes in zip(pairs, (of_a, of_b), strict=True):
        if changes is None:
            rows = len(pair.samples.features)
            raise ValueError(
                f"{pair.samples.name} holds {rows} images; an interval needs 3"
                if rows < 3
                else f"the mu and sigma in {pair.samples.name} are not of its {rows} images, and an interval needs "
                "images; pass the images alone"
            )
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


def statistics_of(
    images, *, features: str | FeatureExtractor | None = None, protocol: str | Protocol | None = None,
    keep_features: bool = False, spatial: bool = False, **settings,
) -> Statistics:  # fmt: skip
    """Statistics of images with their provenance, ready for `.save`; arguments as in `evaluate`.

    keep_features  also keep the features [n, d], which KID and the neighbours need; else memory does not grow with n
    spatial        also moments of the spatial features (sFID), Inception only
    """
    settings, chosen = Settings.of(settings), protocol_named(protocol)
    with distributed.agreement():
        side = open_side(images, "images", settings)
        if side.images is None:
            raise ValueError(f"{side.name} holds statistics already; pass images")
        side.statistics = side.path = None  # ADM's references: these are the statistics of the images
        networks = networks_of(features, chosen, [side], settings, spatial)
        if len(networks) > 1:
            raise ValueError(f"statistics are of one network, {len(networks)} were given; call it once for each")
        if spatial and not getattr(networks[0].network, "spatial", False):
            raise ValueError(
                f"{networks[0].name} has no spatial features; use inception, or leave spatial out (--spatial)"
            )
    (materials,) = gather([side], networks, settings, [], keep_features)

    def statistics() -> Statistics:
        (material,) = materials
        provenance = {**material.provenance, "protocol": chosen.name}
        if material.skipped:
            provenance |= {"skipped": str(len(material.skipped)), "first_skipped": material.skipped[0]}
        moments = FeatureMoments(material.moments.count, material.moments.mean, material.moments.cov, provenance)
        return Statistics(moments, side.name, material.features, material.spatial)

    return distributed.from_main(statistics)


def compare(
    a, b, *, features: str | FeatureExtractor | None = None, protocol: str | Protocol | None = None, **settings
) -> tuple[SideInNetwork, SideInNetwork, FrechetTerms, list[str]]:
    """The Fréchet distance of two sides and nothing else: their moments, its terms and the warnings.

    Arguments as in `evaluate`.
    """
    settings, chosen = Settings.of(settings), protocol_named(protocol)
    with distributed.agreement():
        sides = [open_side(x, role, settings) for x, role in ((a, "A"), (b, "B"))]
        networks = networks_of(features, chosen, sides, settings)
    warnings: list[str] = []
    materials = gather(sides, networks, settings, warnings, keep=False)

    def compared() -> tuple[SideInNetwork, SideInNetwork, FrechetTerms, list[str]]:
        (first,), (second,) = materials
        warnings.extend(check_comparable(first, second, settings.force))
        warnings.extend(_untold(first, second) + _few_images(first, second))
        terms = frechet_terms(without_provenance(first.moments), without_provenance(second.moments))
        return first, second, terms, warnings

    return distributed.from_main(compared)


# --- checks and provenance ---------------------------------------------------------------------------------------


def checked_metrics(metrics: Sequence[str] | None, protocol: Protocol) -> tuple[str, ...]:
    """The metrics asked for, once each, or the protocol's; ValueError for one that does not exist."""
    if metrics is None:
        return protocol.metrics if "outliers" in protocol.metrics else (*protocol.metrics, "outliers")
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown)) or '()'}; choose of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


def _untold(*sides: SideInNetwork) -> list[str]:
    """Warnings for peers' files and bare features: what they do not tell is taken to be as on the other side."""
    known = next((side for side in sides if side.provenance.get("preprocessing")), None)
    found = []
    for side in sides if known else ():
        network, prepared = (side.provenance.get(key) for key in ("extractor", "preprocessing"))
        if not network:
            found.append(
                f"{side.name} does not tell which network its features are of; they are taken for those of "
                f"{known.network}"
            )
        elif not prepared:
            found.append(
                f"{side.name} does not tell how its images were prepared; they are taken to be as {known.name}: "
                f"{known.provenance['preprocessing']}"
            )
    return found


def _few_images(*sides: SideInNetwork) -> list[str]:
    return [
        f"{side.name}: {side.moments.count} images for d = {side.moments.dim} features: the distance is biased "
        "upwards, use more"
        for side in sides
        if side.moments.count is not None and side.moments.count <= side.moments.dim
    ]


def _same_images(mine: SideInNetwork, theirs: SideInNetwork) -> list[str]:
    """A warning if both sides have the same features: that is no comparison of two draws."""
    ours, others = mine.features, theirs.features
    if ours is None or others is None or ours.shape != others.shape or not torch.equal(ours, others):
        return []
    return [
        f"{mine.name} and {theirs.name} hold the same images: unbiased KID and MMD² fall below 0, and no interval is "
        "that of two independent draws"
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


def _side_record(materials: list[SideInNetwork]) -> dict:
    first = materials[0]
    return {
        "name": first.name,
        "count": first.moments.count,
        "images": len(first.names) if first.names else None,
        "source_sha256": first.provenance.get("source_sha256"),
        "skipped": first.skipped,
    }


def _network_record(mine: SideInNetwork, theirs: SideInNetwork) -> dict:
    known = {**theirs.provenance, **{k: v for k, v in mine.provenance.items() if v is not None}}
    return {
        "name": mine.network,
        "dim": mine.moments.dim,
        "preprocessing": known.get("preprocessing"),
        "weights_sha256": known.get("weights_sha256"),
    }
