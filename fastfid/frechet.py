"""Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017), in its three terms.

    FD = |μ_a − μ_b|² + tr Σ_a + tr Σ_b − 2 tr √(R Σ_b Rᵀ),    Σ_a = Rᵀ R

R = diag(√w) Vᵀ comes from the eigenvectors V and eigenvalues w of one side with its null directions dropped, so the
matrix under the root is symmetric, no larger than that side's rank, and its eigenvalues are real: no general matrix
root, no imaginary part to discard and no constant added to a diagonal.

Gradient (the transport map between the Gaussians; Olkin & Pukelsheim 1982), with M = R Σ_b Rᵀ:
    ∂ tr√M / ∂Σ_b = ½ Rᵀ M^{-1/2} R,      ∂ tr√M / ∂Σ_a = ½ R⁺ M^{1/2} R⁺ᵀ,   R⁺ = V diag(1/√w).

Legend: d feature dimension, r rank of the factored side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastfid.moments import FeatureMoments, check_same_features

EPS = torch.finfo(torch.float64).eps
# An eigenvalue of a singular matrix comes out of LAPACK as a few ε·λ_max instead of 0: at most 5.2 ε λ_max measured at
# d = 64…1024 and ranks from 9 to d − 2.  Its root, √ε ≈ 1.5e-8, would be far above the 1e-13 of the other terms, so it
# is taken for zero.  A true eigenvalue that small is not resolved by float64 either; dropping r of them from under the
# root loses at most r·√(8ε)·√λ_max.
NOISE = 8 * EPS
# More negative than this part of the largest eigenvalue is no rounding: products in float32 stay above −7e-8
# (measured at the same sizes), which leaves room for coarser statistics.
INDEFINITE = 1e-4


@dataclass(frozen=True)
class FrechetTerms:
    """FD = mean_term + trace_term − root_term, each a float (0-d tensor where gradients are asked for).

    mean_term      |μ_a − μ_b|²
    trace_term     tr Σ_a + tr Σ_b
    root_term      2 tr √(Σ_a Σ_b)
    total          the distance; below zero only by rounding
    clipped        how many eigenvalues under the root came out negative and were taken for 0
    most_negative  the lowest of them, 0.0 if none
    rank           r, directions of the factored side that were kept
    """

    mean_term: float | Tensor
    trace_term: float | Tensor
    root_term: float | Tensor
    clipped: int
    most_negative: float
    rank: int

    @property
    def total(self) -> float | Tensor:
        """The Fréchet distance."""
        return self.mean_term + self.trace_term - self.root_term


def frechet_distance(a: FeatureMoments | tuple, b: FeatureMoments | tuple) -> float | Tensor:
    """Fréchet distance of two FeatureMoments or (mean [d], cov [d, d]) pairs, computed in float64.

    A float; a 0-d float64 tensor with gradient if any tensor given requires one.  ValueError for shapes that differ,
    values that are not finite, or a covariance that is not symmetric or clearly indefinite.
    """
    return frechet_terms(a, b).total


def frechet_terms(a: FeatureMoments | tuple, b: FeatureMoments | tuple) -> FrechetTerms:
    """The three terms of `frechet_distance` and what was clipped under the root."""
    a, b = _as_moments(a, "first"), _as_moments(b, "second")
    check_same_features(a, b)
    factored, other = _choose_factored(a, b)
    root, clipped, most_negative, rank = _TraceRoot.apply(factored.cov, other.cov, factored.count)
    difference = a.mean - b.mean
    terms = difference @ difference, torch.trace(a.cov) + torch.trace(b.cov), 2 * root
    if not any(term.requires_grad for term in terms):
        terms = tuple(term.item() for term in terms)
    return FrechetTerms(*terms, clipped, most_negative, rank)


def _choose_factored(a: FeatureMoments, b: FeatureMoments) -> tuple[FeatureMoments, FeatureMoments]:
    """Factor a constant side if only the other is differentiated; else the one whose count bounds its rank lower."""
    if a.cov.requires_grad != b.cov.requires_grad:
        return (b, a) if a.cov.requires_grad else (a, b)
    return (b, a) if _rank_bound(b.count, b.dim) < _rank_bound(a.count, a.dim) else (a, b)


def _rank_bound(count: int | None, dim: int) -> int:
    """n rows span at most n − 1 directions about their mean."""
    return dim if count is None else min(dim, max(count - 1, 0))


class _TraceRoot(torch.autograd.Function):
    """tr √(R Σ_other Rᵀ) with Σ_factored = RᵀR; returns root, clipped count, most negative eigenvalue, rank."""

    @staticmethod
    def forward(ctx, cov_factored: Tensor, cov_other: Tensor, count: int | None):
        factor, pseudo_inverse = _factor(cov_factored, count)
        under_root = _symmetric(factor @ _symmetric(cov_other) @ factor.T)
        differentiate = any(ctx.needs_input_grad)
        if differentiate:
            eigenvalues, vectors = torch.linalg.eigh(under_root)
        else:
            eigenvalues, vectors = torch.linalg.eigvalsh(under_root), None
        _refuse_indefinite(eigenvalues)
        kept = eigenvalues > NOISE * eigenvalues.max() if len(eigenvalues) else eigenvalues > 0
        roots = eigenvalues[kept].sqrt()
        if differentiate:
            ctx.save_for_backward(factor, pseudo_inverse, roots, vectors[:, kept])
        negative = eigenvalues[eigenvalues < 0]
        most_negative = negative.min().item() if len(negative) else 0.0
        return roots.sum(), len(negative), most_negative, len(factor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, *_):
        factor, pseudo_inverse, roots, vectors = ctx.saved_tensors
        grad_factored = grad_other = None
        if ctx.needs_input_grad[0]:  # ½ R⁺ M^{1/2} R⁺ᵀ
            half = pseudo_inverse @ (vectors * roots.sqrt())
            grad_factored = 0.5 * grad * (half @ half.T)
        if ctx.needs_input_grad[1]:  # ½ Rᵀ M^{-1/2} R
            half = factor.T @ (vectors / roots.sqrt())
            grad_other = 0.5 * grad * (half @ half.T)
        return grad_factored, grad_other, None


def _factor(cov: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """R [r, d] and R⁺ [d, r] of cov = RᵀR, without directions that are null by the count or below rounding noise."""
    weights, directions = torch.linalg.eigh(_symmetric(cov))  # ascending
    _refuse_indefinite(weights)
    kept = weights > NOISE * weights[-1]
    kept[: len(weights) - _rank_bound(count, len(weights))] = False
    scale, directions = weights[kept].sqrt(), directions[:, kept]
    return (directions * scale).T, directions / scale


def _refuse_indefinite(eigenvalues: Tensor) -> None:
    if len(eigenvalues) and eigenvalues.min() < -INDEFINITE * eigenvalues.abs().max():
        raise ValueError(
            f"a covariance has the eigenvalue {eigenvalues.min():.3g} beside {eigenvalues.max():.3g}: it is not "
            "positive semidefinite; recompute it from the features in float64"
        )


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _as_moments(side: FeatureMoments | tuple, which: str) -> FeatureMoments:
    moments = side if isinstance(side, FeatureMoments) else FeatureMoments(None, *side)
    if moments.count is not None and moments.count < 2:
        raise ValueError(f"the {which} moments hold {moments.count} rows; a covariance needs at least 2")
    mean, cov = moments.mean.detach(), moments.cov.detach()
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError(f"the {which} moments hold NaN or infinity; check the features they came from")
    # float32 products leave an asymmetry of about √n·6e-8 of the largest entry; 1e-4 is a different matrix.
    if (cov - cov.T).abs().max() > 1e-4 * cov.abs().max():
        raise ValueError(f"the {which} covariance is not symmetric; pass Σ with ddof = 1, as FeatureMoments makes it")
    return moments
