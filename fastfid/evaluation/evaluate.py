"""Evaluate images in one pass: every metric, its interval, and where it all came from.

    result = evaluate("samples/", "real.npz")
    print(result.table())
    result["fd"].interval

Images are read once and go through each network once (features/extraction.py).  All metrics follow from the features
(scores.py), each with an interval where one is defined (intervals.py).

Memory does not grow with the number of images, except for their names and a few numbers each.  Images pass by in
shards, moments are d × d, and rows of features are read a block at a time, from a temporary file where they are more
than a GiB (runtime/mapped_arrays.py).

Under a process group (`torchrun -m fastfid eval …`) every rank calls the same function with the same arguments.  The
images are divided among the ranks and all get the same result.  If one rank alone evaluates, as in a training loop, it
must do so within `with fastfid.runtime.distributed.alone():`, or it waits for the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastfid.distances.frechet import FrechetTerms, frechet_terms
from fastfid.distances.moments import FeatureMoments
from fastfid.evaluation.classes_and_outliers import class_scores, neighbours, outliers
from fastfid.evaluation.frechet_scores import fdr_score
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.placement import placed
from fastfid.evaluation.provenance import few_images, record, same_images, unrecorded
from fastfid.evaluation.results import EvaluationResult, LeftOut, Score
from fastfid.evaluation.scores import compute
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import Network, NetworkChoice, SideInNetwork, gather, networks_of, open_side
from fastfid.identity import check_comparable
from fastfid.protocols import METRICS, Protocol, protocol_named
from fastfid.runtime import distributed
from fastfid.statistics.statistics import Statistics

CLASS_METRICS = {"precision", "recall", "density", "coverage"}  # each of them is also computed within each class


def evaluate(
    samples: object,
    real: object,
    *,
    metrics: Sequence[str] | None = None,
    features: NetworkChoice = None,
    protocol: str | Protocol | None = None,
    split: object = None,
    **settings: Any,
) -> EvaluationResult:
    """Every metric of `samples` against `real` images that their contents allow.

    samples, real       folder, .zip, .tar, .npz, .npy of images; file of statistics or features (`read_statistics`); an
                        ImageSource, Statistics, FeatureMoments; a tensor or array of images, or of features [n, d];
                        a pair (images, labels); a DataLoader, generator or other iterable of batches, read once
    metrics             of fastfid.protocols.METRICS; the protocol's unless given
    features            network name, FeatureExtractor, or a list of them; unless given, the network that saved
                        statistics record, else the protocol's
    protocol            name of fastfid.protocols, setting network, resizing and metric defaults together
    split               None    other real images, as `real`: adds FDr, FD in units of that of real images
    weights             None    path of the network's weights file, or {network: path} for several
    device              "auto"  of network and metrics: a GPU if there is one; if the features are too many for it, the
                                metrics are computed on the host, with a warning
    batch_size          256     images that a network sees at once
    cache               True    keep features under `cache_folder()`; False, or another folder
    skip_corrupt        False   leave unreadable images out and count them in the warnings, instead of stopping
    force               False   compare sides whose provenance differs, with a warning
    value_range         None    (0, 1) or (-1, 1), of float images in memory
    workers             None    threads that decode image files; one for each usable core up to 8
    class_folders       False   folders that look like parts of a set (00000, chunk_3, a7, train) are classes, too
    class_names         None    names of numbered classes: a list, {number: name}, or a .json or text file of them
    kid_subset_size     None    rows of a KID subset; the protocol's unless given
    nearest_k           None    neighbour of precision, recall, density, coverage; the protocol's unless given
    seed                2020    of KID's subsets, the Inception Score's order and FD∞'s subsets
    progress            False   bars on stderr for work of more than two seconds

    `left_out` of the result lists the metrics that cannot be computed, with the reason.  ValueError in one sentence
    for unfit input.
    """
    started = time.perf_counter()
    options, chosen = Settings.of(settings), protocol_named(protocol)
    metrics = checked_metrics(metrics, chosen)
    with distributed.agreement():
        given = [(samples, "samples"), (real, "real")] + ([] if split is None else [(split, "split")])
        sides = [open_side(x, role, options) for x, role in given]
        networks = networks_of(features, chosen, sides, options, spatial="sfid" in metrics)
    warnings: list[str] = []
    in_networks = gather(sides, networks, options, warnings, mixed_sizes=chosen.mixed_sizes)
    read = time.perf_counter()

    def scored() -> EvaluationResult:
        result = EvaluationResult([], [], warnings, [], [], [], {})
        for sides in zip(*in_networks, strict=True):
            mine, theirs, *others = placed(sides, options, warnings)
            pair = Pair(mine, theirs, chosen, options, metrics)
            _add_scores(result, pair, metrics)
            for other in others:
                result.warnings += check_comparable(other, theirs, options.force)
                _add(result, pair, "fdr", fdr_score(pair, other))
        seconds = {"features": read - started, "metrics": time.perf_counter() - read}
        named = dict(zip(("samples", "real"), in_networks[:2], strict=True))
        result.provenance = record(named, chosen, options, seconds)
        return result

    result: EvaluationResult = distributed.from_main(scored)
    result.sources = {side.role: side.images for side in sides if side.images is not None and not side.images.once}
    return result


def _add_scores(result: EvaluationResult, pair: Pair, metrics: Sequence[str]) -> None:
    """Append everything that one network gives to `result`."""
    mine, theirs = pair.samples, pair.real
    result.warnings += check_comparable(mine, theirs, pair.settings.force)
    result.warnings += unrecorded(mine, theirs) + few_images(mine, theirs) + same_images(mine, theirs)
    scores, left_out = compute(pair, metrics, result.warnings)
    result.scores += scores
    result.left_out += left_out
    if CLASS_METRICS.intersection(metrics):
        classes, left_out = class_scores(pair)
        result.classes += classes
        result.left_out += left_out
    if "outliers" in metrics and pair.sample_changes is not None:
        changes = pair.sample_changes.cpu()  # which are read one by one
        result.outliers.append(outliers(pair, changes))
        result.neighbours += neighbours(pair, changes)


def _add(result: EvaluationResult, pair: Pair, metric: str, found: Score | str) -> None:
    """Append a score, or the reason why there is none."""
    if isinstance(found, str):
        result.left_out.append(LeftOut(metric, pair.network, found))
    else:
        result.scores.append(found)


def checked_metrics(metrics: Sequence[str] | None, protocol: Protocol) -> tuple[str, ...]:
    """The metrics asked for, once each, or the protocol's; ValueError for one that does not exist."""
    if metrics is None:
        return protocol.metrics if "outliers" in protocol.metrics else (*protocol.metrics, "outliers")
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"unknown metric {', '.join(map(repr, unknown)) or '()'}; choose of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


# --- parts of an evaluation --------------------------------------------------------------------------------------


def compare(
    a: object, b: object, *, features: Network | None = None, protocol: str | Protocol | None = None, **settings: Any
) -> tuple[SideInNetwork, SideInNetwork, FrechetTerms, list[str]]:
    """The Fréchet distance of two sides and nothing else: both sides, its terms and the warnings.

    Arguments as in `evaluate`.
    """
    options, chosen = Settings.of(settings), protocol_named(protocol)
    with distributed.agreement():
        sides = [open_side(x, role, options) for x, role in ((a, "A"), (b, "B"))]
        networks = networks_of(features, chosen, sides, options, moments_only=True)
    warnings: list[str] = []
    in_networks = gather(sides, networks, options, warnings, keep=False, mixed_sizes=chosen.mixed_sizes)

    def compared() -> tuple[SideInNetwork, SideInNetwork, FrechetTerms, list[str]]:
        (first,), (second,) = in_networks
        warnings.extend(check_comparable(first, second, options.force))
        warnings.extend(unrecorded(first, second) + few_images(first, second))
        terms = frechet_terms(*(side.moments for side in placed((first, second), options, warnings)))
        return first, second, terms, warnings

    found: tuple[SideInNetwork, SideInNetwork, FrechetTerms, list[str]] = distributed.from_main(compared)
    return found


def statistics_of(
    images: object,
    *,
    features: Network | None = None,
    protocol: str | Protocol | None = None,
    keep_features: bool = False,
    spatial: bool = False,
    **settings: Any,
) -> Statistics:
    """Statistics of images with their provenance, ready for `.save`; arguments as in `evaluate`.

    keep_features  also keep the features [n, d], which KID and the neighbours need; without them, memory does not grow
                   with n
    spatial        also moments of the spatial features (sFID), Inception only

    ValueError for statistics in place of images, several networks, or `spatial` of a network without such features.
    """
    options, chosen = Settings.of(settings), protocol_named(protocol)
    with distributed.agreement():
        side = open_side(images, "images", options)
        if side.images is None:
            raise ValueError(f"{side.name} holds statistics already; pass images")
        side.statistics = side.path = None  # of ADM's files, which hold both, the images are wanted
        networks = networks_of(features, chosen, [side], options, spatial)
        _check_one_network(networks, spatial)
    (in_networks,) = gather([side], networks, options, [], keep_features, chosen.mixed_sizes)

    def statistics() -> Statistics:
        (found,) = in_networks
        provenance = {**found.provenance, "protocol": chosen.name}
        if found.skipped:
            provenance |= {"skipped": str(len(found.skipped)), "first_skipped": found.skipped[0]}
        if found.notes:
            provenance["notes"] = "; ".join(found.notes)
        moments = FeatureMoments(found.moments.count, found.moments.mean, found.moments.cov, provenance)
        return Statistics(moments, side.name, found.features, found.spatial)

    made: Statistics = distributed.from_main(statistics)
    return made


def _check_one_network(networks: Sequence[Network], spatial: bool) -> None:
    if len(networks) > 1:
        raise ValueError(f"statistics are of one network, {len(networks)} were given; call it once for each")
    (network,) = networks
    if spatial and not isinstance(network, str) and not getattr(network.network, "spatial", False):
        raise ValueError(f"{network.name} has no spatial features; use inception, or leave spatial out (--spatial)")
