"""Symmetric matrices that should be positive semidefinite: their factor, and what counts as rounding."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
# An eigenvalue of a singular matrix comes out of LAPACK as a few ε·λ_max instead of 0: at most 5.2 ε λ_max measured at
# d = 64…1024 and ranks from 9 to d − 2.  Its root, √ε ≈ 1.5e-8, would be far above the 1e-13 of the other terms, so it
# is taken for zero.  A true eigenvalue that small is not resolved by float64 either; dropping r of them from under the
# root loses at most r·√(8ε)·√λ_max.
NOISE = 8 * EPS
# More negative than this part of the largest eigenvalue is no rounding: products in float32 stay above −7e-8
# (measured at the same sizes), which leaves room for coarser statistics.
INDEFINITE = 1e-4
# float32 products leave an asymmetry of about √n·6e-8 of the largest entry; 1e-4 is a different matrix.
ASYMMETRY = 1e-4


def symmetric_factor(cov: Tensor, rank: int | None = None) -> Tensor:
    """R [r, d] of cov = RᵀR [d, d] float64, rows orthogonal, without directions below rounding noise or past `rank`."""
    weights, directions = torch.linalg.eigh(symmetric(cov))  # ascending
    refuse_indefinite(weights)
    kept = weights > NOISE * weights[-1]
    if rank is not None:
        kept[: len(weights) - rank] = False
    return (directions[:, kept] * weights[kept].sqrt()).T


def refuse_indefinite(eigenvalues: Tensor) -> None:
    """ValueError if an eigenvalue of [r] is too negative, beside the largest, to be rounding."""
    if len(eigenvalues) and eigenvalues.min() < -INDEFINITE * eigenvalues.abs().max():
        raise ValueError(
            f"a covariance has the eigenvalue {eigenvalues.min():.3g} beside {eigenvalues.max():.3g}: it is not "
            "positive semidefinite; recompute it from the features in float64"
        )


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part of [.., d, d] (a copy of the transpose is blocked; adding a strided view is far slower)."""
    return matrix.mT.contiguous().add_(matrix).div_(2)
