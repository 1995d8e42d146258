"""The Fréchet distance as a set reward: the swap engine.

The gradient in the features, with y = x − μ_g and the projection P of equation 1:

    ∂FD/∂x = −2 (μ_r − μ_g)/N + 2/(N − 1) · (y − Pᵀ Λ^(−1/2) P y).

A lost direction has no derivative: there the root of the shift of swap/nodes.py stands for √λ, as in the influence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfid.distances.real_side import HasMoments, Pair, PreparedMoments, RealFactor
from fastfid.distances.rows import blocks
from fastfid.swap.engine import SwapEngine
from fastfid.swap.influence import curvature

OPTIONS = ("tol", "dtype", "backend", "method", "workspace", "eigensolver")
ROWS = 1024  # float64 rows of a block: 16 MiB at d = 2048


class FrechetReward:
    """Fréchet distance to real moments.

    real     `FeatureMoments`, a pair (mean [d], cov [d, d]), or a `RealFactor`
    device   of the sets; None: where the real moments are
    options  of `SwapEngine`: tol, dtype, backend, method, workspace, eigensolver
    """

    def __init__(
        self,
        real: PreparedMoments | HasMoments | Pair,
        name: str = "fd",
        device: torch.device | str | None = None,
        **options: Any,
    ):
        unknown = sorted(options.keys() - OPTIONS)
        if unknown:
            raise ValueError(f"{unknown[0]} is no option of SwapEngine; choose from {', '.join(OPTIONS)}")
        self.name, self.real, self.options = name, RealFactor.of(real, device), options

    def with_options(self, **changed: Any) -> FrechetReward:
        """The same reward with other options of `SwapEngine`."""
        return FrechetReward(self.real, self.name, **(self.options | changed))

    def prepare(self, rows: object, labels: object = None) -> FrechetSet:
        """The set of features [N, d]; labels are not used.  ValueError as in `SwapEngine`."""
        return FrechetSet(SwapEngine(self.real, rows, **self.options))


class FrechetSet:
    """A swap engine as a prepared set."""

    def __init__(self, engine: SwapEngine):
        self.engine = engine

    @property
    def count(self) -> int:
        """Number N of images."""
        return self.engine.count

    @property
    def distance(self) -> float:
        """Fréchet distance of the set (equation 1)."""
        return self.engine.distance

    def change(self, removed: object, added: object, labels: object = None) -> Tensor:
        """Exact change for each candidate [B] float64 (equation 4); labels are not used."""
        return self.engine.change(removed, added)

    def leave_one_out(self) -> Tensor:
        """Exact change when one image is left out, for each of them [N] float64 (equation 7)."""
        return self.engine.leave_one_out()

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """∂ distance/∂ features [N, d] float64."""
        prepared = self.engine.prepared
        projection, weights = prepared.projections[torch.float64], curvature(prepared)
        gradient = prepared.gap.new_empty(prepared.features.shape)
        for rows in blocks(prepared.count, ROWS):
            centred = prepared.features[rows].to(torch.float64) - prepared.mean
            bent = ((centred @ projection) * weights) @ projection.T
            gradient[rows] = (centred - bent) * (2 / (prepared.count - 1)) - prepared.gap * (2 / prepared.count)
        return gradient
