"""Intervals of scores: how far a score would move if other images had been drawn.

Jackknife (Efron & Stein 1981).  Let T_(i) be the score without image i and c_i = T_(i) − T.  Then

    SE² = (N − 1)/N · Σ (c_i − mean c)²,      95% interval  T ± 1.96 SE,

once for each side of a comparison; the squares of the sides add up.  It covers the chance of which images were drawn,
not the bias of a finite N.  It is too wide where the linear part of the score vanishes: if both sides come from one
distribution, MMD² and the Fréchet distance are squares, and SE² is about twice the variance.

Fréchet distance.  distances/leave_one_out.py computes all c_i exactly, for both sides from one eigendecomposition.

MMD².  The unbiased estimate of samples x [m] and real images y [n] is

    T = Σ_{i≠j} k(x_i, x_j) / m(m − 1) + Σ_{i≠j} k(y_i, y_j) / n(n − 1) − 2 Σ_ij k(x_i, y_j) / mn.

Without x_i the sums lose 2 A_i, A_i = Σ_{j≠i} k(x_i, x_j), and C_i = Σ_j k(x_i, y_j).  Up to a common constant,

    T_(i) = −2 A_i / (m − 1)(m − 2) + 2 C_i / (m − 1)n.

This is exact, and likewise for y.  KID and MMD together compute all kernel values, so all A_i and C_i (`RowSums`).  For
one of them alone, the variance over i is estimated from JACKKNIFE_ROWS rows: 2·500·(m + n) kernel values, and SE is off
by 3%.

KID is the mean of S subsets, each an unbiased estimate of T given the images.  Its variance is that of T, by the
jackknife, plus std²/(S − 1) for the draw of the subsets.

Inception Score.  inception_score.py.

Precision, recall and coverage are shares of images, but not binomial: an image adds a ball and, as a neighbour, changes
the size of others, and balls that overlap hold the same images.  The interval is that of the expectation over draws of
both sides, n real images and m samples.  It is Wilson's (1927), which also holds near 0 and 1, for N/e independent
cases, N being n or m, with Student's quantile in place of the normal one.  The design effect (Kish 1965)

    e = (N/B) Var(c_b) / c (1 − c),      at least 1,

is that of the shares c_b, with mean c, of B random parts of both sides.  The parts are independent draws with the same
k and the same ratio of samples to images, and together cost 1/B of the whole.

Density is T = Σ_ij b_ij / km, with b_ij = 1 for sample j inside ball i.  With a_j = Σ_i b_ij / k and
w_i = Σ_j b_ij n / km, both of mean T, the first-order variance of such a mean over two independent draws is

    SE² = Var(a)/m + Var(w)/n,

with the radii taken as fixed.

FD∞ is the FD of all N images moved along a line.  Its variance is the jackknife's of that FD, plus that of the line's
intercept by the residuals of the subsets.

Measured: how often 95% intervals held the expectation, over repeated draws of both sides.

    coverage            93 to 99%   n = m = 150, 500, 2,000; d = 2, 8, 32; k = 3, 5; equal, shifted, narrower, lost mode
                        88 to 94%   the lost mode at d = 32, where e grows with n
    precision, recall   90 to 99%   n = m = 150; equal, shifted, narrower, wider
                        82%         one case of n = 500, over 80 draws
    density             91 to 100%  d ≤ 8
                        78 to 93%   d = 32, where few images size most balls

Wilson's interval for N cases, with the balls taken as fixed, held 52 to 88% of coverage and 69 to 94% of precision and
recall; the samples' part of the density's variance alone held 62 to 90%.

Legend: N, m samples; n real images; d feature dimension.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor

from fastfid.distances.kernel_sums import Kernel, RowSums
from fastfid.linalg.units import unit_of_number

NORMAL_95 = 1.959964  # 97.5% quantile of the standard normal

JACKKNIFE_ROWS = 500  # rows that the variance is estimated from: the error of their deviation is 1/√(2·500) = 3%
KERNEL_COLUMNS = 1024  # columns of a block of those kernel values: 4 MiB, and 16 MiB of float64 columns at d = 2048

FLOAT32_EXPONENT = 50  # float32 reaches from 2⁻¹²⁶ to 2¹²⁷, with room for sums of squares over d
PARTS = 10  # random parts of both sides: their shares take a tenth of the time of the whole
PART_ROWS = 1000  # most rows of a part, else there are more than PARTS: 4 MB of distances at a time
PART_NEIGHBOURS = 5  # least rows of a part in units of k, else there are fewer parts: with 3, e was a tenth too small


def normal_interval(value: float, error: float) -> tuple[float, float]:
    """value ± 1.96 error."""
    return value - NORMAL_95 * error, value + NORMAL_95 * error


def wilson_interval(part: float, n: float, quantile: float = NORMAL_95) -> tuple[float, float]:
    """95% interval (low, high) of a share `part` of n independent cases (Wilson 1927)."""
    z = quantile**2 / n
    middle = (part + z / 2) / (1 + z)
    half = math.sqrt(z * (part * (1 - part) + z / 4)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def jackknife_variance(changes: Tensor) -> float:
    """(N − 1)/N Σ (c_i − mean c)² of leave-one-out changes c [N]: the variance of the score that changes."""
    n = len(changes)
    return (n - 1) / n * (changes - changes.mean()).square().sum().item()


def jackknife_error(sides: Iterable[Tensor]) -> float:
    """Standard error of a score by its leave-one-out changes of every side, float64 [N], in a unit that suits them."""
    sides = list(sides)
    largest = max((changes.abs().max().item() for changes in sides if len(changes)), default=0.0)
    unit = unit_of_number(largest)
    return math.sqrt(sum(jackknife_variance(changes * unit) for changes in sides)) / unit


def mmd_variance(a: Tensor, b: Tensor, kernel: Kernel, seed: int = 2020) -> float | None:
    """Jackknife variance, over both sides, of the unbiased MMD² of features a [m, d] and b [n, d].

    seed  of the choice of JACKKNIFE_ROWS rows, where a side has more

    None where a side has fewer than 3 rows.
    """
    if min(len(a), len(b)) < 3:
        return None
    return _variance_of_chosen(a, b, kernel, seed) + _variance_of_chosen(b, a, kernel, seed)


def mmd_variance_of_sums(sums: RowSums) -> float | None:
    """`mmd_variance` from every row's kernel sums; None where a side has fewer than 3 rows."""
    m, n = len(sums.generated), len(sums.real)
    if min(m, n) < 3:
        return None
    of_generated = _mmd_variance(sums.generated, sums.generated_to_real, m, n)
    return of_generated + _mmd_variance(sums.real, sums.real_to_generated, n, m)


def _mmd_variance(within: Tensor, between: Tensor, m: int, n: int) -> float:
    """Jackknife variance over a side of m rows, from the sums A_i and C_i of all or some of them."""
    values = -2 * within / ((m - 1) * (m - 2)) + 2 * between / ((m - 1) * n)
    return (m - 1) ** 2 / m * values.var().item()


def _variance_of_chosen(x: Tensor, y: Tensor, kernel: Kernel, seed: int) -> float:
    """Jackknife variance over x [m, d] against y [n, d], from at most JACKKNIFE_ROWS rows of x."""
    m, n = len(x), len(y)
    chosen = x[torch.from_numpy(np.random.RandomState(seed).permutation(m)[:JACKKNIFE_ROWS])].to(torch.float64)
    centre = chosen.mean(dim=0)
    own = torch.cat([kernel.between(row, row, centre)[0] for row in chosen.split(1)])
    return _mmd_variance(_kernel_sums(kernel, chosen, x, centre) - own, _kernel_sums(kernel, chosen, y, centre), m, n)


def _kernel_sums(kernel: Kernel, chosen: Tensor, rows: Tensor, centre: Tensor) -> Tensor:
    """Σ_j k(chosen_i, rows_j) for each chosen row, float64."""
    total = torch.zeros(len(chosen), dtype=torch.float64, device=chosen.device)
    for columns in rows.split(KERNEL_COLUMNS):
        total += kernel.between(chosen, columns, centre).sum(dim=1)
    return total


@dataclass(frozen=True)
class ShareSpread:
    """How precision, recall and coverage spread over random parts of both sides.

    parts    B
    effects  design effects e by the shares' names, each at least 1
    """

    parts: int
    effects: dict[str, float]

    def interval(self, name: str, share: float, n: int) -> tuple[float, tuple[float, float]]:
        """Standard error and 95% interval of the `share` of n images called `name`, both sides drawn."""
        independent, quantile = n / self.effects[name], float(stdtrit(self.parts - 1, 0.975))
        return math.sqrt(share * (1 - share) / independent), wilson_interval(share, independent, quantile)


def share_spread(real: Tensor, generated: Tensor, nearest_k: int, seed: int = 2020) -> ShareSpread | None:
    """The spread of the shares of real [n, d] and generated [m, d]; `seed` is of the random parts.

    None where a side has fewer than 2·PART_NEIGHBOURS·k rows.
    """
    fewest, most = sorted((len(real), len(generated)))
    parts = min(max(PARTS, most // PART_ROWS), fewest // (PART_NEIGHBOURS * nearest_k))
    if parts < 2:
        return None
    rng = np.random.RandomState(seed)
    places = [[torch.from_numpy(p) for p in np.array_split(rng.permutation(len(x)), parts)] for x in (real, generated)]
    largest = max(torch.linalg.vector_norm(x, math.inf).item() for x in (real, generated))
    unit = unit_of_number(largest, FLOAT32_EXPONENT)
    found = [_rounded_shares(real[i] * unit, generated[j] * unit, nearest_k) for i, j in zip(*places, strict=True)]
    sizes = {"precision": len(generated), "recall": len(real), "coverage": len(real)}
    return ShareSpread(parts, {name: _design_effect([x[name] for x in found], n) for name, n in sizes.items()})


def _design_effect(shares: list[float], n: int) -> float:
    """(n/B) Var(c_b) / c (1 − c) of the B parts' shares c_b; at least 1, and 1 where all parts have 0 or all have 1."""
    mean = statistics.fmean(shares)
    binomial = mean * (1 - mean) * len(shares) / n
    return max(1.0, statistics.variance(shares) / binomial) if binomial else 1.0


def _rounded_shares(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Shares from distances in float32: rounding decides near-ties, which changes the spread of the parts little."""
    centre = real.float().mean(dim=0)
    real, generated = real.float() - centre, generated.float() - centre
    radii, generated_radii = _rounded_radii(real, k), _rounded_radii(generated, k)
    precise = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    recalled = covered = 0
    for rows, limits in zip(real.split(PART_ROWS), radii.split(PART_ROWS), strict=True):
        distances = torch.cdist(rows, generated)
        inside = distances < limits[:, None]
        precise |= inside.any(dim=0)
        covered += int(inside.any(dim=1).sum())
        recalled += int((distances < generated_radii).any(dim=1).sum())
    return {"precision": precise.float().mean().item(), "recall": recalled / len(real), "coverage": covered / len(real)}


def _rounded_radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th neighbour; the row itself comes first."""
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(PART_ROWS)])


def density_error(around: Tensor, within: Tensor, nearest_k: int) -> float:
    """Standard error of density over both draws: balls around each sample [m], samples within each ball [n]."""
    a = around.double() / nearest_k
    w = within.double() * (len(within) / len(around) / nearest_k)
    return math.sqrt(a.var().item() / len(a) + w.var().item() / len(w))


def line_through(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, intercept and the intercept's standard error of the least-squares line through points x, y [≥ 3]."""
    slope, intercept = np.polyfit(x, y, 1)
    unit = unit_of_number(float(np.abs(y).max()))
    residual = (y - (intercept + slope * x)) * unit
    noise = residual @ residual / (len(x) - 2)
    spread = np.square(x - x.mean()).sum()
    return float(slope), float(intercept), float(np.sqrt(noise * (1 / len(x) + x.mean() ** 2 / spread))) / unit
