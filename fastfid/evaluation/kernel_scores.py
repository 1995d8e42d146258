"""KID and MMD² as scores."""

from __future__ import annotations

import math
from dataclasses import asdict

from fastfid.distances.cmmd import BANDWIDTH, SCALE, cmmd, unit_rows
from fastfid.distances.kernel_sums import gaussian_kernel
from fastfid.evaluation.intervals import mmd_variance, normal_interval
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
    alone = size == max(map(len, pair.features))  # of both sides: every subset is all rows
    details = {k: v for k, v in asdict(found).items() if k not in ("mean", "std")}
    details["std_over_subsets"] = None if alone else found.std
    drawn = f"all {size} rows, the only subset" if alone else f"mean of {found.subsets} subsets of {size}"
    spread = "" if alone else f", std {found.std:.4g}"
    method = f"{drawn}{spread}, kernel (x·y/{pair.samples.dim} + 1)^{found.degree}"
    if variance is None or found.subsets < 2:
        return Score("kid", "KID", pair.network, found.mean, method=method, details=details)
    error = math.sqrt(variance + (0.0 if alone else found.std**2 / (found.subsets - 1)))
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


def cmmd_score(pair: Pair) -> Score | str:
    """CMMD of CLIP's features, or why it cannot be computed."""
    if not pair.network.startswith(("clip", "openclip")):
        return f"CMMD is defined for features of CLIP, not of {pair.network}; use --protocol cmmd"
    if reason := pair.missing_features():
        return reason
    real, generated = pair.features
    try:
        found = cmmd(real, generated)
    except ValueError as unfit:  # a row of zeros
        return str(unfit)
    method = f"embeddings of length 1, gaussian kernel, bandwidth {BANDWIDTH:g}, {found.estimator}, times {SCALE:g}"
    variance = mmd_variance(unit_rows(generated), unit_rows(real), gaussian_kernel(BANDWIDTH), pair.settings.seed)
    if variance is None:
        return Score("cmmd", "CMMD", pair.network, found.value, method=method, details=asdict(found))
    error, method = SCALE * math.sqrt(variance), f"{method}; jackknife over samples and {REAL}"
    return Score("cmmd", "CMMD", pair.network, found.value, error, normal_interval(found.value, error), method,
                 asdict(found))  # fmt: skip
