"""Equation 2: the rows of a candidate, spread so that their scatter is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Coefficients of equation 2: z_r = w_r + α w̄_r, z_a = w_a + β w̄_a + γ w̄_r."""

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0


def spread_of(count: int, removed: int, added: int) -> Spread:
    """Equation 2 for m_r rows removed from N = `count` and m_a added."""
    remaining, final = count - removed, count - removed + added
    keep = math.sqrt(remaining / final)
    if removed and remaining:
        return Spread(math.sqrt(count / remaining) - 1, keep - 1, keep * removed / remaining)
    return Spread(0.0, keep - 1, 0.0)  # with every row removed ȳ_r is zero and z_r = y_r


@dataclass(frozen=True)
class FeatureSums:
    """Sums over a candidate's features, each [b] float64, s = Σ y_a − Σ y_r: |s|², s·(μ_r − μ_g), Σ|y_a|² − Σ|y_r|²."""

    sum_square: torch.Tensor
    sum_gap: torch.Tensor
    norm_change: torch.Tensor


@dataclass(frozen=True)
class CandidateRows:
    """Projected rows w: removed ones by place, index [b, m_r] in reference [N, r], and added ones [b, m_a, r]."""

    reference: torch.Tensor
    index: torch.Tensor
    added: torch.Tensor
    spread: Spread = Spread()

    @classmethod
    def of(cls, w_r: torch.Tensor, w_a: torch.Tensor) -> CandidateRows:
        """Rows given directly, z_r [b, m_r, r] and z_a [b, m_a, r]."""
        places = torch.arange(w_r.shape[0] * w_r.shape[1], device=w_r.device).view(w_r.shape[:2])
        return cls(w_r.reshape(-1, w_r.shape[2]), places, w_a)

    def spread_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """z_r [b, m_r, r] and z_a [b, m_a, r] of equation 2."""
        w_r, w_a, by = self.reference[self.index], self.added, self.spread
        if not w_r.shape[1]:
            return w_r, w_a + by.beta * w_a.mean(1, keepdim=True) if w_a.shape[1] else w_a
        mean_r = w_r.mean(1, keepdim=True)
        if w_a.shape[1]:
            w_a = w_a + (by.beta * w_a.mean(1, keepdim=True) + by.gamma * mean_r)
        return w_r + by.alpha * mean_r, w_a

    def arrays(self) -> tuple:
        """What the extension takes: reference, index, added rows, shifts."""
        rows = (self.reference, self.index, self.added.detach())
        by = self.spread
        return *(part.contiguous().numpy() for part in rows), (by.alpha, by.beta, by.gamma)
