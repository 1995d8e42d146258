"""Squared maximum mean discrepancies: KID (Bińkowski et al. 2018) and MMD with a chosen kernel (Gretton et al. 2012).

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y)

The unbiased estimator leaves k(x, x) out of the first two means.  The three means nearly cancel (KID is often 10⁻⁴ of
each), so kernels and sums are float64 throughout: the result carries about 10⁻¹³ of the largest mean as error.  In
float32 each product could err by 10⁻⁴ of |x||y| at d = 2048, as much as KID itself; that the errors average out to 10⁻⁷
or so is likely, not certain.

Work: one triangle of k(x, x') and of k(y, y') and the whole k(x, y), each value once for all subsets or once a subset,
whichever is less.  Memory: a panel of rows in float64 and its kernel values, whatever n and m.

Legend: x real [n, d], y generated [m, d]; S subsets of s rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Kernel values are made for panels of rows by blocks of columns.  Half a block per column is made in vain beside the
# diagonal of a triangle, a quarter more for a subset of 1000; narrower products are slower (measured at d = 2048 in
# float64, two cores: 1000 × 128, 256 and 512 at 75, 87 and 92% of the peak).
COLUMNS = 256
PANEL_BLOCKS = 16  # 4096 rows: 64 MiB at d = 2048, converted to float64 once for all columns; 8 MiB of values a block
# A median squared distance below this part of the largest squared norm has lost digits to |x|² + |y|² − 2x·y.
CANCELLED = 1e-4
MEDIAN_ROWS = 1000  # rows of each set, evenly spaced, whose pairwise distances give the median bandwidth


@dataclass(frozen=True)
class Kernel:
    """A kernel in three steps: rows of either side prepared for a matrix product, and values made of the product.

    left, right  rows [n, d] of any float dtype → float64 [n, e]
    values       left [n, e], right [m, e] → k(x_i, y_j), float64 [n, m]
    """

    left: Callable[[Tensor], Tensor]
    right: Callable[[Tensor], Tensor]
    values: Callable[[Tensor, Tensor], Tensor]


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
    real, generated = _checked_pair(real, generated)
    _check_subset_size(subset_size, len(real), len(generated))
    gamma = 1.0 / real.shape[1] if gamma is None else gamma
    kernel = polynomial_kernel(degree, gamma, coef)
    drawn_generated, drawn_real = _draw_subsets(len(generated), len(real), subsets, subset_size, seed, real.device)
    within = subset_size * (subset_size - 1)
    estimates = (
        _subset_sums(generated, drawn_generated, generated, drawn_generated, kernel) / within
        + _subset_sums(real, drawn_real, real, drawn_real, kernel) / within
        - 2 * _subset_sums(generated, drawn_generated, real, drawn_real, kernel) / subset_size**2
    )
    return KidEstimate(
        estimates.mean().item(), estimates.std(correction=0).item(), subsets, subset_size, degree, gamma, coef, seed
    )


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


def _subset_sums(x: Tensor, drawn_x: Tensor, y: Tensor, drawn_y: Tensor, kernel: Kernel) -> Tensor:
    """Σ k over each round's pairs, [S]; where y is x over pairs of different rows.

    By whichever of two routes evaluates the kernel less often.
    """
    subsets, size = drawn_x.shape
    if len(x) * len(y) <= subsets * size * size:
        return _subset_sums_from_whole(x, drawn_x, y, drawn_y, kernel)
    sums = []
    for rows, columns in zip(drawn_x, drawn_y, strict=True):
        left = x[rows].to(torch.float64)
        sums.append(_kernel_sum(left, left if y is x else y[columns].to(torch.float64), kernel))
    return torch.stack(sums)


def _subset_sums_from_whole(x: Tensor, drawn_x: Tensor, y: Tensor, drawn_y: Tensor, kernel: Kernel) -> Tensor:
    """Subset sums as diag(Zₓᵀ K Z_y) with 0/1 membership columns Z: each kernel value is computed once for all S."""
    member_x, member_y = _membership(drawn_x, len(x)), _membership(drawn_y, len(y))
    sums = torch.zeros(len(drawn_x), dtype=torch.float64, device=x.device)
    for rows, columns, values in _kernel_blocks(x, y, kernel):
        sums += (member_x[rows] * (_both_orders(values, x is y, rows, columns) @ member_y[columns])).sum(dim=0)
    return sums


def _membership(drawn: Tensor, n: int) -> Tensor:
    """float64 [n, S], 1 where row i belongs to subset s."""
    return torch.zeros(n, len(drawn), dtype=torch.float64, device=drawn.device).scatter_(0, drawn.T, 1.0)


def _check_subset_size(size: int, n_real: int, n_generated: int) -> None:
    if size < 2:
        raise ValueError(f"subset_size is {size}; an unbiased estimate needs at least 2 rows")
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
    real, generated = _checked_pair(real, generated)
    sigma = None
    if kernel == "gaussian":
        sigma = _bandwidth(real, generated, bandwidth)
        function = gaussian_kernel(sigma, _common_mean(real, generated))
    elif kernel == "polynomial":
        function = polynomial_kernel(degree, 1.0 / real.shape[1] if gamma is None else gamma, coef)
    else:
        raise ValueError(f"unknown kernel {kernel!r}; choose gaussian or polynomial")
    within = _within_mean(real, function, estimator) + _within_mean(generated, function, estimator)
    between = _kernel_sum(real, generated, function).item() / (len(real) * len(generated))
    return MaximumMeanDiscrepancy(scale * (within - 2 * between), kernel, sigma, estimator, scale)


def _within_mean(x: Tensor, kernel: Kernel, estimator: str) -> float:
    n = len(x)
    if estimator == "biased":
        return _kernel_sum(x, x, kernel, diagonal=True).item() / n**2
    if estimator != "unbiased":
        raise ValueError(f"unknown estimator {estimator!r}; choose unbiased or biased")
    if n < 2:
        raise ValueError("the unbiased estimator needs at least 2 rows on each side; pass estimator='biased'")
    return _kernel_sum(x, x, kernel).item() / (n * (n - 1))


def _bandwidth(real: Tensor, generated: Tensor, bandwidth: float | str) -> float:
    if bandwidth == "median":
        bandwidth = _median_distance(torch.cat([_evenly_spaced(real), _evenly_spaced(generated)]).to(torch.float64))
        if bandwidth == 0:
            raise ValueError("the median distance is 0, most rows are identical; pass a bandwidth in feature units")
    if isinstance(bandwidth, str) or not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth!r}; pass a positive number or 'median'")
    return float(bandwidth)


def _median_distance(x: Tensor) -> float:
    """Median distance of the pairs of rows of x float64 [n, d]; the lower of the two middle ones of an even number."""
    x = x - x.mean(dim=0)
    norms = x.square().sum(dim=1)
    squared = []
    for columns in _blocks(len(x), COLUMNS):  # |x|² + |y|² − 2x·y of the rows above
        block = (norms[: columns.stop, None] + norms[columns]).addmm_(x[: columns.stop], x[columns].T, alpha=-2)
        squared.append(block[torch.ones_like(block, dtype=torch.bool).triu(1 - columns.start)])
    median = torch.cat(squared).median().item()
    if median <= CANCELLED * norms.max():
        median = torch.pdist(x).median().item() ** 2
    return math.sqrt(median)


def _evenly_spaced(x: Tensor) -> Tensor:
    return x[torch.linspace(0, len(x) - 1, min(len(x), MEDIAN_ROWS)).round().long()]


# --- kernels -----------------------------------------------------------------------------------------------------


def polynomial_kernel(degree: int, gamma: float, coef: float) -> Kernel:
    """k(x, y) = (γ x·y + coef)^degree."""

    def rows(x: Tensor) -> Tensor:
        return x.to(torch.float64)

    def values(x: Tensor, y: Tensor) -> Tensor:
        return torch.addmm(x.new_full((1, 1), coef), x, y.T, alpha=gamma).pow_(degree)

    return Kernel(rows, rows, values)


def gaussian_kernel(sigma: float, centre: Tensor) -> Kernel:
    """k(x, y) = exp(−|x − y|² / 2σ²), its exponent one product: [p, −|p|²/2, 1] · [q, 1, −|q|²/2], p = (x − centre)/σ.

    The kernel sees differences only; about a common mean, float64 [d], the squared norms it subtracts are smallest.
    """

    def extended(x: Tensor) -> Tensor:
        extended = torch.ones(len(x), x.shape[1] + 2, dtype=torch.float64, device=x.device)
        torch.sub(x.to(torch.float64), centre, out=extended[:, :-2]).div_(sigma)
        return extended

    def left(x: Tensor) -> Tensor:
        rows = extended(x)
        rows[:, -2] = rows[:, :-2].square().sum(dim=1).div_(-2)
        return rows

    def right(x: Tensor) -> Tensor:
        rows = extended(x)
        rows[:, -1] = rows[:, :-2].square().sum(dim=1).div_(-2)
        return rows

    return Kernel(left, right, lambda x, y: (x @ y.T).exp_())


def _kernel_sum(x: Tensor, y: Tensor, kernel: Kernel, diagonal: bool = False) -> Tensor:
    """Σ_ij k(x_i, y_j), a 0-d tensor; where y is x without i = j unless `diagonal`."""
    blocks = _kernel_blocks(x, y, kernel)
    return torch.stack([_both_orders(values, x is y, *place, diagonal).sum() for *place, values in blocks]).sum()


def _kernel_blocks(x: Tensor, y: Tensor, kernel: Kernel) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, kernel values) that cover all pairs; where y is x, those with i ≤ j and the rest of squares."""
    for panel in _blocks(len(x), PANEL_BLOCKS * COLUMNS):
        left = kernel.left(x[panel])
        for columns in _blocks(len(y), COLUMNS):
            stop = min(panel.stop, columns.stop) if y is x else panel.stop
            if stop > panel.start:
                values = kernel.values(left[: stop - panel.start], kernel.right(y[columns]))
                yield slice(panel.start, stop), columns, values


def _both_orders(values: Tensor, same: bool, rows: slice, columns: slice, diagonal: bool = False) -> Tensor:
    """A block of `_kernel_blocks` with i < j standing for j > i too, in place; the diagonal 0 unless `diagonal`."""
    if same:
        above = columns.start - rows.start
        values[:above] *= 2
        if len(values) > above and not diagonal:
            values[above:].fill_diagonal_(0)
    return values


def _blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _common_mean(*sets: Tensor) -> Tensor:
    """Mean of the rows of all sets, float64 [d], without a float64 copy of them."""
    sums = [x[rows].to(torch.float64).sum(dim=0) for x in sets for rows in _blocks(len(x), PANEL_BLOCKS * COLUMNS)]
    return torch.stack(sums).sum(dim=0) / sum(len(x) for x in sets)


def _checked_pair(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides as tensors; ValueError for shapes or devices that differ, empty sides or values not finite."""
    real, generated = torch.as_tensor(real).detach(), torch.as_tensor(generated).detach()
    if real.device != generated.device:
        raise ValueError(f"real is on {real.device}, generated on {generated.device}; move one of them")
    for name, x in (("real", real), ("generated", generated)):
        if x.dim() != 2 or 0 in x.shape:
            raise ValueError(f"{name} features must be [n, d] with n, d > 0, got shape {tuple(x.shape)}")
        if not all(torch.isfinite(end) for end in torch.aminmax(x)):  # NaN is both ends; a tenth of isfinite's time
            row = int((~torch.isfinite(x).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name} feature row {row} holds NaN or infinity; check the extractor")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real has d = {real.shape[1]}, generated has d = {generated.shape[1]}; use one extractor for both"
        )
    return real, generated
