"""How much a score would move if other images had been drawn: jackknives from leave-one-out changes, and binomials.

Jackknife (Efron & Stein 1981).  With T_(i) the score without image i and c_i = T_(i) − T,

    SE² = (N − 1)/N · Σ (c_i − mean c)²,      95% interval  T ± 1.96 SE,

once for each side of a comparison, whose squares add up.  It covers the chance of which images were drawn, not the bias
of a finite N, and errs on the wide side where the linear part of the score vanishes: there, with both sides from one
distribution, MMD² and the Fréchet distance are squares, and SE² is about twice the variance.

Fréchet distance.  SwapEngine.leave_one_out gives all c_i exactly at about the price of one distance.

MMD².  The unbiased estimate of samples x [m] and reference y [n] is

    T = Σ_{i≠j} k(x_i, x_j) / m(m − 1) + Σ_{i≠j} k(y_i, y_j) / n(n − 1) − 2 Σ_ij k(x_i, y_j) / mn.

Without x_i the sums lose 2 A_i, A_i = Σ_{j≠i} k(x_i, x_j), and C_i = Σ_j k(x_i, y_j), so up to a common constant

    T_(i) = −2 A_i / (m − 1)(m − 2) + 2 C_i / (m − 1)n,

exactly; likewise for y.  Their variance over i is taken from JACKKNIFE_ROWS rows instead of all: 2·500·(m + n) kernel
values instead of (m + n)²/2, for an error of 3% in SE.

KID is the mean of S subsets, each an unbiased estimate of T given the images: its variance is that of T, by the
jackknife, plus std²/(S − 1) for the draw of the subsets.

Inception Score.  exp(L), L = mean h + H(q) with h_i = Σ_c p_ic log p_ic and H(q) the entropy of q = mean p.  Without
image i, mean h and q are one subtraction away.  Parts are independent, so squares add up over their number squared.

Precision and recall are shares of images inside a set of balls.  With the balls taken as fixed they are binomial, and
Wilson's interval (1927) is used, which holds near 0 and 1, too.  Density is the mean of a count over the samples, the
real balls taken as fixed; its interval is that of a mean.

Coverage gets Wilson's interval as well, but the balls it counts are not independent: neighbours overlap and share the
samples inside.  The interval is too narrow: of repeated draws (150 reference images; d = 2 and 8; k = 5) it held 78 to
90% where the samples were kept, and 70 to 78% where they were drawn anew, too.

FD∞ is the FD of all N images moved along a line: its variance is the jackknife's of that FD plus that of the line's
intercept, by the residuals of the subsets about it.

Legend: N, m samples; n reference images; d feature dimension.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastfid.kernel_distance import Kernel
from fastfid.moments import FeatureMoments
from fastfid.statistics import without_provenance
from fastfid.swap import SwapEngine

NORMAL_95 = 1.959964  # 97.5% quantile of the standard normal

# Error of a leave-one-out change relative to the largest root eigenvalue: 10 times below the engine's default, since
# the jackknife looks at differences between changes that are themselves about FD/N.
LEAVE_ONE_OUT_TOL = 1e-7

JACKKNIFE_ROWS = 500  # rows whose kernel sums stand for all: the error of their deviation is 1/√(2·500) = 3%
KERNEL_COLUMNS = 1024  # columns of a block of those kernel values: 4 MiB, and 16 MiB of float64 columns at d = 2048
ENTROPY_ROWS = 2048  # rows of leave-one-out marginals at a time: 17 MB at 1,008 classes


def normal_interval(value: float, error: float) -> tuple[float, float]:
    """value ± 1.96 error."""
    return value - NORMAL_95 * error, value + NORMAL_95 * error


def wilson_interval(part: float, n: int) -> tuple[float, float]:
    """95% interval (low, high) of a share `part` of n independent cases (Wilson 1927)."""
    z = NORMAL_95**2 / n
    middle = (part + z / 2) / (1 + z)
    half = math.sqrt(z * (part * (1 - part) + z / 4)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def jackknife_variance(changes: Tensor) -> float:
    """(N − 1)/N Σ (c_i − mean c)² of leave-one-out changes c [N]: the variance of what they are changes of."""
    n = len(changes)
    return (n - 1) / n * (changes - changes.mean()).square().sum().item()


def leave_one_out(other: FeatureMoments, features: Tensor | None) -> Tensor | None:
    """Exact change of the distance between features [n, d] and moments `other` without each row: float64 [n].

    None without features or for n < 3: two rows must stay for a covariance.
    """
    if features is None or len(features) < 3:
        return None
    return SwapEngine(without_provenance(other), features, tol=LEAVE_ONE_OUT_TOL).leave_one_out()


def mmd_variance(a: Tensor, b: Tensor, kernel: Kernel, seed: int = 2020) -> float | None:
    """Jackknife variance, over both sides, of the unbiased MMD² of features a [m, d] and b [n, d].

    seed  of the rows that stand for all where a side has more than JACKKNIFE_ROWS

    None where a side has fewer than 3 rows.
    """
    found = mmd_variances(a, b, [kernel], seed)
    return found and found[0]


def mmd_variances(a: Tensor, b: Tensor, kernels: list[Kernel], seed: int = 2020) -> list[float] | None:
    """`mmd_variance` of several kernels from the same matrix products."""
    if min(len(a), len(b)) < 3:
        return None
    sides = _one_side_variances(a, b, kernels, seed), _one_side_variances(b, a, kernels, seed)
    return [sum(both) for both in zip(*sides, strict=True)]


def _one_side_variances(x: Tensor, y: Tensor, kernels: list[Kernel], seed: int) -> list[float]:
    m, n = len(x), len(y)
    chosen = x[torch.from_numpy(np.random.RandomState(seed).permutation(m)[:JACKKNIFE_ROWS])].to(torch.float64)
    centre = chosen.mean(dim=0)
    within, between = (_kernel_sums(chosen, rows, kernels, centre) for rows in (x, y))
    variances = []
    for kernel, of_x, of_y in zip(kernels, within, between, strict=True):
        own = torch.cat([kernel.between(row, row, centre)[0] for row in chosen.split(1)])
        values = -2 * (of_x - own) / ((m - 1) * (m - 2)) + 2 * of_y / ((m - 1) * n)
        variances.append((m - 1) ** 2 / m * values.var().item())
    return variances


def _kernel_sums(rows: Tensor, columns: Tensor, kernels: list[Kernel], centre: Tensor) -> list[Tensor]:
    """Σ_j k(row_i, column_j) of every kernel, float64 [rows]."""
    p = rows - centre
    of_rows, sums = [kernel.term(p, centre) for kernel in kernels], [p.new_zeros(len(p)) for _ in kernels]
    for block in columns.split(KERNEL_COLUMNS):
        q = block.to(torch.float64) - centre
        products = p @ q.T
        for kernel, term, total in zip(kernels, of_rows, sums, strict=True):
            total += kernel.values(products.clone(), term, kernel.term(q, centre)).sum(dim=1)
    return sums


def inception_score_variance(log_p: Tensor) -> float | None:
    """Jackknife variance of exp(L) over the rows of log p, float64 [n, C]; None below 2 rows."""
    n = len(log_p)
    if n < 2:
        return None
    total, h = log_p.exp().sum(dim=0), (log_p.exp() * log_p).sum(dim=1)
    logs = []
    for block, own in zip(log_p.split(ENTROPY_ROWS), h.split(ENTROPY_ROWS), strict=True):
        marginal = ((total - block.exp()) / (n - 1)).clamp_(min=0)
        logs.append((h.sum() - own) / (n - 1) - torch.xlogy(marginal, marginal).sum(dim=1))
    return jackknife_variance(torch.cat(logs).exp())


def line_through(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and the intercept's standard error of the least-squares line through points x, y [≥ 3]."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (intercept + slope * x)
    noise = residual @ residual / (len(x) - 2)
    spread = np.square(x - x.mean()).sum()
    return float(slope), float(intercept), float(np.sqrt(noise * (1 / len(x) + x.mean() ** 2 / spread)))
