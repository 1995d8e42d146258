"""R with RᵀR = Σ, for a covariance Σ [d, d] in float64.

"cholesky"  R = Lᵀ of Σ = L Lᵀ, for a regular Σ: d³/3 flops.  Features that never vary, such as dead channels of a
            network, become columns of zeros.
"eigh"      R = diag(√w) Vᵀ from the eigenvalues w and eigenvectors V of Σ.  Directions whose eigenvalue is noise are
            left out, so R has as many rows as Σ has rank.

Legend: d feature dimension, r rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastfid.linalg.symmetric import EPS, NOISE, refuse_indefinite, symmetric
from fastfid.linalg.units import in_unit, unit_of

# Vectors and steps of the inverse iteration for a covariance's smallest eigenvalue.  An eigenvalue that stands apart,
# as that of a singular matrix, is found exactly.  In the dense spectra of features the estimate is at most 1.2 times
# too large (measured at d = 300 and 2048).
PROBES, PROBE_STEPS = 4, 4


class Factor(NamedTuple):
    """R [r, d] with RᵀR = Σ, the route to it, and the number of negative eigenvalues that were left out."""

    root: Tensor
    route: str
    clipped: int


def factor_covariance(cov: Tensor, rank: int) -> Factor:
    """The factor of Σ [d, d] whose rank is at most `rank`: by Cholesky if Σ is regular in float64, else by eigh."""
    unit = unit_of(cov)
    if unit != 1:
        factor = factor_covariance(in_unit(cov, unit), rank)
        return factor._replace(root=factor.root / unit)
    root = _root_of_varying(cov) if rank == len(cov) else None
    return factor_by_eigh(symmetric(cov), NOISE, rank) if root is None else Factor(root, "cholesky", 0)


def factor_by_eigh(cov: Tensor, noise: float, rank: int | None = None) -> Factor:
    """The factor of Σ [d, d] from its lower triangle, with orthogonal rows.

    noise  eigenvalues up to this part of the largest are left out
    rank   as are all but the `rank` largest

    ValueError for a Σ that is clearly indefinite.
    """
    unit = unit_of(cov)
    if unit != 1:
        factor = factor_by_eigh(in_unit(cov, unit), noise, rank)
        return factor._replace(root=factor.root / unit)
    weights, directions = torch.linalg.eigh(cov)  # ascending
    refuse_indefinite(weights)
    kept = weights > noise * weights[-1].clamp(min=0)
    if rank is not None:
        kept[: len(weights) - rank] = False
    return Factor((directions[:, kept] * weights[kept].sqrt()).T, "eigh", int((weights < 0).sum()))


def pseudo_inverse_times(root: Tensor, x: Tensor, route: str) -> Tensor:
    """R⁺ x [d, m], for R [r, d] and x [r, m]: R⁺ = L⁻ᵀ by substitution, or Rᵀ diag(1/|R_i|²) for orthogonal rows."""
    if route == "cholesky":
        varies = varying_columns(root)
        solved: Tensor = torch.linalg.solve_triangular(root[:, varies], x, upper=True)
        return solved.new_zeros(root.shape[1], x.shape[1]).index_copy_(0, varies, solved)
    scaled: Tensor = x / root.square().sum(dim=1, keepdim=True)
    return root.T @ scaled


def varying_columns(root: Tensor) -> Tensor:
    """Columns int64 [r] of Cholesky's R [r, d] that are not zero; the diagonal of a factor has no zeros."""
    return root.any(dim=0).nonzero()[:, 0]


def _root_of_varying(cov: Tensor) -> Tensor | None:
    """`cholesky_root` of the features with a variance, with columns of zeros for the others, or None."""
    varies = cov.diagonal() != 0
    if varies.all():
        return cholesky_root(cov)
    if not varies.any() or cov[~varies].any():  # nothing to factor, or not a covariance
        return None
    root = cholesky_root(cov[varies][:, varies])
    return None if root is None else root.new_zeros(len(root), len(cov)).index_copy_(1, varies.nonzero()[:, 0], root)


def cholesky_root(cov: Tensor) -> Tensor | None:
    """Lᵀ of cov = L Lᵀ, or None if cov is singular in float64.

    L is the exact factor of a matrix within d·ε·λ_max of cov (Higham, Accuracy and Stability of Numerical Algorithms,
    2002, theorem 10.3), so smaller eigenvalues are not resolved.  The Frobenius norm stands for λ_max.
    """
    lower, failed = torch.linalg.cholesky_ex(cov)
    regular = not failed and _smallest_eigenvalue(lower) > len(cov) * EPS * torch.linalg.matrix_norm(cov)
    return lower.T if regular else None


def _smallest_eigenvalue(lower: Tensor) -> Tensor:
    """Upper estimate of the smallest eigenvalue of L Lᵀ [d, d], by inverse iteration from fixed random vectors."""
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(len(lower), PROBES, generator=generator, dtype=lower.dtype).to(lower.device)
    for _ in range(PROBE_STEPS):  # x ← Σ⁻¹ x/|x|
        probes = probes / torch.linalg.vector_norm(probes, dim=0)
        probes = torch.linalg.solve_triangular(lower, probes, upper=False)
        probes = torch.linalg.solve_triangular(lower.T, probes, upper=True)
    largest: Tensor = torch.linalg.vector_norm(probes, dim=0).max()
    return 1 / largest
