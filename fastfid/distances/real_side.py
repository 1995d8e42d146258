"""One side of a distance, checked and factored once for any number of distances and engines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.linalg.factors import factor_by_eigh, factor_covariance
from fastfid.linalg.symmetric import is_asymmetric, is_symmetric, solver_noise
from fastfid.linalg.units import in_unit
from fastfid.runtime.checked_arrays import load_checked, save_checked
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.hashes import moments_sha256


class HasMoments(Protocol):
    """Anything with a mean [d] and a covariance [d, d]; a `count` is taken into account."""

    @property
    def mean(self) -> object:
        """Mean [d], a tensor or an array."""

    @property
    def cov(self) -> object:
        """Covariance [d, d], a tensor or an array."""


LEAST_VARIANCE = 2.0**-1000  # 2²² times the least that float64 has all digits of: of the largest of a covariance

# (mean [d], cov [d, d]), tensors or arrays
Pair = tuple[object, object] | list[object]


@dataclass(frozen=True, eq=False)
class PreparedMoments:
    """Moments and the factor R of their covariance, for many distances to one set of real images; `prepare` makes it.

    moments  FeatureMoments, constants
    root     R [r, d] float64 with Σ = RᵀR
    route    "cholesky" or "eigh", how R was made (linalg/factors.py)
    clipped  number of negative eigenvalues that were left out
    """

    moments: FeatureMoments
    root: Tensor
    route: str
    clipped: int = 0

    @property
    def mean(self) -> Tensor:
        """Mean, float64 [d]."""
        return self.moments.mean

    @cached_property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(self.moments.cov.diagonal().sum().item())

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.moments.dim

    def in_unit(self, unit: float) -> PreparedMoments:
        """The same in another unit (linalg/units.py): means and the factor times t, the covariance times t²."""
        if unit == 1:
            return self
        cov = in_unit(self.moments.cov, unit)
        moments = FeatureMoments(self.moments.count, self.moments.mean * unit, cov, self.moments.provenance)
        return PreparedMoments(moments, self.root * unit, self.route, self.clipped)

    @property
    def rank(self) -> int:
        """Rank r of the covariance."""
        return len(self.root)


class RealFactor(PreparedMoments):
    """The real side of `SwapEngine`, factored once for any number of engines.

    `real` is FeatureMoments, another object with `mean` and `cov`, or a pair (mean [d], cov [d, d]).  R has orthogonal
    rows; directions that an eigensolver does not resolve are left out.

    ValueError for wrong shapes, values that are not finite, a count below 2, and a covariance that is not symmetric or
    clearly indefinite.
    """

    def __init__(self, real: HasMoments | Pair, device: torch.device | str | None = None):
        moments = _moved(checked_moments(real, "real"), device)
        root, route, clipped = factor_by_eigh(moments.cov, solver_noise(moments.dim))
        super().__init__(moments, root.contiguous(), route, clipped)

    @classmethod
    def of(cls, real: PreparedMoments | HasMoments | Pair, device: torch.device | str | None = None) -> PreparedMoments:
        """`real` itself if it is factored already, else its factor."""
        return real if isinstance(real, PreparedMoments) else cls(real, device)

    @classmethod
    def kept(
        cls, real: HasMoments | Pair, path: str | os.PathLike[str], device: torch.device | str | None = None
    ) -> RealFactor:
        """The factor of `real`, read from the file `path` (.npz), or made and written there.

        The file stores the SHA-256 of the moments and of its own arrays.  If one differs, or the file is damaged, the
        file is rewritten.
        """
        moments = _constants(_as_moments(real, "real"))
        digest = moments_sha256(moments.mean, moments.cov)
        held = load_checked(path, digest)
        if held is not None:
            return cls._from_arrays(held, _moved(moments, device))
        factor = cls(real, device)
        arrays = {"root": factor.root.cpu().numpy(), "clipped": np.array(factor.clipped)}
        save_checked(path, digest, arrays)
        return factor

    @classmethod
    def _from_arrays(cls, held: dict[str, npt.NDArray[Any]], moments: FeatureMoments) -> RealFactor:
        factor = cls.__new__(cls)
        root = torch.from_numpy(held["root"]).to(moments.mean.device)
        PreparedMoments.__init__(factor, moments, root, "eigh", int(held["clipped"]))
        return factor


def prepare(moments: HasMoments | Pair) -> PreparedMoments:
    """Factor one side once, FeatureMoments or (mean [d], cov [d, d]), for any number of `frechet_distance`s to it.

    ValueError as for `frechet_distance`, and for moments that require a gradient.
    """
    checked = checked_moments(moments, "prepared")
    if checked.mean.requires_grad or checked.cov.requires_grad:
        raise ValueError("the prepared moments require a gradient, which a cached factor cannot carry; detach() them")
    checked = _constants(checked)
    return PreparedMoments(checked, *factor_covariance(checked.cov, rank_bound(checked.count, checked.dim)))


def rank_bound(count: int | None, dim: int) -> int:
    """Largest rank of a covariance [d, d] of `count` rows: n rows span at most n − 1 directions about their mean."""
    return dim if count is None else min(dim, max(count - 1, 0))


# --- checks ------------------------------------------------------------------------------------------------------


def checked_moments(side: PreparedMoments | HasMoments | Pair, which: str) -> FeatureMoments:
    """Moments of a side that may enter a distance, float64, with gradient; `which` names the side in messages.

    A covariance that differs from its transpose by more than rounding is replaced by its symmetric part.  ValueError
    for fewer than two rows, values that are not finite, and a covariance beyond the limits of linalg/symmetric.py.
    """
    if isinstance(side, PreparedMoments):
        return side.moments
    moments = _as_moments(side, which)
    if moments.count is not None and moments.count < 2:
        raise ValueError(f"the {which} moments hold {moments.count} rows; a covariance needs at least 2")
    mean, cov = moments.mean.detach(), moments.cov.detach()
    if not (_all_finite(mean) and _all_finite(cov)):
        raise ValueError(f"the {which} moments hold NaN or infinity; check the features they came from")
    largest = cov.diagonal().abs().max().item()
    if 0 < largest < LEAST_VARIANCE:
        raise ValueError(
            f"the {which} variances are up to {largest:.3g}, which float64 resolves to a few digits; multiply the "
            "features by 1e100"
        )
    if is_symmetric(cov):
        return moments
    if is_asymmetric(cov):
        raise ValueError(
            f"the {which} covariance is not symmetric; pass Σ with ddof = 1, as FeatureMoments makes it, or (Σ + Σᵀ)/2"
        )
    return FeatureMoments(moments.count, moments.mean, (moments.cov + moments.cov.T) / 2, moments.provenance)


def _as_moments(side: HasMoments | Pair, which: str) -> FeatureMoments:
    """FeatureMoments of a side; ValueError for other types and shapes."""
    if isinstance(side, FeatureMoments):
        return side
    if isinstance(side, tuple | list) and len(side) == 2:
        count, (mean, cov) = None, side
    elif hasattr(side, "mean") and hasattr(side, "cov") and not isinstance(side, Tensor | np.ndarray):
        count, mean, cov = getattr(side, "count", None), side.mean, side.cov
    else:
        raise ValueError(
            f"the {which} moments are of type {type(side).__name__}; pass FeatureMoments.from_features(features) or a "
            "pair (mean, cov)"
        )
    mean, cov = as_tensor(mean, f"{which} mean"), as_tensor(cov, f"{which} covariance")
    if mean.device != cov.device:
        raise ValueError(f"the {which} mean is on {mean.device}, its covariance on {cov.device}; move one of them")
    if mean.ndim != 1 or mean.numel() == 0 or cov.shape != (mean.numel(), mean.numel()):
        raise ValueError(
            f"the {which} moments must be mean [d] and covariance [d, d], in this order; got {tuple(mean.shape)} and "
            f"{tuple(cov.shape)}"
        )
    return FeatureMoments(count, mean, cov)


def _constants(moments: FeatureMoments) -> FeatureMoments:
    """The same moments without gradient."""
    return FeatureMoments(moments.count, moments.mean.detach(), moments.cov.detach(), moments.provenance)


def _moved(moments: FeatureMoments, device: torch.device | str | None) -> FeatureMoments:
    """The same moments without gradient, on `device` unless that is None."""
    moments = _constants(moments)
    return moments if device is None else moments.to(device)


def _all_finite(x: Tensor) -> bool:
    """Whether all values are finite.  A finite sum has finite terms, and is ten times as fast; it may overflow."""
    return bool(torch.isfinite(x.sum()) or torch.isfinite(x).all())
