"""The metrics of a pair of materials: each a Score with its uncertainty and method, or the reason it is missing.

Legend: N samples, M reference images, d feature dimension, C classes of a classifier.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.frechet import FrechetTerms, PreparedMoments, Side, frechet_distance, frechet_terms, prepare
from fastfid.distances.kernel_sums import Kernel, gaussian_kernel, polynomial_kernel
from fastfid.distances.kid_mmd import KidEstimate, MaximumMeanDiscrepancy, kid, kid_and_mmd, mmd
from fastfid.distances.leave_one_out import LeaveOneOut
from fastfid.distances.moments import FeatureMoments
from fastfid.distances.precision_recall import BallCounts, ball_counts, prdc, precision_recall
from fastfid.distances.rows import mean_row
from fastfid.evaluation.intervals import (
    PARTS,
    ClassProbabilities,
    ShareSpread,
    density_error,
    jackknife_variance,
    line_through,
    mmd_variance,
    mmd_variance_of_sums,
    normal_interval,
    share_spread,
    wilson_interval,
)
from fastfid.evaluation.results import LeftOut, Score
from fastfid.evaluation.sides import Material, Settings
from fastfid.features.extraction import PROGRESS_DELAY
from fastfid.protocols import METRICS, Protocol
from fastfid.statistics.statistics import without_provenance

INFINITY_POINTS = 15  # subset sizes of FD∞, as Chong & Forsyth take them
INFINITY_SMALLEST = 5000  # their smallest subset; a tenth of the images where there are fewer than 50,000
INFINITY_ROWS = 1024  # rows of a subset copied at a time
INFINITY_WORKERS = 4  # subsets at a time: each holds a few d × d matrices
INFINITY_RANK = 2  # times d images at least in the smallest subset: below d the distance is not linear in 1/N

# Moments and features are of the same images if their means agree to this part of the features' size: moments kept in
# float32 differ by 1e-7, other images or another preparation by 1/√N and more.
SAME_MEAN = 1e-5


class Pair:
    """Samples and reference in one network, and what more than one metric needs of them."""

    def __init__(
        self,
        samples: Material,
        reference: Material,
        protocol: Protocol,
        settings: Settings,
        metrics: Sequence[str] = METRICS,
    ):
        self.samples, self.reference, self.protocol, self.settings = samples, reference, protocol, settings
        self.metrics = metrics  # that will be asked for: what they share is made once
        self.network = samples.network

    @property
    def nearest_k(self) -> int:
        """Neighbour whose distance is a point's radius."""
        given = self.settings.nearest_k
        return self.protocol.nearest_k if given is None else given

    @cached_property
    def prepared(self) -> PreparedMoments:
        """The reference's moments, factored."""
        return prepare(without_provenance(self.reference.moments))

    @cached_property
    def distance(self) -> Distance:
        """The Fréchet distance of the moments, and its changes without each sample and each reference image."""
        mine, theirs = self.samples, self.reference
        sides = without_provenance(mine.moments), self.prepared
        return _distance(*sides, _rows_of(mine.moments, mine.features), _rows_of(theirs.moments, theirs.features))

    @property
    def terms(self) -> FrechetTerms:
        """The Fréchet distance of the moments."""
        return self.distance.terms

    @property
    def sample_changes(self) -> Tensor | None:
        """Change of FD when each sample is left out, float64 [N]; None without features of these moments."""
        return self.distance.sample_changes

    @property
    def reference_changes(self) -> Tensor | None:
        """Change of FD when each reference image is left out, float64 [M]; None without features of these moments."""
        return self.distance.reference_changes

    @cached_property
    def kid_and_mmd(self) -> tuple | None:
        """Both estimates and their variances from the same products; None where either cannot be had."""
        real, generated = self.reference.features, self.samples.features
        options = self.protocol.kid_subsets, _kid_subset_size(self), self.settings.seed
        if not {"kid", "mmd"} <= set(self.metrics) or options[1] > min(len(real), len(generated)):
            return None
        try:
            found = kid_and_mmd(real, generated, *options)
        except ValueError:  # no median distance
            return None
        return tuple((score, mmd_variance_of_sums(sums)) for score, sums in zip(found[:2], found[2:], strict=True))

    @cached_property
    def kid(self) -> tuple[KidEstimate, float | None]:
        """KID and its jackknife variance."""
        if self.kid_and_mmd:
            return self.kid_and_mmd[0]
        real, generated, seed = self.reference.features, self.samples.features, self.settings.seed
        found = kid(real, generated, self.protocol.kid_subsets, _kid_subset_size(self), seed=seed)
        return found, mmd_variance(generated, real, _kernel_of_kid(found), seed)

    @cached_property
    def mmd(self) -> tuple[MaximumMeanDiscrepancy, float | None]:
        """MMD² and its jackknife variance; ValueError where there is no median distance."""
        if self.kid_and_mmd:
            return self.kid_and_mmd[1]
        real, generated = self.reference.features, self.samples.features
        found = mmd(real, generated)
        return found, mmd_variance(generated, real, gaussian_kernel(found.bandwidth), self.settings.seed)

    @cached_property
    def balls(self) -> BallCounts:
        """Behind precision, recall, density and coverage, strictly inside a ball."""
        return ball_counts(self.reference.features, self.samples.features, self.nearest_k)

    @cached_property
    def share_spread(self) -> ShareSpread | None:
        """Behind the intervals of precision, recall and coverage; None of too few images."""
        return share_spread(self.reference.features, self.samples.features, self.nearest_k, self.settings.seed)

    @cached_property
    def protocol_scores(self) -> dict[str, float]:
        """Precision and recall as the protocol counts and measures them."""
        return self.precision_recall(self.reference.features, self.samples.features)

    def precision_recall(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Precision and recall of features real [n, d] and generated [m, d] as the protocol counts and measures."""
        if not self.protocol.inclusive:
            return prdc(real, generated, self.nearest_k)
        return precision_recall(real, generated, self.nearest_k, self.protocol.distances)


class Distance(NamedTuple):
    """A Fréchet distance and its leave-one-out changes, float64 [N] and [M], None for a side without its rows."""

    terms: FrechetTerms
    sample_changes: Tensor | None = None
    reference_changes: Tensor | None = None

    @property
    def changes(self) -> tuple[Tensor | None, Tensor | None]:
        """Of the samples and of the reference."""
        return self.sample_changes, self.reference_changes


def _distance(a: Side, b: Side, rows_a: Tensor | None, rows_b: Tensor | None) -> Distance:
    if rows_a is None and rows_b is None:
        return Distance(frechet_terms(a, b))
    both = LeaveOneOut(a, b)
    return Distance(
        both.terms,
        None if rows_a is None else both.without_first(rows_a),
        None if rows_b is None else both.without_second(rows_b),
    )


def _rows_of(moments: FeatureMoments, features: Tensor | None) -> Tensor | None:
    """The features if the moments are theirs, at least 3 rows; None where they are of others, as in ADM's references.

    One of three rows may be left out: two stay for a covariance.
    """
    if features is None or len(features) < 3 or moments.count != len(features):
        return None
    distance = torch.linalg.vector_norm(mean_row(features) - moments.mean)
    return features if distance <= SAME_MEAN * moments.cov.trace().sqrt() + SAME_MEAN * moments.mean.norm() else None


def compute(pair: Pair, metrics: Sequence[str], warnings: list[str]) -> tuple[list[Score], list[LeftOut]]:
    """Every metric's Score, and those that cannot be computed with the reason; repairs are told in `warnings`."""
    scores, left_out = [], []
    for metric in _with_bar(metrics, pair):
        found = _METRICS[metric](pair)
        if isinstance(found, str):
            left_out.append(LeftOut(metric, pair.network, found))
        elif found is not None:
            scores.append(found)
            warnings += _repairs(found, pair)
    return scores, left_out


def _repairs(score: Score, pair: Pair) -> list[str]:
    if score.metric == "kid":
        wanted, size = pair.settings.kid_subset_size or pair.protocol.kid_subset_size, score.details["subset_size"]
        return [f"KID subsets shrank from {wanted} to the {size} images there are"] if size < wanted else []
    clipped = score.details.get("clipped", 0)
    values = "eigenvalue was" if clipped == 1 else "eigenvalues were"
    return [f"{clipped} {values} below 0 under the root of {score.label} and taken for 0"] if clipped else []


def _with_bar(metrics: Sequence[str], pair: Pair):
    """The metrics, with a bar on stderr if they take more than PROGRESS_DELAY seconds."""
    from tqdm import tqdm

    hidden = not pair.settings.progress
    name = f"metrics ({pair.network})"
    return tqdm(metrics, unit="metric", desc=name, file=sys.stderr, delay=PROGRESS_DELAY, disable=hidden)


# --- Fréchet distances -------------------------------------------------------------------------------------------


def fd_label(network: str, suffix: str = "") -> str:
    """What a Fréchet distance in this network is called: FID for Inception's alone."""
    return f"FID{suffix}" if network == "inception" else f"FD{suffix} ({network})"


def _fd(pair: Pair) -> Score:
    return _frechet_score("fd", fd_label(pair.network), pair.network, pair.distance)


def _sfid(pair: Pair) -> Score | str:
    mine, theirs = pair.samples, pair.reference
    for side in (mine, theirs):
        if side.spatial is None:
            return (
                f"no spatial features of {side.name}; they come from images through inception, or ADM's mu_s, sigma_s"
            )
    moments = (without_provenance(side.spatial) for side in (mine, theirs))
    found = _distance(*moments, *(_rows_of(side.spatial, side.spatial_features) for side in (mine, theirs)))
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


def _fd_infinity(pair: Pair) -> Score | str:
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
    label, drawn = fd_label(pair.network, "∞"), _fd(pair).standard_error
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
    if _rows_of(whole, features) is None:
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


# --- Inception Score ---------------------------------------------------------------------------------------------


def _inception_score(pair: Pair) -> Score | str:
    logits = pair.samples.logits
    if logits is None:
        return f"{pair.network} gives no logits for {pair.samples.name}; they come from images through inception"
    p, n = pair.protocol, len(logits)
    if not p.is_split_size and n < 2 * p.is_splits:
        return f"{n} images in {p.is_splits} splits leave single ones, whose score is 1 always; pass more"
    bounds = [*range(0, n, p.is_split_size), n] if p.is_split_size else _equal_parts(n, p.is_splits)
    parts = _parts(logits, bounds, pair.settings.seed if p.is_shuffle else None)
    mean, std = _mean_and_deviation(parts)
    variances = [part.variance() for part in parts]
    label = "Inception Score" if pair.network == "inception" else f"Classifier score ({pair.network})"
    details = {"splits": len(parts), "std_over_splits": std, "shuffled": p.is_shuffle}
    method = f"mean of {len(parts)} splits, std {std:.4g}"
    if None in variances:
        return Score("is", label, pair.network, mean, method=method, details=details)
    error = math.sqrt(sum(variances)) / len(parts)
    method += "; jackknife over samples"
    return Score("is", label, pair.network, mean, error, normal_interval(mean, error), method, details)


def inception_score(logits: Tensor, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """exp E[KL(p(y|x) ‖ p(y))], mean and population deviation over `splits` parts of logits [n, C]; float64 inside.

    seed  permutes the rows by RandomState(seed), as torch-fidelity does; None keeps their order
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits is {splits} for {len(logits)} rows; it must be from 1 to their number")
    return _mean_and_deviation(_parts(logits, _equal_parts(len(logits), splits), seed))


def _equal_parts(n: int, parts: int) -> list[int]:
    return [i * n // parts for i in range(parts + 1)]


def _parts(logits: Tensor, bounds: list[int], seed: int | None) -> list[ClassProbabilities]:
    """Those of the row ranges between `bounds` after the permutation."""
    n = len(logits)
    order = torch.arange(n) if seed is None else torch.from_numpy(np.random.RandomState(seed).permutation(n))
    return [ClassProbabilities(logits, order[low:high]) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _mean_and_deviation(parts: list[ClassProbabilities]) -> tuple[float, float]:
    """Mean and population deviation of the score over the parts."""
    scores = [part.score() for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


# --- kernels -----------------------------------------------------------------------------------------------------


def _both_features(pair: Pair) -> str | None:
    """Why metrics of both sides' features cannot be computed, None if they can."""
    for side in (pair.samples, pair.reference):
        if side.features is None:
            return f"{side.name} holds statistics only; pass its images, or features saved with --keep-features"
    return None


def _kernel_of_kid(found: KidEstimate) -> Kernel:
    return polynomial_kernel(found.degree, found.gamma, found.coef)


def _kid_subset_size(pair: Pair) -> int:
    """Rows of a KID subset: asked for, or the protocol's, capped where it caps."""
    asked, available = pair.settings.kid_subset_size, min(len(pair.samples.features), len(pair.reference.features))
    size = pair.protocol.kid_subset_size if asked is None else asked
    return min(size, available) if asked is None and pair.protocol.kid_caps else size


def _kid(pair: Pair) -> Score | str:
    if reason := _both_features(pair):
        return reason
    available = min(len(pair.samples.features), len(pair.reference.features))
    if (size := _kid_subset_size(pair)) > available:
        remedy = f"pass kid_subset_size={available} or less (--kid-subset-size)"
        return f"subsets of {size} rows from {available} images; {remedy}"
    found, variance = pair.kid
    details = {k: v for k, v in asdict(found).items() if k not in ("mean", "std")} | {"std_over_subsets": found.std}
    formula = f"(x·y/{pair.samples.moments.dim} + 1)^{found.degree}"
    method = f"mean of {found.subsets} subsets of {size}, std {found.std:.4g}, kernel {formula}"
    if variance is None or found.subsets < 2:
        return Score("kid", "KID", pair.network, found.mean, method=method, details=details)
    error = math.sqrt(variance + found.std**2 / (found.subsets - 1))
    method += "; jackknife over samples and reference"
    return Score("kid", "KID", pair.network, found.mean, error, normal_interval(found.mean, error), method, details)


def _mmd(pair: Pair) -> Score | str:
    if reason := _both_features(pair):
        return reason
    if min(len(pair.samples.features), len(pair.reference.features)) < 2:
        return "fewer than 2 images on a side"
    try:
        found, variance = pair.mmd
    except ValueError as unfit:  # most rows identical: no median distance
        return str(unfit)
    method = f"{found.kernel} kernel, bandwidth {found.bandwidth:.4g} (median distance), {found.estimator}"
    if variance is None:
        return Score("mmd", "MMD²", pair.network, found.value, method=method, details=asdict(found))
    error, method = math.sqrt(variance), f"{method}; jackknife over samples and reference, bandwidth taken as fixed"
    interval = normal_interval(found.value, error)
    return Score("mmd", "MMD²", pair.network, found.value, error, interval, method, asdict(found))


# --- neighbours --------------------------------------------------------------------------------------------------


def _too_few_neighbours(pair: Pair) -> str | None:
    if reason := _both_features(pair):
        return reason
    k, available = pair.nearest_k, min(len(pair.samples.features), len(pair.reference.features))
    if available <= k:
        return f"{available} images have no neighbour number {k}; pass nearest_k={available - 1} or less (--nearest-k)"
    return None


def _share(metric: str) -> Callable[[Pair], Score | str]:
    """Precision and recall, as the protocol counts them."""
    counted, balls = ("samples", "reference") if metric == "precision" else ("reference", "samples")

    def score(pair: Pair) -> Score | str:
        if reason := _too_few_neighbours(pair):
            return reason
        inclusive = pair.protocol.inclusive
        value = (pair.protocol_scores if inclusive else pair.balls.scores())[metric]
        n = len(getattr(pair, counted).features)
        measured = pair.protocol.distances if inclusive else "exact"
        details = {"nearest_k": pair.nearest_k, "inclusive": inclusive, "distances": measured}
        method = f"k = {pair.nearest_k}, distance {'<=' if inclusive else '<'} radius, {measured}"
        if pair.share_spread is None:
            method += f"; binomial over {counted}, {balls} taken as fixed, as the images are too few for both"
            error, interval = math.sqrt(value * (1 - value) / n), wilson_interval(value, n)
            return Score(metric, metric.capitalize(), pair.network, value, error, interval, method, details)
        return _share_score(pair, metric, value, n, method, details)

    return score


def _share_score(pair: Pair, metric: str, share: float, n: int, method: str, details: dict) -> Score:
    """The `share` of n images with its interval over both draws."""
    spread = pair.share_spread
    error, interval = spread.interval(metric, share, n)
    method += f"; spread of {spread.parts} random parts of both sides, both drawn anew"
    if spread.parts < PARTS:
        method += f"; wide, as the images are too few for {PARTS}"
    details = {**details, "parts": spread.parts}
    return Score(metric, metric.capitalize(), pair.network, share, error, interval, method, details)


def _density(pair: Pair) -> Score | str:
    if reason := _too_few_neighbours(pair):
        return reason
    details = {"nearest_k": pair.nearest_k, "inclusive": False, "distances": "exact"}
    method = f"k = {pair.nearest_k}, distance < radius, exact; mean over samples and balls, both sides drawn anew"
    value = pair.balls.scores()["density"]
    error = density_error(pair.balls.around, pair.balls.within, pair.nearest_k)
    return Score("density", "Density", pair.network, value, error, normal_interval(value, error), method, details)


def _coverage(pair: Pair) -> Score | str:
    if reason := _too_few_neighbours(pair):
        return reason
    value = pair.balls.scores()["coverage"]
    details = {"nearest_k": pair.nearest_k, "inclusive": False, "distances": "exact"}
    method = f"k = {pair.nearest_k}, distance < radius, exact"
    if pair.share_spread is None:
        method += "; too few images for an interval"
        return Score("coverage", "Coverage", pair.network, value, method=method, details=details)
    return _share_score(pair, "coverage", value, len(pair.reference.features), method, details)


def _outliers(pair: Pair) -> str | None:
    """Why outliers cannot be told; they are no Score."""
    if pair.sample_changes is None:
        return f"{pair.samples.name} holds statistics only, or fewer than 3 images; pass images"
    return None


_METRICS: dict[str, Callable[[Pair], Score | str | None]] = {
    "fd": _fd,
    "fd_infinity": _fd_infinity,
    "sfid": _sfid,
    "is": _inception_score,
    "kid": _kid,
    "mmd": _mmd,
    "density": _density,
    "coverage": _coverage,
    "outliers": _outliers,
    **{name: _share(name) for name in ("precision", "recall")},
}
