"""The real side of a distance, factored once: mean, trace and R with RᵀR = Σ_r."""

import zipfile

import numpy as np
import torch

from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.hashes import moments_sha256

# Covariances may differ from their transpose by float32 accumulation error, not by more.
SYMMETRY = 1e-6


class RealFactor:
    """The real side, factored once for any number of engines: mean [d], trace, R [r, d] with RᵀR = Σ_r, float64.

    `real` is anything with `.mean` and `.cov` (such as `FeatureMoments`) or a pair (mean [d], cov [d, d]); one eigh.
    ValueError for wrong shapes, NaN, a count below 2, an asymmetric or indefinite covariance.
    """

    def __init__(self, real, device=None):
        count, mean, cov = _moments_of(real)
        if count is not None and count < 2:
            raise ValueError(f"real.count must be at least 2 for a covariance, got {count}; use more real samples")
        mean, cov = named_tensor(mean, "real mean"), named_tensor(cov, "real covariance")
        if mean.device != cov.device:
            raise ValueError(f"real mean is on {mean.device}, its covariance on {cov.device}; move both to one device")
        device = cov.device if device is None else device
        self.mean = mean.detach().to(device, torch.float64)
        cov = cov.detach().to(device, torch.float64)
        _check_moments(self.mean, cov)
        self.trace = cov.diagonal().sum().item()
        self.root, self.clipped = _symmetric_root(cov)

    @classmethod
    def of(cls, real, device=None) -> "RealFactor":
        """`real` itself if it is factored already, else its factor."""
        return real if isinstance(real, cls) else cls(real, device)

    @classmethod
    def kept(cls, real, path, device=None) -> "RealFactor":
        """The factor of `real`: read from `path` (.npz) if written there for the same moments, else made and written.

        The file tells the moments by their SHA-256; one of others, or a damaged one, is replaced.
        """
        _, mean, cov = _moments_of(real)
        mean, cov = named_tensor(mean, "real mean"), named_tensor(cov, "real covariance")
        digest = moments_sha256(mean, cov)
        try:
            with np.load(path, allow_pickle=False) as held:
                if str(held["moments_sha256"]) == digest:
                    return cls._from_arrays(
                        held, named_tensor(cov, "real covariance").device if device is None else device
                    )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass
        factor = cls(real, device)
        kept = {"mean": factor.mean.cpu().numpy(), "root": factor.root.cpu().numpy()}
        kept |= {"trace": factor.trace, "clipped": factor.clipped, "moments_sha256": digest}
        write_atomically(path, lambda file: np.savez(file, **kept))
        return factor

    @classmethod
    def _from_arrays(cls, held, device) -> "RealFactor":
        factor = cls.__new__(cls)
        factor.mean, factor.root = (torch.from_numpy(held[name]).to(device) for name in ("mean", "root"))
        factor.trace, factor.clipped = float(held["trace"]), int(held["clipped"])
        return factor

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.mean.numel()

    @property
    def rank(self) -> int:
        """Rank r of the real covariance."""
        return self.root.shape[0]


def _moments_of(real):
    """(count or None, mean, cov) of a moments object or a pair."""
    if hasattr(real, "mean") and hasattr(real, "cov"):
        return getattr(real, "count", None), real.mean, real.cov
    if isinstance(real, (tuple, list)) and len(real) == 2:
        return None, *real
    raise ValueError(
        f"real must be FeatureMoments, a pair (mean, cov) or a RealFactor, got {type(real).__name__}; "
        "use FeatureMoments.from_features for raw features"
    )


def named_tensor(value, name: str) -> torch.Tensor:
    """The value as a tensor without a copy where its maker allows one; ValueError where it is none."""
    try:
        return as_tensor(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise ValueError(f"{name} cannot be read as a tensor ({error}); pass a tensor or a numeric array") from error


def _symmetric_root(cov: torch.Tensor) -> tuple[torch.Tensor, int]:
    """R [r, d] with RᵀR = cov, null directions dropped, and the number of negative eigenvalues dropped with them."""
    values, vectors = torch.linalg.eigh(cov)
    largest = values[-1].item()
    noise = len(values) * torch.finfo(torch.float64).eps * max(largest, 0.0)
    # a covariance accumulated in float32 shows eigenvalues of about −1e-7·largest; more is not a covariance
    if values[0].item() < -1e-3 * abs(largest):
        raise ValueError(
            f"real covariance has an eigenvalue of {values[0].item():.3e} beside a largest of {largest:.3e}; "
            "a covariance has none below zero: recompute it in float64"
        )
    kept = values > noise
    return (vectors[:, kept] * values[kept].sqrt()).T.contiguous(), int((values < 0).sum())


def _check_moments(mean: torch.Tensor, cov: torch.Tensor) -> None:
    if mean.ndim != 1 or mean.numel() == 0 or cov.shape != (mean.numel(), mean.numel()):
        raise ValueError(
            f"real must have mean [d] and covariance [d, d], got {tuple(mean.shape)} and {tuple(cov.shape)}; "
            "pass (mean, cov) in this order"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError("real moments contain NaN or inf; look for bad rows in the real features")
    asymmetry = (cov - cov.T).abs().max().item()
    if asymmetry > SYMMETRY * cov.abs().max().item():
        raise ValueError(
            f"real covariance is not symmetric: it is {asymmetry:.3e} off its transpose; pass (C + C.T)/2 if meant"
        )
