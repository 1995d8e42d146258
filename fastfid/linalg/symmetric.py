"""Symmetric positive semidefinite matrices in float64: which deviations count as rounding, for every distance alike.

Legend: d dimension, ε = 2.2e-16, λ_max largest eigenvalue.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps

# --- limits ------------------------------------------------------------------------------------------------------
# Eigenvalues up to this part of the largest are taken for zero.  LAPACK returns the zero eigenvalues of a singular
# matrix as a few ε·λ_max: at most 5.2, measured at d = 64…1024 and ranks from 9 to d − 2.  Their roots, √ε ≈ 1.5e-8,
# would be far above the 1e-13 of the other terms of a distance.  Float64 does not resolve true eigenvalues this small,
# either.  Dropping r of them from under a root loses at most r·√(8ε)·√λ_max.
NOISE = 8 * EPS
# An eigenvalue below minus this part of the largest means that a matrix is no covariance: ValueError.  Products in
# float32 stay above −7e-8 (measured at the same sizes), which leaves room for coarser statistics.
INDEFINITE = 1e-4
# An asymmetry above this part of the largest entry means the same.  Products in float32 leave about √d·6e-8.  A
# smaller asymmetry is removed by taking (Σ + Σᵀ)/2.
ASYMMETRY = 1e-4
# Asymmetry up to this is rounding, and is left as it is: |(Σ − Σᵀ)x| in units of ε √Σ_ii Σ_j √Σ_jj |x_j|.  Measured for
# d = 3 … 4,096 and a spread of spectra: 1.2 at most.
ROUNDING = 8


def solver_noise(dim: int) -> float:
    """Error bound of a symmetric eigensolver, as a part of λ_max: the swap engine's limit for null directions.

    It is above NOISE: the engine keeps only directions that the solver resolves, because it projects rows on them.
    """
    return dim * EPS


def refuse_indefinite(eigenvalues: Tensor) -> None:
    """ValueError if the lowest of the eigenvalues [r] is below −INDEFINITE times the largest magnitude."""
    if len(eigenvalues) and eigenvalues.min() < -INDEFINITE * eigenvalues.abs().max():
        raise ValueError(
            f"a covariance has the eigenvalue {eigenvalues.min():.3g} beside {eigenvalues.max():.3g}: it is not "
            "positive semidefinite; recompute it from the features in float64"
        )


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part of [.., d, d] (a copy of the transpose is blocked; adding a strided view is far slower)."""
    return matrix.mT.clone(memory_format=torch.contiguous_format).add_(matrix).div_(2)


def is_asymmetric(matrix: Tensor) -> bool:
    """Whether some entry of the matrix [d, d] differs from its mirror image by more than ASYMMETRY allows."""
    return bool((matrix - matrix.mT).abs().max() > ASYMMETRY * matrix.abs().max())


def is_symmetric(cov: Tensor) -> bool:
    """Whether the covariance Σ [d, d] equals its transpose to ROUNDING, tested with one random vector x.

    (Σ − Σᵀ)x vanishes for no other Σ.  A covariance has |Σ_ij| ≤ √(Σ_ii Σ_jj), so row i of either product has an error
    of a few ε √Σ_ii Σ_j √Σ_jj |x_j|.  Two products take 4 ms at d = 2048; comparing every pair of entries takes 20 ms.
    """
    x = torch.randn(len(cov), generator=torch.Generator().manual_seed(0), dtype=cov.dtype).to(cov.device)
    deviations = cov.diagonal().clamp(min=0).sqrt()
    rounding = ROUNDING * EPS * deviations * (deviations @ x.abs())
    return bool(((cov @ x - cov.T @ x).abs() <= rounding).all())
