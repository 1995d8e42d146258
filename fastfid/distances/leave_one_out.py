"""Change of the Fréchet distance when one image is left out, for every image of either side of a comparison.

One eigendecomposition serves both sides.  With Σ_a = RᵀR and  R Σ_b Rᵀ = U Λ Uᵀ,

    P_b = Uᵀ R,      P_a = Λ^{-1/2} P_b Σ_b      give      P_b Σ_b P_bᵀ = P_a Σ_a P_aᵀ = Λ,

and tr √(Σ_a Σ_b) = tr √Λ.  Let a side of N rows and covariance Σ lose its row x, and y = x − μ.  Its scatter loses
κ y yᵀ, κ = N/(N−1), so with c = (N−1)/(N−2) and w = √(κ/(N−1)) P y the matrix under the root has the eigenvalues of
c(Λ − w wᵀ), and

    Δ = tr √(Λ − w wᵀ) − tr √Λ = (1/π) ∫₀^∞ log(1 − Σ_p w_p²/(λ_p + τ²)) dτ,
    FD' − FD = |y|²/(N−1)² + 2(μ_other − μ)·y/(N−1) + (tr Σ − κ|y|²)/(N−2) − 2(√c Δ + (√c − 1) tr √Λ).

This is the change of swap/engine.py for one row removed and none added.  The special case is cheaper: each row costs
its projection, 2 d r flops, and the nodes cost almost nothing.

Accuracy.  Λ is shifted by s = SHIFT·λ_max, and eigenvalues below s are left out.  √(x + s) − √x is monotone with values
in (0, √s], and eigenvalues interlace, so each of the two changes Δ by at most √s.  With the error of the quadrature,
the error of a change of distance is below 2√c (2·10⁻⁷ + TOL) √λ_max for every spectrum, and far below it if Λ spans
fewer digits.  The error of the eigensolver, about 10⁻¹⁵ λ_max, is small beside s.

Legend: N rows, d feature dimension, r eigenvalues kept, Q nodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastfid.distances.frechet import Side, factored_pair, trace_of_roots, under_root
from fastfid.distances.moments import FeatureMoments
from fastfid.linalg.quadrature import node_count, sqrt_nodes
from fastfid.linalg.units import in_unit

SHIFT = 1e-14  # 10 times a symmetric eigensolver's error; √s = 1e-7, the jackknife's changes are about FD/N
TOL = 1e-8  # error of the quadrature relative to √λ_max, below that of the shift; 36 nodes
ROWS = 1024  # rows at a time: 32 MiB in float64 with their projections at d = 2048


class LeaveOneOut:
    """Changes of the Fréchet distance of sides a and b if one of their rows is left out.

    terms  `FrechetTerms` of the distance itself

    ValueError as for `frechet_distance`.
    """

    def __init__(self, a: Side, b: Side):
        pair = factored_pair(a, b)
        factored, other, self._unit = pair.factored, pair.other, pair.unit
        cov = in_unit(other.cov, pair.unit)
        eigenvalues, vectors = torch.linalg.eigh(under_root(pair.root, cov, pair.route), UPLO="L")
        self.terms = pair.terms(*trace_of_roots(eigenvalues))
        largest = eigenvalues[-1].item() if len(eigenvalues) else 0.0
        kept = eigenvalues > SHIFT * largest
        self._scale = largest if kept.any() else 1.0
        self._eigenvalues = eigenvalues[kept]
        of_other = pair.root.T @ vectors[:, kept]  # P_bᵀ
        of_factored = (cov @ of_other).div_(self._eigenvalues.sqrt())
        sides = (factored, of_factored, other), (other, of_other, factored)
        self._first, self._second = sides[::-1] if pair.swapped else sides

    def without_first(self, features: Tensor) -> Tensor:
        """Changes float64 [N] without each row of side a's features [N, d], N ≥ 3, on the moments' device."""
        return self._changes(features, *self._first)

    def without_second(self, features: Tensor) -> Tensor:
        """The same for side b's."""
        return self._changes(features, *self._second)

    def _changes(self, features: Tensor, own: FeatureMoments, projection: Tensor, other: FeatureMoments) -> Tensor:
        n, kappa = len(features), len(features) / (len(features) - 1)
        nodes = node_count(TOL, SHIFT, 2.0)
        tau, omega = (torch.from_numpy(x).to(projection.device) for x in sqrt_nodes(nodes, SHIFT, 2.0))
        weights = 1 / ((self._eigenvalues / self._scale + SHIFT)[:, None] + tau.square())  # [r, Q], λ_max = 1
        projection = projection * math.sqrt(kappa / ((n - 1) * self._scale)) * self._unit
        gap = other.mean - own.mean
        found = []
        for rows in features.split(ROWS):
            y = rows.to(torch.float64) - own.mean
            lost = (y @ projection).square_() @ weights
            # If one row alone spans a direction, `lost` can round to 1.  Half an ε keeps the logarithm finite.
            root_change = torch.log1p(lost.neg_().clamp_(min=torch.finfo(torch.float64).eps / 2 - 1)) @ omega
            found.append(torch.stack([y.square().sum(dim=1), y @ gap, root_change]))
        squares, gaps, root_changes = torch.cat(found, dim=1)
        shrink = math.sqrt((n - 1) / (n - 2))  # √c
        roots = shrink * math.sqrt(self._scale) / math.pi * root_changes + (shrink - 1) * self._eigenvalues.sqrt().sum()
        roots = roots / self._unit / self._unit
        traces = (own.cov.trace() - kappa * squares) / (n - 2)
        changes: Tensor = squares / (n - 1) ** 2 + 2 * gaps / (n - 1) + traces - 2 * roots
        return changes
