"""How much a score would move if other images had been drawn: jackknives from leave-one-out changes, and binomials.

Jackknife (Efron & Stein 1981).  With T_(i) the score without image i and c_i = T_(i) − T,

    SE² = (N − 1)/N · Σ (c_i − mean c)²,      95% interval  T ± 1.96 SE,

once for each side of a comparison, whose squares add up.  It covers the chance of which images were drawn, not the bias
of a finite N, and errs on the wide side where the linear part of the score vanishes: there, with both sides from one
distribution, MMD² and the Fréchet distance are squares, and SE² is about twice the variance.

Fréchet distance.  fastfid/leave_one_out.py gives all c_i exactly, those of both sides from one eigendecomposition.

MMD².  The unbiased estimate of samples x [m] and reference y [n] is

    T = Σ_{i≠j} k(x_i, x_j) / m(m − 1) + Σ_{i≠j} k(y_i, y_j) / n(n − 1) − 2 Σ_ij k(x_i, y_j) / mn.

Without x_i the sums lose 2 A_i, A_i = Σ_{j≠i} k(x_i, x_j), and C_i = Σ_j k(x_i, y_j), so up to a common constant

    T_(i) = −2 A_i / (m − 1)(m − 2) + 2 C_i / (m − 1)n,

exactly; likewise for y.  KID and MMD together make all kernel values and so all A_i and C_i (`RowSums`).  Of either
alone the variance over i is taken from JACKKNIFE_ROWS rows: 2·500·(m + n) kernel values, for an error of 3% in SE.

KID is the mean of S subsets, each an unbiased estimate of T given the images: its variance is that of T, by the
jackknife, plus std²/(S − 1) for the draw of the subsets.

Inception Score.  exp(L), L = mean h + H(q) with h_i = Σ_c p_ic log p_ic and H(q) the entropy of q = mean p.  Without
image i, mean h and q are one subtraction away.  Parts are independent, so squares add up over their number squared.

Precision and recall are shares of images inside a set of balls.  With the balls taken as fixed they are binomial, and
Wilson's interval (1927) is used, which holds near 0 and 1, too.  Density is the mean of a count over the samples, the
real balls taken as fixed; its interval is that of a mean.

Coverage has no side to take as fixed: a reference image brings a ball and, as a neighbour, sizes others, and balls that
overlap share the samples inside.  Its interval is that of its expectation over both draws, n reference images and m
samples: Wilson's for n/e independent balls and Student's quantile in place of the normal one.  The design effect (Kish
1965)

    e = (n/B) Var(c_b) / c (1 − c),      at least 1,

is that of the coverages c_b, of mean c, of B random parts of both sides: independent draws of the same k and the same
ratio of samples to images, at the price of 1/B of the whole.  Of repeated draws (n = m = 150, 500 and 2,000; d = 2, 8,
32; k = 3, 5; equal, shifted, narrower, a mode all but lost) it held 93 to 99%, but 88 to 94% with the lost mode at
d = 32, where e grows with the size.  Wilson's interval for n balls held 52 to 88%, 96% of the narrower samples.

FD∞ is the FD of all N images moved along a line: its variance is the jackknife's of that FD plus that of the line's
intercept, by the residuals of the subsets about it.

Legend: N, m samples; n reference images; d feature dimension.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from fastfid.kernel_distance import Kernel, RowSums
from fastfid.leave_one_out import LeaveOneOut
from fastfid.moments import FeatureMoments
from fastfid.statistics import without_provenance

NORMAL_95 = 1.959964  # 97.5% quantile of the standard normal

JACKKNIFE_ROWS = 500  # rows whose kernel sums stand for all: the error of their deviation is 1/√(2·500) = 3%
KERNEL_COLUMNS = 1024  # columns of a block of those kernel values: 4 MiB, and 16 MiB of float64 columns at d = 2048
ENTROPY_ROWS = 2048  # rows of probabilities at a time: 17 MB at 1,008 classes

COVERAGE_PARTS = 10  # of both sides, whose coverages take a tenth of the time of the whole; more of more images
PART_ROWS = 1000  # of a part up to which there are as few: 4 MB of distances at a time
PART_NEIGHBOURS = 5  # times k rows at least in a part, else fewer parts: with 3, e came out a tenth too small


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
    """(N − 1)/N Σ (c_i − mean c)² of leave-one-out changes c [N]: the variance of what they are changes of."""
    n = len(changes)
    return (n - 1) / n * (changes - changes.mean()).square().sum().item()


def leave_one_out(other: FeatureMoments, features: Tensor | None) -> Tensor | None:
    """Exact change of the distance between features [n, d] and moments `other` without each row: float64 [n].

    None without features or for n < 3: two rows must stay for a covariance.
    """
    if features is None or len(features) < 3:
        return None
    return LeaveOneOut(FeatureMoments.from_features(features), without_provenance(other)).without_first(features)


def mmd_variance(a: Tensor, b: Tensor, kernel: Kernel, seed: int = 2020) -> float | None:
    """Jackknife variance, over both sides, of the unbiased MMD² of features a [m, d] and b [n, d].

    seed  of the rows that stand for all where a side has more than JACKKNIFE_ROWS

    None where a side has fewer than 3 rows.
    """
    if min(len(a), len(b)) < 3:
        return None
    return _variance_of_chosen(a, b, kernel, seed) + _variance_of_chosen(b, a, kernel, seed)


def mmd_variance_of_sums(sums: RowSums) -> float | None:
    """The same from every row's kernel sums; None where a side has fewer than 3 rows."""
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
    m, n = len(x), len(y)
    chosen = x[torch.from_numpy(np.random.RandomState(seed).permutation(m)[:JACKKNIFE_ROWS])].to(torch.float64)
    centre = chosen.mean(dim=0)
    own = torch.cat([kernel.between(row, row, centre)[0] for row in chosen.split(1)])
    of_x, of_y = (
        sum(kernel.between(chosen, columns, centre).sum(dim=1) for columns in rows.split(KERNEL_COLUMNS))
        for rows in (x, y)
    )
    return _mmd_variance(of_x - own, of_y, m, n)


class ClassProbabilities:
    """p(y|x) of some rows of logits [N, C], made from them whenever they are wanted, ENTROPY_ROWS at a time.

    rows       numbers of the rows, int64 [n]; all of them unless given
    entropies  h_i = Σ_c p_ic log p_ic, float64 [n]
    total      Σ_i p_i, float64 [C]
    """

    def __init__(self, logits: Tensor, rows: Tensor | None = None):
        self.logits, self.rows = logits, torch.arange(len(logits)) if rows is None else rows
        sums = [(torch.xlogy(p, p).sum(dim=1), p.sum(dim=0)) for p in self.blocks()]
        self.entropies = torch.cat([h for h, _ in sums])
        self.total = sum(total for _, total in sums)

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[Tensor]:
        """float64 [m ≤ ENTROPY_ROWS, C] of consecutive rows."""
        return (self.logits[part].double().softmax(dim=1) for part in self.rows.split(ENTROPY_ROWS))

    def score(self) -> float:
        """exp(L) of these rows."""
        marginal = self.total / len(self)
        return (self.entropies.mean() - torch.xlogy(marginal, marginal).sum()).exp().item()

    def variance(self) -> float | None:
        """Jackknife variance of exp(L) over these rows; None below 2 of them."""
        n = len(self)
        if n < 2:
            return None
        logs = []
        for p, own in zip(self.blocks(), self.entropies.split(ENTROPY_ROWS), strict=True):
            marginal = ((self.total - p) / (n - 1)).clamp_(min=0)
            logs.append((self.entropies.sum() - own) / (n - 1) - torch.xlogy(marginal, marginal).sum(dim=1))
        return jackknife_variance(torch.cat(logs).exp())


def coverage_interval(
    coverage: float, real: Tensor, generated: Tensor, nearest_k: int, seed: int = 2020
) -> tuple[float, tuple[float, float]] | None:
    """Standard error and 95% interval of the coverage of real [n, d] by generated [m, d], both drawn.

    seed  of the random parts

    None where a side has fewer than 2·PART_NEIGHBOURS·k rows.
    """
    parts = coverage_parts(len(real), len(generated), nearest_k)
    if parts < 2:
        return None
    rng = np.random.RandomState(seed)
    places = [[torch.from_numpy(p) for p in np.array_split(rng.permutation(len(x)), parts)] for x in (real, generated)]
    found = [_rounded_coverage(real[i], generated[j], nearest_k) for i, j in zip(*places, strict=True)]
    mean, variance = statistics.fmean(found), statistics.variance(found)
    binomial = mean * (1 - mean) * parts / len(real)
    effect = max(1.0, variance / binomial) if binomial else 1.0  # parts that agree on 0 or 1 tell nothing
    n, quantile = len(real) / effect, float(stdtrit(parts - 1, 0.975))
    return math.sqrt(coverage * (1 - coverage) / n), wilson_interval(coverage, n, quantile)


def coverage_parts(n: int, m: int, nearest_k: int) -> int:
    """Parts of n reference images and m samples that coverage's interval is made of; below 2 there is none."""
    fewest, most = sorted((n, m))
    return min(max(COVERAGE_PARTS, most // PART_ROWS), fewest // (PART_NEIGHBOURS * nearest_k))


def _rounded_coverage(real: Tensor, generated: Tensor, k: int) -> float:
    """Coverage from distances in float32: near-ties may fall either way, which moves a spread of parts by little."""
    centre = real.float().mean(dim=0)
    real, generated = real.float() - centre, generated.float() - centre
    covered = 0
    for rows in real.split(PART_ROWS):
        radii = torch.cdist(rows, real).kthvalue(k + 1, dim=1).values  # the row itself comes first
        covered += int((torch.cdist(rows, generated).amin(dim=1) < radii).sum())
    return covered / len(real)


def line_through(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and the intercept's standard error of the least-squares line through points x, y [≥ 3]."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (intercept + slope * x)
    noise = residual @ residual / (len(x) - 2)
    spread = np.square(x - x.mean()).sum()
    return float(slope), float(intercept), float(np.sqrt(noise * (1 / len(x) + x.mean() ** 2 / spread)))
