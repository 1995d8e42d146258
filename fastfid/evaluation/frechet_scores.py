"""The Fréchet distance as a score: FD (FID), sFID and FD∞.

Legend: N samples, M real images, d feature dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid.distances.frechet import frechet_distance
from fastfid.distances.moments import FeatureMoments
from fastfid.evaluation.intervals import jackknife_error, line_through, normal_interval
from fastfid.evaluation.pair import Distance, Pair, distance_of, rows_behind
from fastfid.evaluation.results import REAL, Details, Score
from fastfid.evaluation.sides import SideInNetwork
from fastfid.runtime.even_steps import evenly_spaced

INFINITY_POINTS = 15  # subset sizes of FD∞, as in Chong & Forsyth (2020)
INFINITY_SMALLEST = 5000  # their smallest subset; a tenth of the images where there are fewer than 50,000
INFINITY_ROWS = 1024  # rows of a subset copied at a time
INFINITY_WORKERS = 4  # subsets at a time: each holds a few d × d matrices
INFINITY_RANK = 2  # times d images at least in the smallest subset: below d the distance is not linear in 1/N


def fd_label(network: str, suffix: str = "") -> str:
    """Name of the Fréchet distance in this network: FID for Inception's, FD and the network for any other."""
    return f"FID{suffix}" if network == "inception" else f"FD{suffix} ({network})"


def fd_score(pair: Pair) -> Score:
    """The Fréchet distance of the pair's moments."""
    return _frechet_score("fd", fd_label(pair.network), pair.network, pair.distance)


def fdr_score(pair: Pair, split: SideInNetwork) -> Score | str:
    """FDr (arXiv 2604.28190): FD in units of the FD of as many other real images, or why it cannot be computed.

    split  other real images than `real`; as many of them as there are samples, evenly spaced
    """
    if pair.samples.features is None or split.features is None:
        name = pair.samples.name if pair.samples.features is None else split.name
        return f"{name} holds statistics only; both need the same number of images, pass them"
    count, available = len(pair.samples.features), len(split.features)
    if available < count:
        return f"{split.name} holds {available} images, fewer than the {count} samples; pass more, or fewer samples"
    rows = split.features[evenly_spaced(available, count)]
    theirs = pair.real
    real = distance_of(
        FeatureMoments.from_features(rows), pair.prepared, rows, rows_behind(theirs.moments, theirs.features)
    )
    details: Details = {"real_images": split.name, "fd_of_real_images": float(real.terms.total)}
    return _ratio(pair, details, pair.distance, real)


def _ratio(pair: Pair, details: Details, of_samples: Distance, of_real: Distance) -> Score | str:
    """FDr of two distances; its relative variance is the sum of theirs, as if both were independent."""
    made, real = (_frechet_score("fd", "", pair.network, found) for found in (of_samples, of_real))
    if real.value <= 0:
        return "the other real images are at distance 0 from the first ones: they are the same images"
    value = made.value / real.value
    label, method = fd_label(pair.network, "r"), f"FD / FD of as many other real images, {real.value:.4g}"
    if made.standard_error is None or real.standard_error is None:
        return Score("fdr", label, pair.network, value, method=method, details=details)
    parts = made.standard_error / real.value, value * real.standard_error / real.value
    error, method = math.hypot(*parts), f"{method}; jackknife of both"
    return Score("fdr", label, pair.network, value, error, normal_interval(value, error), method, details)


def sfid_score(pair: Pair) -> Score | str:
    """The Fréchet distance of the spatial features' moments, or why it cannot be computed."""
    mine, theirs = pair.samples, pair.real
    if mine.spatial is None or theirs.spatial is None:
        name = mine.name if mine.spatial is None else theirs.name
        return f"no spatial features of {name}; they come from images through inception, or ADM's mu_s, sigma_s"
    rows = rows_behind(mine.spatial, mine.spatial_features), rows_behind(theirs.spatial, theirs.spatial_features)
    found = distance_of(mine.spatial, theirs.spatial, *rows)
    return _frechet_score("sfid", "sFID", pair.network, found)


def _frechet_score(metric: str, label: str, network: str, found: Distance) -> Score:
    """The distance with the jackknife over the sides whose leave-one-out changes are known."""
    total = float(found.terms.total)
    details = {key: value for key, value in asdict(found.terms).items() if isinstance(value, int | float | str)}
    sides = {"samples": found.sample_changes, "real": found.real_changes}
    known = {name: changes for name, changes in sides.items() if changes is not None}
    for name, changes in known.items():
        details[f"jackknife_bias_{name}"] = (len(changes) - 1) * changes.mean().item()
    if not known:
        method = "no interval: neither side has features of 3 images or more"
        return Score(metric, label, network, total, method=method, details=details)
    error = jackknife_error(known.values())
    names = {"samples": "samples", "real": REAL}
    fixed = "".join(f", {names[side]} taken as fixed" for side in sides if side not in known)
    over = " and ".join(names[side] for side in known)
    method = f"jackknife over {over}{fixed}; which images were drawn, not the bias of finite N"
    return Score(metric, label, network, total, error, normal_interval(total, error), method, details)


# --- FD∞ ---------------------------------------------------------------------------------------------------------


def fd_infinity_score(pair: Pair) -> Score | str:
    """FD∞ (Chong & Forsyth 2020), the intercept of a line in 1/N through FDs of subsets, or why there is none."""
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
    return _score_of_line(pair, sizes, np.array(_distances_of_subsets(pair, features, rows)))


def _score_of_line(pair: Pair, sizes: npt.NDArray[np.int_], distances: npt.NDArray[np.float64]) -> Score:
    """The intercept of the line, with the errors of FD and of the line where FD's is known."""
    slope, intercept, line_error = line_through(1 / sizes, distances)
    details: Details = {
        "sizes": sizes.tolist(),
        "distances": distances.tolist(),
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


def _distances_of_subsets(pair: Pair, features: Tensor, rows: Sequence[Tensor]) -> list[float]:
    """Fréchet distances of subsets of the samples' features [N, d], each given by the numbers of its rows [size]."""
    real, of_all = pair.prepared, float(pair.terms.total)
    moments = pair.samples.moments
    whole = None if rows_behind(moments, features) is None else moments

    def distance(of_subset: Tensor) -> float:
        if whole is not None and len(of_subset) == len(features):
            return of_all
        return float(frechet_distance(_moments_of(features, of_subset, whole), real))

    return _side_by_side(distance, rows)


def _side_by_side(distance: Callable[[Tensor], float], rows: Sequence[Tensor]) -> list[float]:
    """distance(subset) for every subset, in threads that share torch's threads.

    One distance gains little from a second thread: at d = 1280 it takes 0.22 s on one and 0.18 s on two.
    """
    threads = torch.get_num_threads()
    workers = min(INFINITY_WORKERS, threads)
    if workers == 1:
        return [distance(of_subset) for of_subset in rows]
    share = partial(torch.set_num_threads, threads // workers)
    try:
        with ThreadPoolExecutor(workers, "subsets", initializer=share) as pool:
            return list(pool.map(distance, rows))
    finally:
        torch.set_num_threads(threads)  # threads of torch that start later take this number


def _moments_of(features: Tensor, rows: Tensor, whole: FeatureMoments | None) -> FeatureMoments:
    """Moments of some rows of features [N, d], added up, or the `whole`'s without the others where those are fewer."""
    if whole is None or 2 * len(rows) <= len(features):
        moments = FeatureMoments.empty(features.shape[1], device=features.device)
        for part in rows.split(INFINITY_ROWS):
            moments.update(features[part])
        return moments
    moments = whole.copy()
    others = torch.ones(len(features), dtype=torch.bool)
    others[rows] = False
    for part in others.nonzero()[:, 0].split(INFINITY_ROWS):
        moments.evict(features[part])
    return moments
