"""Squared maximum mean discrepancies: KID (Bińkowski et al. 2018) and MMD with a chosen kernel (Gretton et al. 2012).

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y)

The unbiased estimator leaves k(x, x) out of the first two means.  The three means nearly cancel (KID is often 10⁻⁴ of
each), so kernels and sums are float64 throughout: the result carries about 10⁻¹³ of the largest mean as error.  In
float32 each product could err by 10⁻⁴ of |x||y| at d = 2048, as much as KID itself; that the errors average out to 10⁻⁷
or so is likely, not certain.

Work: one triangle of k(x, x') and of k(y, y') and the whole k(x, y), each value once for all subsets or once a subset,
whichever is less; KID and MMD of the same features share their products (`kid_and_mmd`).  Memory: a panel of rows in
float64 and its kernel values, whatever n and m.

Legend: x real [n, d], y generated [m, d]; p = x − c and q = y − c about a common c; S subsets of s rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastfid.devices import as_tensor

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
    """k(x, y) made of p·q and one number for each row: kernels of the same rows share the matrix product.

    term    p float64 [n, d], c float64 [d] → float64 [n]
    values  p·q float64 [n, m], terms of x [n] and of y [m] → k(x_i, y_j) [n, m], in the memory of p·q
    """

    term: Callable[[Tensor, Tensor], Tensor]
    values: Callable[[Tensor, Tensor, Tensor], Tensor]

    def between(self, x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
        """k(x_i, y_j) float64 [n, m] of rows of any float dtype about c = `centre`."""
        p, q = x.to(torch.float64) - centre, y.to(torch.float64) - centre
        return self.values(p @ q.T, self.term(p, centre), self.term(q, centre))


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
    drawn = _draw_subsets(len(generated), len(real), subsets, subset_size, seed, real.device)
    if len(real) * len(generated) > subsets * subset_size**2:  # kernel values
        sums = _sums_by_subsets(generated, real, drawn, kernel)
    else:
        (sums,) = _sums(generated, real, [_of_subsets(kernel, generated, real, drawn)])
    return _kid_estimate(sums, subsets, subset_size, degree, gamma, coef, seed)


def kid_and_mmd(
    real: Tensor, generated: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[KidEstimate, MaximumMeanDiscrepancy]:
    """`kid(real, generated, …)` and `mmd(real, generated)` together, in little more than the time of one of them.

    ValueError as of either.
    """
    real, generated = _checked_pair(real, generated)
    _check_subset_size(subset_size, len(real), len(generated))
    d, sigma = real.shape[1], _bandwidth(real, generated, "median")
    kernel, wanted = polynomial_kernel(3, 1.0 / d, 1.0), [_of_all(gaussian_kernel(sigma))]
    drawn = _draw_subsets(len(generated), len(real), subsets, subset_size, seed, real.device)
    # For all pairs, made anyway, S multiplications and a kernel value each; for those of every subset, d and a value.
    if len(real) * len(generated) > subset_size**2 * max(subsets, d):
        of_kid = _sums_by_subsets(generated, real, drawn, kernel)
        (of_mmd,) = _sums(generated, real, wanted)
    else:
        of_kid, of_mmd = _sums(generated, real, [_of_subsets(kernel, generated, real, drawn), *wanted])
    value = _unbiased(of_mmd, len(generated), len(real)).item()
    return (
        _kid_estimate(of_kid, subsets, subset_size, 3, 1.0 / d, 1.0, seed),
        MaximumMeanDiscrepancy(value, "gaussian", sigma, "unbiased", 1.0),
    )


def _kid_estimate(sums: tuple[Tensor, Tensor, Tensor], subsets: int, subset_size: int, *options) -> KidEstimate:
    estimates = _unbiased(sums, subset_size, subset_size)
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


def _sums_by_subsets(
    generated: Tensor, real: Tensor, drawn: tuple[Tensor, Tensor], kernel: Kernel
) -> tuple[Tensor, Tensor, Tensor]:
    """`_sums` of each subset's rows, [S] each, its kernel values made for it alone."""
    sums = []
    for of_generated, of_real in zip(*drawn, strict=True):
        (found,) = _sums(generated[of_generated], real[of_real], [_of_all(kernel)])
        sums.append(torch.stack(found))
    return torch.stack(sums, dim=1).unbind()


def _of_subsets(kernel: Kernel, generated: Tensor, real: Tensor, drawn: tuple[Tensor, Tensor]) -> _Reduction:
    """Sums [S] over the pairs of every subset, as diag(Zᵀ K Z) with 0/1 membership columns Z: K is made once."""
    members = {id(x): _membership(rows, len(x)) for x, rows in zip((generated, real), drawn, strict=True)}

    def reduce(x: Tensor, y: Tensor, rows: slice, columns: slice, values: Tensor) -> Tensor:
        return (values @ members[id(y)][columns]).mul_(members[id(x)][rows])

    return _Reduction(kernel, reduce)


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
        function = gaussian_kernel(sigma)
    elif kernel == "polynomial":
        function = polynomial_kernel(degree, 1.0 / real.shape[1] if gamma is None else gamma, coef)
    else:
        raise ValueError(f"unknown kernel {kernel!r}; choose gaussian or polynomial")
    _check_estimator(estimator, min(len(real), len(generated)))
    mean = _unbiased if estimator == "unbiased" else _biased
    (sums,) = _sums(generated, real, [_of_all(function)], diagonal=estimator == "biased")
    value = mean(sums, len(generated), len(real)).item()
    return MaximumMeanDiscrepancy(scale * value, kernel, sigma, estimator, scale)


def _check_estimator(estimator: str, rows: int) -> None:
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f"unknown estimator {estimator!r}; choose unbiased or biased")
    if estimator == "unbiased" and rows < 2:
        raise ValueError("the unbiased estimator needs at least 2 rows on each side; pass estimator='biased'")


def _unbiased(sums: tuple[Tensor, Tensor, Tensor], m: int, n: int) -> Tensor:
    """MMD² of the sums over pairs of different rows within the m generated and the n real ones, and between them."""
    of_generated, of_real, between = sums
    return of_generated / (m * (m - 1)) + of_real / (n * (n - 1)) - 2 * between / (m * n)


def _biased(sums: tuple[Tensor, Tensor, Tensor], m: int, n: int) -> Tensor:
    """MMD² of the sums over all pairs."""
    of_generated, of_real, between = sums
    return of_generated / m**2 + of_real / n**2 - 2 * between / (m * n)


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
    """k(x, y) = (γ x·y + coef)^degree, with x·y = p·q + (p·c + |c|²/2) + (q·c + |c|²/2)."""

    def term(p: Tensor, centre: Tensor) -> Tensor:
        return (p @ centre).add_(centre.square().sum() / 2).mul_(gamma).add_(coef / 2)

    def values(products: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
        return torch.add(of_x[:, None], products, alpha=gamma, out=products).add_(of_y).pow_(degree)

    return Kernel(term, values)


def gaussian_kernel(sigma: float) -> Kernel:
    """k(x, y) = exp(−|x − y|²/2σ²), with −|x − y|²/2 = p·q − |p|²/2 − |q|²/2: about a common mean least is lost."""

    def term(p: Tensor, centre: Tensor) -> Tensor:
        return torch.linalg.vector_norm(p, dim=1).square_().div_(-2 * sigma**2)

    def values(products: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
        return torch.add(of_x[:, None], products, alpha=sigma**-2, out=products).add_(of_y).exp_()

    return Kernel(term, values)


# --- sums over pairs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reduction:
    """A kernel and what of its values is summed: reduce(x, y, rows of x, columns from y, values) → [rows, sums]."""

    kernel: Kernel
    reduce: Callable[[Tensor, Tensor, slice, slice, Tensor], Tensor]


def _of_all(kernel: Kernel) -> _Reduction:
    return _Reduction(kernel, lambda x, y, rows, columns, values: values.sum(dim=1))


def _sums(
    generated: Tensor, real: Tensor, reductions: list[_Reduction], diagonal: bool = False
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each reduction its sums over pairs within the generated rows, within the real ones, and between the two.

    A row is no pair with itself unless `diagonal`.
    """
    centre = _common_mean(real, generated)
    memory = _Memory(max(len(real), len(generated)), centre, copies=len(reductions) > 1)
    sides = (generated, generated), (real, real), (generated, real)
    return list(zip(*(_sums_of(x, y, centre, reductions, diagonal, memory) for x, y in sides), strict=True))


def _sums_of(
    x: Tensor, y: Tensor, centre: Tensor, reductions: list[_Reduction], diagonal: bool, memory: _Memory
) -> list[Tensor]:
    """Each reduction's sum over all pairs (x_i, y_j); where y is x, of different rows unless `diagonal`."""
    sums: list[Tensor] = [0.0] * len(reductions)
    for panel in _blocks(len(x), PANEL_BLOCKS * COLUMNS):
        p = _centred(x[panel], centre, memory.panel)
        of_rows = [reduction.kernel.term(p, centre) for reduction in reductions]
        for columns in _blocks(len(y), COLUMNS):
            # Where y is x: pairs with i ≤ j, and the rest of the squares on the diagonal.
            stop = min(panel.stop, columns.stop) if y is x else panel.stop
            if stop <= panel.start:
                continue
            rows, q = slice(panel.start, stop), _centred(y[columns], centre, memory.columns)
            above = max(0, columns.start - panel.start)  # rows that hold no pair of the diagonal's square
            products = torch.mm(p[: stop - panel.start], q.T, out=_room(memory.products, stop - panel.start, len(q)))
            for i, (kernel, reduce) in enumerate((r.kernel, r.reduce) for r in reductions):
                last = i == len(reductions) - 1
                place = products if last else _room(memory.copy, *products.shape).copy_(products)
                values = kernel.values(place, of_rows[i][: stop - panel.start], kernel.term(q, centre))
                if y is x and not diagonal:
                    values[above:].fill_diagonal_(0)
                of_row = reduce(x, y, rows, columns, values)
                if y is x:  # a pair i < j stands for j < i, too
                    of_row[:above] *= 2
                sums[i] = sums[i] + of_row.sum(dim=0)
    return sums


class _Memory:
    """Blocks that stay mapped.

    Fresh memory is handed over page by page: rows took 0.9 s to convert, not 0.3 s (n = m = 4000, d = 2048, one core).
    """

    def __init__(self, rows: int, centre: Tensor, copies: bool):
        panel, width = min(rows, PANEL_BLOCKS * COLUMNS), min(rows, COLUMNS)
        self.panel = centre.new_empty(panel, len(centre))
        self.columns = centre.new_empty(width, len(centre))
        self.products = centre.new_empty(panel * width)
        self.copy = torch.empty_like(self.products) if copies else None


def _centred(x: Tensor, centre: Tensor, memory: Tensor) -> Tensor:
    """x − c in float64, in the first rows of `memory`."""
    return memory[: len(x)].copy_(x).sub_(centre)


def _room(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """The beginning of a buffer as [rows, columns]."""
    return buffer[: rows * columns].view(rows, columns)


def _blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _common_mean(*sets: Tensor) -> Tensor:
    """Mean of the rows of all sets, float64 [d], without a float64 copy of them."""
    sums = [x[rows].to(torch.float64).sum(dim=0) for x in sets for rows in _blocks(len(x), COLUMNS)]
    return torch.stack(sums).sum(dim=0) / sum(len(x) for x in sets)


def _checked_pair(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides as tensors; ValueError for shapes or devices that differ, empty sides or values not finite."""
    real, generated = as_tensor(real).detach(), as_tensor(generated).detach()
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
