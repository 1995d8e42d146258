"""The Fréchet distance as a score: FD (FID), sFID and FD∞.

Legend: N samples, M reference images, d feature dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.frechet import frechet_distance
from fastfid.distances.moments import FeatureMoments
from fastfid.evaluation.intervals import jackknife_variance, line_through, normal_interval
from fastfid.evaluation.pair import Distance, Pair, distance_of, rows_behind
from fastfid.evaluation.results import Score
from fastfid.statistics.statistics import without_provenance

INFINITY_POINTS = 15  # subset sizes of FD∞, as Chong & Forsyth take them
INFINITY_SMALLEST = 5000  # their smallest subset; a tenth of the images where there are fewer than 50,000
INFINITY_ROWS = 1024  # rows of a subset copied at a time
INFINITY_WORKERS = 4  # subsets at a time: each holds a few d × d matrices
INFINITY_RANK = 2  # times d images at least in the smallest subset: below d the distance is not linear in 1/N


def fd_label(network: str, suffix: str = "") -> str:
    """What a Fréchet distance in this network is called: FID for Inception's alone."""
    return f"FID{suffix}" if network == "inception" else f"FD{suffix} ({network})"


def fd_score(pair: Pair) -> Score:
    """The Fréchet distance of the pair's moments."""
    return _frechet_score("fd", fd_label(pair.network), pair.network, pair.distance)


def sfid_score(pair: Pair) -> Score | str:
    """The Fréchet distance of the spatial features' moments, or why it cannot be computed."""
    mine, theirs = pair.samples, pair.reference
    for side in (mine, theirs):
        if side.spatial is None:
            return (
                f"no spatial features of {side.name}; they come from images through inception, or ADM's mu_s, sigma_s"
            )
    moments = (without_provenance(side.spatial) for side in (mine, theirs))
    found = distance_of(*moments, *(rows_behind(side.spatial, side.spatial_features) for side in (mine, theirs)))
    return _frechet_score("sfid", "sFID", pair.network, found)


def _frechet_score(metric: str, label: str, network: str, found: Distance) -> Score:
    """The distance with the jackknife over the sides whose leave-one-out changes are known, samples and reference."""
    terms, changes = found.terms, found.changes
    details = {key: value for key, value in asdict(terms).items() if isinstance(value, int | float | str)}
    known = {name: c for name, c in zip(("samples", "reference"), changes, strict=True) if c is not None}
    for name, c in known.items():
        details[f"jackknife_bias_{name}"] = (len(c) - 1) * c.mean().item()
    if not known:
        method = "no interval: neither side has features of 3 images or more"
        return Score(metric, label, network, terms.total, method=method, details=details)
    error = math.sqrt(sum(map(jackknife_variance, known.values())))
    fixed = "".join(f", {name} taken as fixed" for name in ("samples", "reference") if name not in known)
    method = f"jackknife over {' and '.join(known)}{fixed}; which images were drawn, not the bias of finite N"
    return Score(metric, label, network, terms.total, error, normal_interval(terms.total, error), method, details)


def fd_infinity_score(pair: Pair) -> Score | str:
    """FD∞ (Chong & Forsyth 2020), the intercept of a line in 1/N through FDs of subsets, or why it cannot be had."""
    features = pair.samples.features
    if features is None:
        return f"{pair.samples.name} holds statistics only; pass images"
    n, d = features.shape
    smallest = max(min(INFINITY_SMALLEST, n // 10), INFINITY_RANK * d)
    if 2 * smallest > n:
        return f"{n} samples are too few for subsets of {smallest} and more; d = {d} needs at least {2 * smallest}"
    sizes = np.linspace(smallest, n, INFINITY_POINTS).round().astype(int)
    rng = np.random.RandomState(pair.settings.seed)
    rows = [torch.from_numpy(rng.choice(n, size, replace=False)) for size in sizes]
    values = np.array(_distances_of_subsets(pair, rows))
    slope, intercept, line_error = line_through(1 / sizes, values)
    details = {
        "sizes": sizes.tolist(),
        "distances": values.tolist(),
        "slope": slope,
        "standard_error_of_line": line_error,
    }
    method = f"line in 1/N through {len(sizes)} subsets of {sizes[0]} to {sizes[-1]} samples"
    label, drawn = fd_label(pair.network, "∞"), fd_score(pair).standard_error
    if drawn is None:
        return Score("fd_infinity", label, pair.network, intercept, method=method, details=details)
    error = math.hypot(drawn, line_error)
    method += "; jackknife of FD and the line's residuals"
    interval = normal_interval(intercept, error)
    return Score("fd_infinity", label, pair.network, intercept, error, interval, method, details)


def _distances_of_subsets(pair: Pair, rows: Sequence[Tensor]) -> list[float]:
    """Fréchet distances of subsets of the samples, each the numbers of its rows [size].

    Subsets go side by side in threads that share torch's threads: a distance gains little from a second one (measured
    at d = 1280: 0.22 s on one, 0.18 s on two).
    """
    features, reference, of_all = pair.samples.features, pair.prepared, pair.terms.total
    threads = torch.get_num_threads()
    whole = without_provenance(pair.samples.moments)
    if rows_behind(whole, features) is None:
        whole = None

    def distance(of_subset: Tensor) -> float:
        if whole is not None and len(of_subset) == len(features):
            return of_all
        return frechet_distance(_moments_of(features, of_subset, whole), reference)

    workers = min(INFINITY_WORKERS, threads)
    if workers == 1:
        return [distance(of_subset) for of_subset in rows]
    share = partial(torch.set_num_threads, threads // workers)
    try:
        with ThreadPoolExecutor(workers, "subsets", initializer=share) as pool:
            return list(pool.map(distance, rows))
    finally:
        torch.set_num_threads(threads)  # what threads to come start with


def _moments_of(features: Tensor, rows: Tensor, whole: FeatureMoments | None) -> FeatureMoments:
    """Moments of some rows of features [n, d]; where the others are fewer, they are taken out of the `whole`'s."""
    if whole is None or 2 * len(rows) <= len(features):
        moments, change = FeatureMoments.empty(features.shape[1]), FeatureMoments.update
    else:
        moments, change = whole.copy(), FeatureMoments.evict
        others = torch.ones(len(features), dtype=torch.bool)
        others[rows] = False
        rows = others.nonzero()[:, 0]
    for part in rows.split(INFINITY_ROWS):
        change(moments, features[part])
    return moments
