"""Errors name the argument, its value and the remedy."""

import math

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, SwapEngine
from tests.support.swap_sets import make, moments


def bad_inputs():
    real, reference, removed, added = make()
    repeated, outside, negative = removed.copy(), removed.copy(), removed.copy()
    repeated[2, 1] = repeated[2, 0]
    outside[0, 0], negative[0, 0] = 120, -1
    with_nan = added.copy()
    with_nan[3, 1, 4] = np.nan
    return {
        r"added has 11 features a row, the real moments 12": (removed, added[..., :11]),
        r"removed must lie in \[0, 120\), got 120": (outside, added),
        r"removed must lie in \[0, 120\), got -1": (negative, added),
        r"removed repeats row \d+ in candidate 2": (repeated, added),
        r"added has NaN or inf, or squares that overflow, in 1 rows, first \(candidate, row\) \[\(3, 1\)\]": (
            removed,
            with_nan,
        ),
        r"removed must be \[B, m_r\] and added \[B, m_a, d\]": (removed[0], added[0]),
        r"got \(3, 5\) and \(4, 5, 12\)": (removed[:3], added),
        r"removed must hold integer row indices, got dtype torch.float64": (removed.astype(float), added),
        r"added must be floating point, got torch.int64": (removed, added.astype(np.int64)),
        r"removed is a tensor .* on the device meta": (torch.empty((4, 5), dtype=torch.int64, device="meta"), added),
        r"added is a tensor .* on the device meta": (removed, torch.empty((4, 5, 12), device="meta")),
        r"added cannot be read as a tensor": (removed, "features"),
    }


@pytest.mark.parametrize("message", bad_inputs())
def test_bad_swaps_are_named(message):
    real, reference, _, _ = make()
    with pytest.raises(ValueError, match=message):
        SwapEngine(moments(real), reference).change(*bad_inputs()[message])


def test_too_small_a_set_is_named():
    real, reference, _, _ = make(N=20)
    with pytest.raises(ValueError, match="leave a set of 1 rows"):
        SwapEngine(moments(real), reference).change(np.arange(19)[None], np.empty((1, 0, 12)))


def test_bad_references_are_named():
    real, reference, _, _ = make()
    wrong = reference.copy()
    wrong[7, 3], wrong[9, 0] = np.inf, np.nan
    for features, message in [
        (wrong, r"reference_features has NaN or inf in 2 rows, first \[7, 9\]"),
        (reference[:, :5], r"reference_features must be \[n, 12\]"),
        (reference[:1], "at least 2 rows"),
        (reference.astype(np.int64), "must be floating point"),
    ]:
        with pytest.raises(ValueError, match=message):
            SwapEngine(moments(real), features)


def test_bad_real_moments_are_named():
    real, reference, _, _ = make()
    mean, cov = moments(real)
    skew = cov.clone()
    skew[0, 1] += 1
    for side, message in [
        ((mean, skew), "not symmetric"),
        ((mean, -cov), "positive semidefinite"),
        ((mean[:5], cov), r"mean \[d\] and covariance \[d, d\]"),
        ((mean * math.nan, cov), "NaN or infinity"),
        (FeatureMoments(1, mean, cov * 0), "real moments hold 1 rows"),
        (reference, "of type ndarray; pass FeatureMoments"),
    ]:
        with pytest.raises(ValueError, match=message):
            SwapEngine(side, reference)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"tol": 0}, "tol must lie strictly between 0 and 1"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float64"),
        ({"backend": "fpga"}, "backend must be one of auto, cpp, triton, torch"),
        ({"method": "guess"}, "method must be one of logdet, eigh"),
        ({"workspace": 0}, "workspace must be a positive number"),
    ],
)
def test_bad_options_are_named(option, message):
    real, reference, _, _ = make()
    with pytest.raises(ValueError, match=message):
        SwapEngine(moments(real), reference, **option)


def test_cpp_says_why_it_cannot():
    real, reference, removed, added = make(N=1200, d=4, m_r=513, m_a=0, batch=1)
    engine = SwapEngine(moments(real), reference, backend="cpp")
    with pytest.raises(
        ValueError, match="backend='cpp' cannot be used: rank 513 of the change exceeds the kernel's 512"
    ):
        engine.change(removed, added)
