"""KID and MMD² as scores."""

from __future__ import annotations

import math
from dataclasses import asdict

from fastfid.evaluation.intervals import normal_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import REAL, Score


def kid_score(pair: Pair) -> Score | str:
    """KID with the subsets of the protocol, or why it cannot be computed."""
    if reason := pair.missing_features():
        return reason
    available, size = pair.fewest_rows, pair.kid_subset_size
    if size > available:
        remedy = f"pass kid_subset_size={available} or less (--kid-subset-size)"
        return f"subsets of {size} rows from {available} images; {remedy}"
    try:
        found, variance = pair.kid
    except ValueError as unfit:  # features so large that kernel values leave float64
        return str(unfit)
    details = {k: v for k, v in asdict(found).items() if k not in ("mean", "std")} | {"std_over_subsets": found.std}
    formula = f"(x·y/{pair.samples.dim} + 1)^{found.degree}"
    method = f"mean of {found.subsets} subsets of {size}, std {found.std:.4g}, kernel {formula}"
    if variance is None or found.subsets < 2:
        return Score("kid", "KID", pair.network, found.mean, method=method, details=details)
    error = math.sqrt(variance + found.std**2 / (found.subsets - 1))
    method += f"; jackknife over samples and {REAL}"
    return Score("kid", "KID", pair.network, found.mean, error, normal_interval(found.mean, error), method, details)


def mmd_score(pair: Pair) -> Score | str:
    """Unbiased MMD² with a Gaussian kernel, or why it cannot be computed."""
    if reason := pair.missing_features():
        return reason
    if pair.fewest_rows < 2:
        return "fewer than 2 images on a side"
    try:
        found, variance = pair.mmd
    except ValueError as unfit:  # most rows are identical, so that there is no median distance
        return str(unfit)
    method = f"{found.kernel} kernel, bandwidth {found.bandwidth:.4g} (median distance), {found.estimator}"
    if variance is None:
        return Score("mmd", "MMD²", pair.network, found.value, method=method, details=asdict(found))
    error, method = math.sqrt(variance), f"{method}; jackknife over samples and {REAL}, bandwidth taken as fixed"
    interval = normal_interval(found.value, error)
    return Score("mmd", "MMD²", pair.network, found.value, error, interval, method, asdict(found))
