"""Squared maximum mean discrepancies: KID (Bińkowski et al. 2018) and MMD with a chosen kernel (Gretton et al. 2012).

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y)

The unbiased estimator leaves k(x, x) out of the first two means.  The three means nearly cancel (KID is often 10⁻⁴ of
each), so kernels and sums are float64 throughout: the result carries about 10⁻¹³ of the largest mean as error.  Kernel
matrices are made a block of rows at a time, so memory does not grow with n².

Legend: x real [n, d], y generated [m, d]; S subsets of s rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 21  # kernel values held at once: 16 MiB of float64
MEDIAN_ROWS = 1000  # rows of each set, evenly spaced, whose pairwise distances give the median bandwidth


@dataclass(frozen=True)
class Kernel:
    """A kernel by its two uses: pairs(x [n, d], y [m, d]) → [n, m] and diagonal(x [n, d]) → k(x_i, x_i), [n]."""

    pairs: Callable[[Tensor, Tensor], Tensor]
    diagonal: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KernelInceptionDistance:
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
) -> KernelInceptionDistance:
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
    estimates = (
        _within_means(generated, drawn_generated, kernel)
        + _within_means(real, drawn_real, kernel)
        - 2 * _between_means(generated, drawn_generated, real, drawn_real, kernel)
    )
    return KernelInceptionDistance(
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


def _within_means(x: Tensor, drawn: Tensor, kernel: Kernel) -> Tensor:
    """Mean of k over the ordered pairs of different rows of each subset, float64 [S]."""
    size = drawn.shape[1]
    diagonal = kernel.diagonal(x)[drawn].sum(dim=1)
    return (_between_sums(x, drawn, x, drawn, kernel) - diagonal) / (size * (size - 1))


def _between_means(x: Tensor, drawn_x: Tensor, y: Tensor, drawn_y: Tensor, kernel: Kernel) -> Tensor:
    """Mean of k over all pairs of each round's two subsets, float64 [S]."""
    return _between_sums(x, drawn_x, y, drawn_y, kernel) / (drawn_x.shape[1] * drawn_y.shape[1])


def _between_sums(x: Tensor, drawn_x: Tensor, y: Tensor, drawn_y: Tensor, kernel: Kernel) -> Tensor:
    """Σ k over each round's pairs, [S]: by whichever of two routes evaluates the kernel less often."""
    subsets, size = drawn_x.shape
    if len(x) * len(y) <= subsets * size * size:
        return _sums_from_whole(x, drawn_x, y, drawn_y, kernel)
    sums = [_kernel_sum(x[rows], y[columns], kernel) for rows, columns in zip(drawn_x, drawn_y, strict=True)]
    return torch.stack(sums)


def _sums_from_whole(x: Tensor, drawn_x: Tensor, y: Tensor, drawn_y: Tensor, kernel: Kernel) -> Tensor:
    """Subset sums as diag(Zₓᵀ K Z_y) with 0/1 membership columns Z: each kernel value is computed once for all S."""
    member_x, member_y = _membership(drawn_x, len(x)), _membership(drawn_y, len(y))
    sums = x.new_zeros(len(drawn_x))
    for rows in _row_blocks(len(x), len(y)):
        sums += (member_x[rows] * (kernel.pairs(x[rows], y) @ member_y)).sum(dim=0)
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
        # The kernel sees differences only; about the common mean the squared norms it subtracts are smallest.
        centre = torch.cat([real, generated]).mean(dim=0)
        real, generated = real - centre, generated - centre
        sigma = _bandwidth(real, generated, bandwidth)
        function = gaussian_kernel(sigma)
    elif kernel == "polynomial":
        function = polynomial_kernel(degree, 1.0 / real.shape[1] if gamma is None else gamma, coef)
    else:
        raise ValueError(f"unknown kernel {kernel!r}; choose gaussian or polynomial")
    within = _within_mean(real, function, estimator) + _within_mean(generated, function, estimator)
    between = _kernel_sum(real, generated, function).item() / (len(real) * len(generated))
    return MaximumMeanDiscrepancy(scale * (within - 2 * between), kernel, sigma, estimator, scale)


def _within_mean(x: Tensor, kernel: Kernel, estimator: str) -> float:
    n, total = len(x), _kernel_sum(x, x, kernel)
    if estimator == "biased":
        return total.item() / n**2
    if estimator != "unbiased":
        raise ValueError(f"unknown estimator {estimator!r}; choose unbiased or biased")
    if n < 2:
        raise ValueError("the unbiased estimator needs at least 2 rows on each side; pass estimator='biased'")
    return (total - kernel.diagonal(x).sum()).item() / (n * (n - 1))


def _bandwidth(real: Tensor, generated: Tensor, bandwidth: float | str) -> float:
    if bandwidth == "median":
        pooled = torch.cat([_evenly_spaced(real), _evenly_spaced(generated)])
        bandwidth = torch.pdist(pooled).median().item()
        if bandwidth == 0:
            raise ValueError("the median distance is 0, most rows are identical; pass a bandwidth in feature units")
    if isinstance(bandwidth, str) or not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth!r}; pass a positive number or 'median'")
    return float(bandwidth)


def _evenly_spaced(x: Tensor) -> Tensor:
    return x[torch.linspace(0, len(x) - 1, min(len(x), MEDIAN_ROWS)).round().long()]


# --- kernels -----------------------------------------------------------------------------------------------------


def polynomial_kernel(degree: int, gamma: float, coef: float) -> Kernel:
    """k(x, y) = (γ x·y + coef)^degree."""

    def power(products: Tensor) -> Tensor:
        return products.mul_(gamma).add_(coef).pow_(degree)

    return Kernel(lambda x, y: power(x @ y.T), lambda x: power(_squared_norms(x)))


def gaussian_kernel(sigma: float) -> Kernel:
    """k(x, y) = exp(−|x − y|² / 2σ²)."""

    def pairs(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.addmm(_squared_norms(y).expand(len(x), -1), x, y.T, alpha=-2)  # |y|² − 2 x·y
        return squared.add_(_squared_norms(x)[:, None]).clamp_(min=0).mul_(-0.5 / sigma**2).exp_()

    return Kernel(pairs, lambda x: torch.ones_like(x[:, 0]))


def _squared_norms(x: Tensor) -> Tensor:
    return x.square().sum(dim=1)


def _kernel_sum(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Σ_ij k(x_i, y_j), a 0-d tensor."""
    return torch.stack([kernel.pairs(x[rows], y).sum() for rows in _row_blocks(len(x), len(y))]).sum()


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _checked_pair(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides as float64; ValueError for shapes or devices that differ, empty sides or values not finite."""
    real, generated = (torch.as_tensor(x).detach().to(torch.float64) for x in (real, generated))
    if real.device != generated.device:
        raise ValueError(f"real is on {real.device}, generated on {generated.device}; move one of them")
    for name, x in (("real", real), ("generated", generated)):
        if x.dim() != 2 or 0 in x.shape:
            raise ValueError(f"{name} features must be [n, d] with n, d > 0, got shape {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            row = int((~torch.isfinite(x).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name} feature row {row} holds NaN or infinity; check the extractor")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real has d = {real.shape[1]}, generated has d = {generated.shape[1]}; use one extractor for both"
        )
    return real, generated
