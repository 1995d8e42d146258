"""Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017), in its three terms.

    FD = |μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2 tr √(R Σ_b Rᵀ),    Σ_a = Rᵀ R

The matrix M = R Σ_b Rᵀ under the root is symmetric, so its eigenvalues are real: no general matrix root, no imaginary
part to discard and no constant added to a diagonal.  R is computed in one of two ways:

"cholesky"  R = Lᵀ of Σ_a = L Lᵀ, where Σ_a is regular: d³/3 flops and, for the triangles in M = Lᵀ Σ_b L, d³.
            Features that never vary are left out first, such as dead channels (EfficientNet-Lite0 has one).
"eigh"      R = diag(√w) Vᵀ from the eigenvectors V and eigenvalues w of Σ_a, without its null directions.  M is then
            no larger than the rank r of Σ_a.  Used if the count bounds the rank below d, or Σ_a is singular in
            float64.

tr √M comes from the eigenvalues of M or from log-determinants (fastfid/linalg/banded_trace.py).  The latter are used
for a large M on the CPU that comes from Cholesky and is positive definite in float64.

Accuracy, relative to tr Σ_a + tr Σ_b, measured at d = 300 against the singular values of the rows.  If one side has
κ ≤ 1e4 and the other any κ up to 1e12, the error is at most 7e-14 with "cholesky" and 7e-12 with "eigh".  If κ(M)
exceeds 1/(8ε) = 6e14, both lose the roots that they take for zero, 4e-8 (NOISE in linalg/symmetric.py).  At d = 2048
with N = 5,000 and 6,000 the two differ by 2e-13 for variances 1/i (κ = 9e3) and by 2e-9 for 1/i² (κ = 1e7).

Speed, measured at d = 2048 with one thread: Cholesky 0.2 s, M 0.25 s, tr √M 0.6 s by log-determinants or 0.8–1.0 s by
torch's eigenvalues; the eigh of the other route takes 3.2 s.  Log-determinants of M itself would take a Cholesky
factorisation for each of 40 nodes; those of a band matrix with the same eigenvalues take 0.03 s together.

Gradient (the transport map between the Gaussians; Olkin & Pukelsheim 1982), for either R:
    ∂ tr√M / ∂Σ_b = ½ Rᵀ M^{-1/2} R,      ∂ tr√M / ∂Σ_a = ½ R⁺ M^{1/2} R⁺ᵀ,   R⁺ = L⁻ᵀ or V diag(1/√w).

Legend: d feature dimension, r rank of the factored side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastfid.distances.moments import FeatureMoments, check_same_features
from fastfid.distances.real_side import HasMoments, Pair, PreparedMoments, checked_moments, rank_bound
from fastfid.linalg import banded_trace
from fastfid.linalg.factors import factor_covariance, pseudo_inverse_times, varying_columns
from fastfid.linalg.symmetric import NOISE, refuse_indefinite
from fastfid.linalg.units import in_unit, unit_of

# Columns of M = Lᵀ Σ L computed at a time.  Measured at d = 2048: 0.28, 0.25 and 0.29 s with 128, 256 and 512; two
# full products take 0.67 s and LAPACK's dsygst 0.32 s.
COLUMNS = 256


@dataclass(frozen=True)
class FrechetTerms:
    """FD = mean_term + trace_term − root_term, each a float (0-d tensor where gradients are asked for).

    mean_term      |μ_a − μ_b|²
    trace_term     tr Σ_a + tr Σ_b
    root_term      2 tr √(Σ_a Σ_b)
    total          the distance; below zero only by rounding
    clipped        number of negative eigenvalues under the root, which were replaced by 0
    most_negative  the lowest of them, 0.0 if none
    rank           r, number of directions kept of the factored side
    route          "cholesky" or "eigh", how that side was factored (this module's docstring)
    root_by        "log-determinants" or "eigenvalues", the source of tr √M
    """

    mean_term: float | Tensor
    trace_term: float | Tensor
    root_term: float | Tensor
    clipped: int
    most_negative: float
    rank: int
    route: str
    root_by: str = "eigenvalues"

    @property
    def total(self) -> float | Tensor:
        """The Fréchet distance."""
        return self.mean_term + self.trace_term - self.root_term


Side = PreparedMoments | HasMoments | Pair


def frechet_distance(a: Side, b: Side) -> float | Tensor:
    """Fréchet distance of two FeatureMoments, (mean [d], cov [d, d]) pairs or `prepare`d sides, computed in float64.

    A float; a 0-d float64 tensor with gradient if any tensor given requires one.  ValueError for shapes that differ,
    values that are not finite, or a covariance that is not symmetric or clearly indefinite.
    """
    return frechet_terms(a, b).total


def frechet_terms(a: Side, b: Side) -> FrechetTerms:
    """The three terms of `frechet_distance` with the clipped eigenvalues and the route."""
    pair = factored_pair(a, b)
    covs = (in_unit(side.cov, pair.unit) for side in (pair.factored, pair.other))
    return pair.terms(*_TraceRoot.apply(*covs, pair.root, pair.route))


@dataclass(frozen=True)
class FactoredPair:
    """Two sides, one of them factored: t²Σ_factored = RᵀR, R = `root` by `route`; `swapped` if that is the second.

    t is `unit` (linalg/units.py).  It is 1 unless R Σ Rᵀ would leave the range of float64.
    """

    factored: FeatureMoments
    other: FeatureMoments
    root: Tensor
    route: str
    swapped: bool
    unit: float

    def terms(self, trace: Tensor, clipped: int, most_negative: float, root_by: str = "eigenvalues") -> FrechetTerms:
        """The terms from the results of `trace_of_roots` for R t²Σ Rᵀ."""
        a, b = self.factored, self.other
        if self.unit != 1:
            trace = trace / self.unit / self.unit
            most_negative = most_negative / self.unit**2 / self.unit**2
        difference = a.mean - b.mean
        tensors = difference @ difference, torch.trace(a.cov) + torch.trace(b.cov), 2 * trace
        differentiable = any(term.requires_grad for term in tensors)
        mean_term, trace_term, root_term = tensors if differentiable else [term.item() for term in tensors]
        return FrechetTerms(
            mean_term, trace_term, root_term, clipped, most_negative, len(self.root), self.route, root_by
        )


def factored_pair(a: Side, b: Side) -> FactoredPair:
    """Both sides, checked, with the better one of them factored; ValueError as for `frechet_distance`."""
    prepared = [side for side in (a, b) if isinstance(side, PreparedMoments)]
    a, b = checked_moments(a, "first"), checked_moments(b, "second")
    check_same_features(a, b)
    factored, other = _choose_factored(a, b, [side.moments for side in prepared])
    ready = next(((side.root, side.route) for side in prepared if side.moments is factored), None)
    if ready is None:
        root, route, _ = factor_covariance(factored.cov.detach(), rank_bound(factored.count, factored.dim))
    else:
        root, route = ready
    unit = unit_of(factored.cov, other.cov)
    return FactoredPair(factored, other, root if unit == 1 else root * unit, route, factored is not a, unit)


def _choose_factored(
    a: FeatureMoments, b: FeatureMoments, prepared: list[FeatureMoments]
) -> tuple[FeatureMoments, FeatureMoments]:
    """Which side to factor, first.

    A constant side if only the other one is differentiated.  Else the side whose count gives the lower bound of its
    rank, because that keeps noise out of the root.  Else a side that is factored already.
    """
    if a.cov.requires_grad != b.cov.requires_grad:
        return (b, a) if a.cov.requires_grad else (a, b)
    bounds = [rank_bound(side.count, side.dim) for side in (a, b)]
    if bounds[0] != bounds[1]:
        return (b, a) if bounds[1] < bounds[0] else (a, b)
    return (b, a) if any(side is b for side in prepared) and not any(side is a for side in prepared) else (a, b)


def trace_of_roots(eigenvalues: Tensor) -> tuple[Tensor, int, float]:
    """Σ √λ over the eigenvalues [r] of M above the noise, the number of negative ones, and the lowest of these or 0.0.

    ValueError if one is more negative than rounding explains.
    """
    refuse_indefinite(eigenvalues)
    negative = eigenvalues[eigenvalues < 0]
    most_negative = negative.min().item() if len(negative) else 0.0
    return eigenvalues[_resolved(eigenvalues)].sqrt().sum(), len(negative), most_negative


def _trace_of_root(matrix: Tensor, route: str) -> tuple[Tensor, int, float, str]:
    """As `_TraceRoot`, from the lower triangle of M [r, r], which is overwritten."""
    if route == "cholesky" and banded_trace.suits(matrix):
        band = banded_trace.reduce_to_band(matrix.T)
        trace = banded_trace.trace_of_root(band, NOISE)
        if trace is not None:
            return torch.tensor(trace, dtype=torch.float64), 0, 0.0, "log-determinants"
        matrix = band.dense.T
    return *trace_of_roots(torch.linalg.eigvalsh(matrix, UPLO="L")), "eigenvalues"


def _resolved(eigenvalues: Tensor) -> Tensor:
    return eigenvalues > NOISE * eigenvalues.max() if len(eigenvalues) else eigenvalues > 0


class _TraceRoot(torch.autograd.Function):
    """tr √(R Σ_other Rᵀ) with Σ_factored = RᵀR; returns what `trace_of_roots` does and FrechetTerms' `root_by`."""

    @staticmethod
    def forward(
        ctx: Any, cov_factored: Tensor, cov_other: Tensor, root: Tensor, route: str
    ) -> tuple[Tensor, int, float, str]:
        matrix = under_root(root, cov_other, route)
        if not any(ctx.needs_input_grad):
            return _trace_of_root(matrix, route)
        eigenvalues, vectors = torch.linalg.eigh(matrix, UPLO="L")
        kept = _resolved(eigenvalues)
        ctx.save_for_backward(root, eigenvalues[kept].sqrt(), vectors[:, kept])
        ctx.route = route
        return *trace_of_roots(eigenvalues), "eigenvalues"

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        root, roots, vectors = ctx.saved_tensors
        grad_factored = grad_other = None
        if ctx.needs_input_grad[0]:  # ½ R⁺ M^{1/2} R⁺ᵀ
            half = pseudo_inverse_times(root, vectors * roots.sqrt(), ctx.route)
            grad_factored = 0.5 * grad * (half @ half.T)
        if ctx.needs_input_grad[1]:  # ½ Rᵀ M^{-1/2} R
            half = root.T @ (vectors / roots.sqrt())
            grad_other = 0.5 * grad * (half @ half.T)
        return grad_factored, grad_other, None, None


def under_root(root: Tensor, cov: Tensor, route: str) -> Tensor:
    """The lower triangle of M = R Σ Rᵀ [r, r]; the upper one is undefined.

    For R = Lᵀ the block I, J of M, i ≥ j, is L[i:, I]ᵀ (Σ[j:, j:] L[j:, J])[i:]: d³ flops, not 4d³.
    """
    if route != "cholesky":
        return root @ cov @ root.T
    if root.shape[0] < root.shape[1]:
        varies = varying_columns(root)
        root, cov = root[:, varies], cov[varies][:, varies]
    dim, product = len(cov), cov.new_zeros(cov.shape).T  # column by column, as LAPACK wants it
    for j in range(0, dim, COLUMNS):
        columns = cov[j:, j:] @ root.T[j:, j : j + COLUMNS]
        for i in range(j, dim, COLUMNS):
            product[i : i + COLUMNS, j : j + COLUMNS] = root[i : i + COLUMNS, i:] @ columns[i - j :]
    return product
