"""Squared maximum mean discrepancies: KID (Bińkowski et al. 2018) and MMD with a chosen kernel (Gretton et al. 2012).

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y)

The unbiased estimator leaves k(x, x) out of the first two means.  The three means nearly cancel (KID is often 10⁻⁴ of
each), so kernels and sums are float64 throughout: the result carries about 10⁻¹³ of the largest mean as error.  In
float32 the error of a product can reach 10⁻⁴ of |x||y| at d = 2048, as much as KID itself.  These errors would probably
average out to about 10⁻⁷, but nothing guarantees it.

Work: one triangle of k(x, x') and of k(y, y'), and all of k(x, y).  Each value is computed once for all subsets or once
per subset, whichever is less work.  KID and MMD of the same features share their products (`kid_and_mmd`).  Memory: a
panel of rows in float64 and its kernel values, independent of n and m.

Legend: x real [n, d], y generated [m, d]; p = x − c and q = y − c about a common c; S subsets of s rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.arguments import check_kid, check_polynomial
from fastfid.distances.kernel_sums import (
    COLUMNS,
    Reduction,
    RowSums,
    Sums,
    gaussian_kernel,
    polynomial_kernel,
    row_sums,
    subset_members,
    sums_by_subsets,
    sums_over_pairs,
)
from fastfid.distances.rows import blocks, checked_pair
from fastfid.runtime.even_steps import evenly_spaced

# If the median squared distance is below this part of the largest squared norm, |x|² + |y|² − 2x·y has cancelled too
# many digits, and the distances are computed directly.
CANCELLED = 1e-4
MEDIAN_ROWS = 1000  # rows of each set, evenly spaced, whose pairwise distances give the median bandwidth


@dataclass(frozen=True)
class KidEstimate:
    """KID: mean and population standard deviation over subsets, with everything needed to repeat it; float() = mean."""

    mean: float
    std: float
    subsets: int
    subset_size: int
    degree: int
    gamma: float
    coef: float
    seed: int

    def __float__(self) -> float:
        return self.mean


@dataclass(frozen=True)
class MaximumMeanDiscrepancy:
    """`value` = scale × MMD² with the kernel, bandwidth (None for a polynomial) and estimator used; float() = value."""

    value: float
    kernel: str
    bandwidth: float | None
    estimator: str
    scale: float

    def __float__(self) -> float:
        return self.value


# --- KID ---------------------------------------------------------------------------------------------------------


def kid(
    real: Tensor,
    generated: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    seed: int = 2020,
) -> KidEstimate:
    """Kernel inception distance of features real [n, d] and generated [m, d], kernel (γ x·y + coef)^degree.

    subsets      100     unbiased MMD² estimates that are averaged
    subset_size  1000    rows drawn without replacement from each side; ValueError if a side has fewer
    gamma        1/d     scale of the inner product
    seed         2020    RandomState; each round draws generated rows before real ones

    Equal to torch-fidelity with input1 = generated, input2 = real (its convention for these roles).
    """
    check_kid(subsets, subset_size, degree, gamma, coef, seed)
    real, generated = checked_pair(real, generated)
    _check_subset_size(subset_size, len(real), len(generated))
    gamma = 1.0 / real.shape[1] if gamma is None else gamma
    kernel = polynomial_kernel(degree, gamma, coef)
    drawn = _draw_subsets(len(generated), len(real), subsets, subset_size, seed, real.device)
    if len(real) * len(generated) > subsets * subset_size**2:  # kernel values
        sums = sums_by_subsets(generated, real, drawn, kernel)
    else:
        ((found, _),) = sums_over_pairs(generated, real, [Reduction(kernel, subset_members(generated, real, drawn))])
        assert found is not None  # members were given
        sums = found
    return _kid_estimate(sums, subsets, subset_size, degree, gamma, coef, seed)


def kid_and_mmd(
    real: Tensor, generated: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[KidEstimate, MaximumMeanDiscrepancy, RowSums, RowSums]:
    """`kid(real, generated, …)` and `mmd(real, generated)` together, in little more than the time of one of them.

    Also returns the row sums of both kernels, which the jackknife needs.  ValueError as for either.
    """
    check_kid(subsets, subset_size, 3, None, 1.0, seed)
    real, generated = checked_pair(real, generated)
    _check_subset_size(subset_size, len(real), len(generated))
    d, sigma = real.shape[1], chosen_bandwidth("median", real, generated)
    kernel, of_mmd = polynomial_kernel(3, 1.0 / d, 1.0), Reduction(gaussian_kernel(sigma), by_row=True)
    drawn = _draw_subsets(len(generated), len(real), subsets, subset_size, seed, real.device)
    # MMD needs all pairs anyway, so KID costs S more multiplications per pair, or d per pair of each subset.
    apart = len(real) * len(generated) > subset_size**2 * max(subsets, d)
    members = None if apart else subset_members(generated, real, drawn)
    (of_subsets, kid_rows), (_, mmd_rows) = sums_over_pairs(
        generated, real, [Reduction(kernel, members, by_row=True), of_mmd]
    )
    assert kid_rows is not None and mmd_rows is not None  # both reductions are by row
    if of_subsets is None:
        of_subsets = sums_by_subsets(generated, real, drawn, kernel)
    value = _check_finite(_unbiased(mmd_rows.total(), len(generated), len(real))).item()
    return (
        _kid_estimate(of_subsets, subsets, subset_size, 3, 1.0 / d, 1.0, seed),
        MaximumMeanDiscrepancy(value, "gaussian", sigma, "unbiased", 1.0),
        kid_rows,
        mmd_rows,
    )


def _kid_estimate(sums: Sums, subsets: int, subset_size: int, *options: Any) -> KidEstimate:
    estimates = _unbiased(sums, subset_size, subset_size)
    _check_finite(estimates)
    return KidEstimate(estimates.mean().item(), estimates.std(correction=0).item(), subsets, subset_size, *options)


def _draw_subsets(
    n_first: int, n_second: int, subsets: int, size: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row numbers int64 [S, s] of both sides, drawn alternately from one RandomState."""
    rng = np.random.RandomState(seed)
    rounds = [
        (rng.choice(n_first, size, replace=False), rng.choice(n_second, size, replace=False)) for _ in range(subsets)
    ]
    first, second = zip(*rounds, strict=True)
    return torch.from_numpy(np.stack(first)).to(device), torch.from_numpy(np.stack(second)).to(device)


def _check_subset_size(size: int, n_real: int, n_generated: int) -> None:
    if size > min(n_real, n_generated):
        raise ValueError(
            f"subset_size {size} exceeds the {n_real} real or {n_generated} generated rows; "
            f"pass subset_size={min(n_real, n_generated)} or less"
        )


# --- MMD ---------------------------------------------------------------------------------------------------------


def mmd(
    real: Tensor,
    generated: Tensor,
    kernel: str = "gaussian",
    bandwidth: float | str = "median",
    estimator: str = "unbiased",
    scale: float = 1.0,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> MaximumMeanDiscrepancy:
    """Squared maximum mean discrepancy of features real [n, d] and generated [m, d] over all rows, times `scale`.

    kernel     "gaussian"  exp(−|x − y|² / 2σ²), or "polynomial" (γ x·y + coef)^degree with γ = 1/d by default
    bandwidth  "median"    σ in feature units, or the median distance of 1000 evenly spaced rows of each set pooled
    estimator  "unbiased"  without k(x, x) and k(y, y); "biased" with them
    scale      1.0         e.g. 1000 for the CMMD convention
    """
    real, generated = checked_pair(real, generated)
    sigma = None
    if kernel == "gaussian":
        sigma = chosen_bandwidth(bandwidth, real, generated)
        function = gaussian_kernel(sigma)
    elif kernel == "polynomial":
        check_polynomial(degree, gamma, coef)
        function = polynomial_kernel(degree, 1.0 / real.shape[1] if gamma is None else gamma, coef)
    else:
        raise ValueError(f"unknown kernel {kernel!r}; choose gaussian or polynomial")
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}; the value is multiplied by a finite number")
    _check_estimator(estimator, min(len(real), len(generated)))
    mean = _unbiased if estimator == "unbiased" else _biased
    sums = row_sums(generated, real, function, diagonal=estimator == "biased")
    value = _check_finite(mean(sums.total(), len(generated), len(real))).item()
    return MaximumMeanDiscrepancy(scale * value, kernel, sigma, estimator, scale)


def _check_estimator(estimator: str, rows: int) -> None:
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f"unknown estimator {estimator!r}; choose unbiased or biased")
    if estimator == "unbiased" and rows < 2:
        raise ValueError("the unbiased estimator needs at least 2 rows on each side; pass estimator='biased'")


def _unbiased(sums: Sums, m: int, n: int) -> Tensor:
    """MMD² from sums over pairs of different rows within the m generated and the n real rows, and between them."""
    return sums.generated / (m * (m - 1)) + sums.real / (n * (n - 1)) - 2 * sums.between / (m * n)


def _check_finite(estimates: Tensor) -> Tensor:
    """The estimates; ValueError where kernel values were too large for float64."""
    if not torch.isfinite(estimates).all():
        raise ValueError("kernel values of these features leave float64; scale the features, or pass another kernel")
    return estimates


def _biased(sums: Sums, m: int, n: int) -> Tensor:
    """MMD² from sums over all pairs."""
    return sums.generated / m**2 + sums.real / n**2 - 2 * sums.between / (m * n)


def chosen_bandwidth(bandwidth: float | str, *sets: Tensor) -> float:
    """σ; "median": the median distance of at most MEDIAN_ROWS rows of each set, pooled."""
    if bandwidth == "median":
        bandwidth = _median_distance(torch.cat([x[evenly_spaced(len(x), MEDIAN_ROWS)] for x in sets]).to(torch.float64))
        if not math.isfinite(bandwidth):
            raise ValueError("distances of these features leave float64; scale the features, or pass a bandwidth")
        if bandwidth == 0:
            raise ValueError("the median distance is 0, most rows are identical; pass a bandwidth in feature units")
    if isinstance(bandwidth, str) or not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth is {bandwidth!r}; pass a positive number or 'median'")
    return float(bandwidth)


def _median_distance(x: Tensor) -> float:
    """Median distance of all pairs of rows of x float64 [n, d]; the lower one of two middle values."""
    x = x - x.mean(dim=0)
    norms = x.square().sum(dim=1)
    squared = []
    for columns in blocks(len(x), COLUMNS):  # |x|² + |y|² − 2x·y of the rows above
        block = (norms[: columns.stop, None] + norms[columns]).addmm_(x[: columns.stop], x[columns].T, alpha=-2)
        squared.append(block[torch.ones_like(block, dtype=torch.bool).triu(1 - columns.start)])
    median = torch.cat(squared).median().item()
    if median <= CANCELLED * norms.max():
        median = torch.pdist(x).median().item() ** 2
    return math.sqrt(median)
