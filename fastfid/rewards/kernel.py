"""The squared maximum mean discrepancy as a set reward: KID's polynomial kernel, or a Gaussian one, unbiased.

For a set x_1..x_N and real rows y_1..y_n three sums are kept: a_i = Σ_{j≠i} k(x_i, x_j), b_i = Σ_j k(x_i, y_j), and
Σ_{j≠j'} k(y_j, y_j').  With U = Σ a_i and V = Σ b_i,

    D = U/(N(N−1)) + Σ k(y, y')/(n(n−1)) − 2V/(Nn).

A candidate removes rows r and adds rows z.  Let s = −1 for a removed and +1 for an added row.  Then

    ΔU = 2 Σ_z Σ_j k(z, x_j) − 2 Σ_r a_r + Σ_{w≠w'} s_w s_w' k(w, w')       over its rows w, w'
    ΔV = Σ_z Σ_j k(z, y_j) − Σ_r b_r
    D' − D = (ΔU − u (N'(N'−1) − N(N−1)))/(N'(N'−1)) − 2 (ΔV/n − v (N'−N))/N'

with N' = N − m_r + m_a and the means u = U/(N(N−1)), v = V/(Nn).  A new row costs (N + n)·d.

Legend: as in rewards/protocol.py; n real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastfid.distances.arguments import check_polynomial
from fastfid.distances.kernel_sums import Kernel, gaussian_kernel, polynomial_kernel
from fastfid.distances.kid_mmd import chosen_bandwidth
from fastfid.distances.rows import blocks, mean_row
from fastfid.rewards.checks import checked_candidates, checked_real, checked_set
from fastfid.rewards.shared_sums import SharedSums
from fastfid.runtime.devices import full_float32

CHUNK = 8 << 20  # float64 numbers of temporary rows or kernel values: 64 MiB
SLOPE_ROWS = 256  # rows of a gradient's block
# Roundings of the largest mean kernel value by which changes by equal rows may differ: 1.6 in float32, where the place
# of a row in a matrix product decides, and 6.5 in float64 (60 to 1,600 rows of 2 to 128 features, measured).
ROUNDINGS = 16


@dataclass(frozen=True)
class Slope:
    """∂k(x, y)/∂x = s(x, y)·(y − pull·x) with a kernel s/scale."""

    kernel: Kernel
    scale: float
    pull: float


class KernelReward:
    """Unbiased squared maximum mean discrepancy to real features [n, d].

    kernel     "polynomial"  (γ x·y + coef)^degree as in KID, or "gaussian", exp(−|x − y|²/2σ²)
    degree     3
    gamma      1/d
    coef       1.0
    bandwidth  "median"      σ in feature units, or the median distance of 1,000 evenly spaced real rows
    dtype      float64       of kernel values; their sums are always float64.  float32 takes half the time
    name       "kid" or "mmd"
    beside     None          a reward of the same real rows and dtype, which is asked about the same sets: the matrix
                             products are computed once for both
    """

    def __init__(
        self,
        real: object,
        kernel: Literal["polynomial", "gaussian"] = "polynomial",
        *,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        bandwidth: float | Literal["median"] = "median",
        dtype: torch.dtype = torch.float64,
        name: str | None = None,
        beside: KernelReward | None = None,
    ):
        self.name = name or ("mmd" if kernel == "gaussian" else "kid")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}; less cannot resolve a change")
        self.real = checked_real(real)
        self.centre, self.dtype = mean_row(self.real).to(dtype).to(torch.float64), dtype
        self.bandwidth = None
        if kernel == "polynomial":
            check_polynomial(degree, gamma, coef)
            gamma = 1 / self.real.shape[1] if gamma is None else gamma
            self.kernel = polynomial_kernel(degree, gamma, coef)
            self.slope = Slope(polynomial_kernel(degree - 1, gamma, coef), degree * gamma, 0.0)
        elif kernel == "gaussian":
            self.bandwidth = chosen_bandwidth(bandwidth, self.real)
            self.kernel = gaussian_kernel(self.bandwidth)
            self.slope = Slope(self.kernel, self.bandwidth**-2, 1.0)
        else:
            raise ValueError(f"unknown kernel {kernel!r}; choose polynomial or gaussian")
        self._shared = self._joined(beside)
        count = len(self.real)
        self.within_real = self.sums(self.real, self.real).sum().item() / (count * (count - 1))

    def _joined(self, beside: KernelReward | None) -> SharedSums:
        """The sums of this kernel, or of this one and those beside it."""
        if beside is None:
            return SharedSums([self.kernel], self.centre.to(self.dtype))
        if beside.dtype != self.dtype or not torch.equal(beside.real, self.real):
            raise ValueError(
                f"{self.name} cannot share products with {beside.name}: beside must have the same real rows and dtype"
            )
        self.real = beside.real
        beside._shared.kernels.append(self.kernel)
        return beside._shared

    def sums(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ_j k(x_i, y_j) float64 [n]; where y is x, over j ≠ i."""
        with full_float32(x.device):
            sums = self._shared.sums(self.kernel, x, y)
        if not torch.isfinite(sums.sum()):
            raise ValueError(
                f"kernel values of {self.name} overflow {self.dtype}: the features are too large; divide them, or "
                "lower gamma"
            )
        return sums

    def prepare(self, rows: object, labels: object = None) -> KernelSet:
        """The set of features [N, d], N ≥ 2; labels are not used."""
        return KernelSet(self, self._shared.copy(checked_set(rows, self.real)))


class KernelSet:
    """A set with its sums of kernel values; made by `KernelReward.prepare`."""

    def __init__(self, reward: KernelReward, rows: Tensor):
        self.reward, self.rows = reward, rows
        self.to_set, self.to_real = reward.sums(rows, rows), reward.sums(rows, reward.real)

    @property
    def count(self) -> int:
        """Number N of images."""
        return len(self.rows)

    @property
    def _means(self) -> tuple[Tensor, Tensor]:
        """u and v, 0-d."""
        return self.to_set.mean() / (self.count - 1), self.to_real.mean() / len(self.reward.real)

    @property
    def distance(self) -> float:
        """D; may be below 0, since it is unbiased."""
        u, v = self._means
        return float(u + self.reward.within_real - 2 * v)

    def change(self, removed: object, added: object, labels: object = None) -> Tensor:
        """Exact change for each candidate [B] float64; labels are not used."""
        removed, added = checked_candidates(removed, added, self.rows)
        new, shape = added.flatten(0, 1), added.shape[:2]
        to_set = self.reward.sums(new, self.rows).view(shape).sum(1) - self.to_set[removed].sum(1)
        to_real = self.reward.sums(new, self.reward.real).view(shape).sum(1) - self.to_real[removed].sum(1)
        return self._change(2 * to_set + self._among(removed, added), to_real, shape[1] - removed.shape[1])

    @property
    def rounding(self) -> float:
        """How far changes by two equal rows may differ, because their kernel values were summed in another order."""
        count = self.count
        of_set = self.to_set.abs().max().item() / max(1, (count - 1) * (count - 2))
        of_real = self.to_real.abs().max().item() / (len(self.reward.real) * (count - 1))
        return ROUNDINGS * torch.finfo(self.reward.dtype).eps * 2 * (of_set + of_real)

    def leave_one_out(self) -> Tensor:
        """Exact change when one image is left out, for each of them [N] float64."""
        if self.count < 3:
            raise ValueError(f"the set has {self.count} images; without one of them no pair is left")
        return self._change(-2 * self.to_set, -self.to_real, -1)

    def _change(self, change_u: Tensor, change_v: Tensor, growth: int) -> Tensor:
        """D' − D from ΔU, ΔV [B] and N' − N."""
        (u, v), count, final = self._means, self.count, self.count + growth
        pairs, final_pairs = count * (count - 1), final * (final - 1)
        within = (change_u - u * (final_pairs - pairs)) / final_pairs
        return within - 2 * (change_v / len(self.reward.real) - v * growth) / final

    def _among(self, removed: Tensor, added: Tensor) -> Tensor:
        """Σ_{w≠w'} s_w s_w' k(w, w') [B] over each candidate's removed and added rows."""
        (m_r, m_a), dim = (removed.shape[1], added.shape[1]), added.shape[2]
        signs = self.to_set.new_ones(m_r + m_a)
        signs[:m_r] = -1
        sums = self.to_set.new_zeros(len(removed))
        for some in blocks(len(removed), max(1, CHUNK // max(1, (m_r + m_a) * (dim + m_r + m_a)))):
            rows = torch.cat([self.rows[removed[some]].to(torch.float64), added[some].to(torch.float64)], dim=1)
            values = self.reward.kernel.between(rows, rows, self.reward.centre)
            values.diagonal(dim1=1, dim2=2).zero_()
            sums[some] = (values @ signs) @ signs
        return sums

    def gradient(self) -> Tensor:
        """∂D/∂x_i = 2/(N(N−1)) Σ_{j≠i} ∂k(x_i, x_j)/∂x_i − 2/(Nn) Σ_j ∂k(x_i, y_j)/∂x_i, float64 [N, d]."""
        of_set = self._pulls(self.rows, itself=True) / (self.count - 1)
        of_real = self._pulls(self.reward.real, itself=False) / len(self.reward.real)
        return (of_set - of_real) * (2 / self.count)

    def _pulls(self, others: Tensor, itself: bool) -> Tensor:
        """Σ_j ∂k(x_i, y_j)/∂x_i float64 [N, d] over rows y of `others`; if these are the set `itself`, over j ≠ i."""
        slope, centre = self.reward.slope, self.reward.centre
        origin = slope.pull * centre  # y − x loses no digits to a large mean
        pulls = self.to_set.new_zeros(self.rows.shape)
        for rows in blocks(self.count, SLOPE_ROWS):
            x = self.rows[rows].to(torch.float64) - origin
            for columns in blocks(len(others), max(1, CHUNK // max(SLOPE_ROWS, x.shape[1]))):
                y = others[columns].to(torch.float64) - origin
                weights = slope.kernel.between(x + origin, y + origin, centre).mul_(slope.scale)
                if itself:
                    of_row = torch.arange(rows.start, rows.stop, device=x.device)[:, None]
                    weights[of_row == torch.arange(columns.start, columns.stop, device=x.device)] = 0
                pulls[rows] += weights @ y - slope.pull * weights.sum(1, keepdim=True) * x
        return pulls
