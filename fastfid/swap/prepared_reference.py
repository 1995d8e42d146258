"""Equation 1: a reference set prepared once for any number of swaps.

Real moments (μ_r, Σ_r) and a reference set X of N samples with moments (μ_g, Σ_g).  With any R of RᵀR = Σ_r, one
eigendecomposition R Σ_g Rᵀ = U Λ Uᵀ gives the projection P = Uᵀ R and the distance

    FD = |μ_r − μ_g|² + tr Σ_r + tr Σ_g − 2 tr √Λ.                                                             (1)

Numbers are kept in units of the largest eigenvalue: `spectrum` is Λ/scale, and the projected row of a centred row
y = x − μ_g is w = P y/√((N−1)·scale).

Legend: N reference samples, d features, r rank of Σ_r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.distances.real_side import PreparedMoments
from fastfid.linalg.eigensolver import eigh, right_singular

# Λ counts as singular below this share of λ_max: a symmetric eigensolver's absolute error, some 1e-16·λ_max, would then
# exceed 1e-5 of the eigenvalue.  Such references get a singular value decomposition and float64 throughout.
SINGULAR = 1e-11


@dataclass(frozen=True, eq=False)
class PreparedReference:
    """A reference set with all that equations 2 to 4 need of it; made by `prepare_reference`, never changed.

    features     [N, d] in the dtype they came in
    rows         [N, d] the same in float32 or float64
    mean         μ_g [d] float64
    gap          μ_r − μ_g [d] float64
    trace        tr Σ_g
    distance     Fréchet distance of the set (equation 1)
    scale        largest eigenvalue of R Σ_g Rᵀ; 1.0 where all are zero
    spectrum     Λ/scale [r] float64
    lambda_min   smallest entry of `spectrum`, 0.0 if r = 0
    lambda_max   largest entry of `spectrum`, 1.0 or 0.0
    root_trace   tr √Λ, in units of features
    clipped      eigenvalues that are zero or were rounding noise
    projections  {dtype: [d, r]} for float64 and the engine's dtype: w = y @ projections[dtype]
    projected    [N, r] projected reference rows, in the engine's dtype or float64 for a singular spectrum
    """

    features: Tensor
    rows: Tensor
    mean: Tensor
    gap: Tensor
    trace: float
    distance: float
    scale: float
    spectrum: Tensor
    lambda_min: float
    lambda_max: float
    root_trace: float
    clipped: int
    projections: Mapping[torch.dtype, Tensor]
    projected: Tensor

    @property
    def count(self) -> int:
        """Number N of reference samples."""
        return self.features.shape[0]

    @property
    def dim(self) -> int:
        """Number d of features."""
        return self.features.shape[1]

    @property
    def rank(self) -> int:
        """Rank r of the real covariance."""
        return self.spectrum.numel()

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.mean.device

    @property
    def resolved(self) -> bool:
        """Whether every eigenvalue of Λ is known to some digits."""
        return self.lambda_min > SINGULAR

    def is_exhausted_by(self, removed: int) -> bool:
        """Whether a removal of this many rows alone must empty a direction: too few rows are left to span r."""
        return self.count - 1 - removed < self.rank

    def is_singular(self, removed: int) -> bool:
        """Whether Λ has lost a direction, or the removal of this many rows must."""
        return not self.resolved or self.is_exhausted_by(removed)


@torch.no_grad()
def prepare_reference(
    real: PreparedMoments, features: Tensor, dtype: torch.dtype, chunk_bytes: int, eigensolver: str = "device"
) -> PreparedReference:
    """Eigenbasis, projected rows and distance of the reference features [N, d], N ≥ 2 (equation 1).

    dtype        torch.float32 or torch.float64, of the projected rows
    chunk_bytes  temporary memory while rows are projected
    eigensolver  one of EIGENSOLVERS of linalg/eigensolver.py
    """
    moments = FeatureMoments.from_features(features)
    trace, gap = moments.cov.trace().item(), real.mean - moments.mean
    spectrum, basis, clipped = _eigenbasis(real.root, moments, features, eigensolver)
    scale = spectrum.max().item() if spectrum.numel() and spectrum.max() > 0 else 1.0
    spectrum = (spectrum / scale).contiguous()
    lambda_min, lambda_max = (x.item() for x in spectrum.aminmax()) if spectrum.numel() else (0.0, 0.0)
    root_trace = math.sqrt(scale) * spectrum.sqrt().sum().item()
    projection = (real.root.T @ basis).div_(math.sqrt((len(features) - 1) * scale))
    projections = {torch.float64: projection, dtype: projection.to(dtype)}
    chosen = projections[dtype if lambda_min >= SINGULAR else torch.float64]
    projected = _project_reference(features, moments.mean, chosen, chunk_bytes)
    require_finite(projected)
    if clipped:  # exactly zero along directions that the reference has lost
        projected.mul_((spectrum > 0).to(projected.dtype))
    return PreparedReference(
        features=features,
        rows=features if features.dtype in (torch.float32, torch.float64) else features.float(),
        mean=moments.mean,
        gap=gap,
        trace=trace,
        distance=gap.square().sum().item() + real.trace + trace - 2 * root_trace,
        scale=scale,
        spectrum=spectrum,
        lambda_min=lambda_min,
        lambda_max=lambda_max,
        root_trace=root_trace,
        clipped=clipped,
        projections=projections,
        projected=projected,
    )


def require_finite(values: Tensor) -> None:
    """ValueError where products of both sides are not finite: one has features far larger than the other's."""
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise ValueError(
            f"the scales of reference_features and of the real features differ by more than {values.dtype} holds; are "
            "both of one network?"
        )


def _eigenbasis(
    root: Tensor, moments: FeatureMoments, features: Tensor, eigensolver: str
) -> tuple[Tensor, Tensor, int]:
    """λ [r] ≥ 0 and U [r, r] of R Σ_g Rᵀ, and how many λ are zero; from the rows themselves where it is singular."""
    if len(features) - 1 >= root.shape[0]:
        product = root @ moments.cov @ root.T
        require_finite(product)
        spectrum, basis = eigh(product, eigensolver)
        if spectrum.numel() == 0 or spectrum[0] > SINGULAR * spectrum[-1]:
            return spectrum, basis, 0
    return _singular_basis(features, moments.mean, root.T / math.sqrt(len(features) - 1), eigensolver)


def _singular_basis(features: Tensor, mean: Tensor, weights: Tensor, eigensolver: str) -> tuple[Tensor, Tensor, int]:
    """The same from Z = (X − μ_g) Rᵀ/√(N−1) = V √Λ Uᵀ by singular values, whose small ones keep their digits.

    `weights` is Rᵀ/√(N−1) [d, r].  Z has the singular values of its QR triangle, which is built from blocks of rows.
    """
    triangle = weights.new_zeros(0, weights.shape[1])
    for rows in features.split(max(1024, 2 * weights.shape[1])):
        block = (rows.to(torch.float64) - mean) @ weights
        triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
    require_finite(triangle)
    values, basis_t = right_singular(triangle, eigensolver)
    largest = values.max() if values.numel() else values.new_zeros(())
    noise = max(len(features), len(basis_t)) * torch.finfo(torch.float64).eps * largest
    spectrum = triangle.new_zeros(triangle.shape[1])
    spectrum[: values.numel()] = torch.where(values > noise, values, 0.0).square()
    return spectrum, basis_t.T, int((spectrum == 0).sum())


def _project_reference(features: Tensor, mean: Tensor, projection: Tensor, chunk_bytes: int) -> Tensor:
    """Projected reference rows [N, r] in the dtype of the projection [d, r]."""
    count, dim = features.shape
    projected = projection.new_empty(count, projection.shape[1])
    step = max(1, chunk_bytes // (16 * dim))  # float64 rows and their copy in the projection's dtype
    for rows, out in zip(features.split(step), projected.split(step), strict=True):
        torch.mm((rows.to(torch.float64) - mean).to(projection.dtype), projection, out=out)
    return projected


def replaced_rows(features: Tensor, removed: Tensor, added: Tensor) -> Tensor:
    """Features [N, d] after one swap, removed [m_r] int64 for added [m_a, d], as `SwapEngine.replace` orders them."""
    added = added.to(features.dtype)
    both = min(len(removed), len(added))
    rows = features.clone()
    rows[removed[:both]] = added[:both]
    kept = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    kept[removed[both:]] = False
    return torch.cat([rows[kept], added[both:]])
