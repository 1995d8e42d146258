"""Count, mean and covariance of a feature set: streamed, merged, reduced over ranks, saved with their provenance.

In host memory rows are centred about their mean, found in a pass before, and multiplied in float64; batches, ranks and
blocks that carry gradients are combined by the pairwise update of Chan, Golub & LeVeque (1983).  Either way a mean of
10⁴ standard deviations costs no digits: no Σxxᵀ − nμμᵀ is ever formed.

Legend: n samples, d feature dimension; scatter S = Σ (x − μ)(x − μ)ᵀ = (n − 1) cov.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

# Rows centred and multiplied at a time: 512 × 2048 float64 is 8 MiB, which stays in cache between the two, and the d²
# of adding a block's product to the others is lost beside its 512·d².  Measured at d = 512 and 2048: 256, 512 and 1024
# are within 10% of each other, 2500 and 5000 slower by up to 17%.
BLOCK_ROWS = 512
# The same on other devices and for gradients, where blocks are merged: 4096 × 2048 float64 is 64 MiB, and the d² of a
# merge is lost beside the 4096·d² of a product.
GRADIENT_BLOCK_ROWS = 4096


@dataclass
class FeatureMoments:
    """Moments of n feature rows: count n, mean float64 [d], cov float64 [d, d] with ddof = 1 (zeros while n < 2).

    count       int, or None when a statistics file does not tell
    provenance  dict of strings: extractor, weights_sha256, version…; {} when unknown
    """

    count: int | None
    mean: Tensor
    cov: Tensor
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        self.mean = torch.as_tensor(self.mean).to(torch.float64)
        self.cov = torch.as_tensor(self.cov).to(torch.float64)
        if self.mean.dim() != 1 or self.cov.shape != (len(self.mean), len(self.mean)):
            raise ValueError(
                f"moments need mean [d] and cov [d, d], got {tuple(self.mean.shape)} and {tuple(self.cov.shape)}"
            )

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return len(self.mean)

    @classmethod
    def empty(cls, dim: int, provenance: dict | None = None) -> FeatureMoments:
        """Moments of no rows, the start of a stream of `update`s."""
        mean, cov = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
        return cls(0, mean, cov, dict(provenance or {}))

    @classmethod
    def from_features(cls, x: Tensor, provenance: dict | None = None) -> FeatureMoments:
        """Moments of x [n, d], any float dtype, n ≥ 2; differentiable.

        ValueError for another shape, fewer than two rows, or rows that are not finite (it says which).
        """
        x = _checked_features(x)
        if len(x) < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {len(x)}; stream single rows with update()")
        return cls(*_moments_of(x), dict(provenance or {}))

    def update(self, x: Tensor) -> FeatureMoments:
        """Add the rows of x [m, d], m ≥ 0, in place and return self: exactly the moments of all rows together."""
        x = _checked_features(x)
        if x.shape[1] != self.dim:
            raise ValueError(f"these moments have d = {self.dim}, the batch has d = {x.shape[1]}; use one extractor")
        if len(x):
            self.count, self.mean, self.cov = _combine(self._known_count(), *self._pair(), *_moments_of(x))
        return self

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Moments of both sets together, as a new object; ValueError if their dimension or provenance differ."""
        check_same_features(self, other)
        merged = _combine(self._known_count(), *self._pair(), other._known_count(), *other._pair())
        return FeatureMoments(*merged, self.provenance or other.provenance)

    def all_reduce(self, group=None) -> FeatureMoments:
        """Moments of all ranks' rows together, the same on every rank of the torch.distributed `group`.

        Every rank must call it, ranks without rows (`empty`) included; without an initialised group it is a copy.
        Sums n and nμ first, then the scatters about the common mean.
        """
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return FeatureMoments(self.count, self.mean.clone(), self.cov.clone(), dict(self.provenance))
        n = self._known_count()
        sums = torch.cat([n * self.mean, self.mean.new_tensor([n])])  # counts below 2⁵³ are exact in float64
        dist.all_reduce(sums, group=group)
        total = int(sums[-1].item())
        mean = sums[:-1] / max(total, 1)
        delta = self.mean - mean
        scatter = max(n - 1, 0) * self.cov + n * torch.outer(delta, delta)
        dist.all_reduce(scatter, group=group)
        return FeatureMoments(total, mean, scatter / max(total - 1, 1), dict(self.provenance))

    def save(self, path: str | os.PathLike) -> None:
        """Write npz with `mu`, `sigma`, `count` and a JSON `provenance`; pytorch-fid reads its first two.

        The file appears whole or not at all: it is written under a temporary name and renamed.
        """
        from fastfid import __version__

        arrays = {"mu": self.mean.detach().cpu().numpy(), "sigma": self.cov.detach().cpu().numpy()}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        arrays["provenance"] = np.array(json.dumps({"version": f"fastfid {__version__}", **self.provenance}))
        write_atomically(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike) -> FeatureMoments:
        """Read npz statistics: our own or any with `mu` and `sigma` (pytorch-fid, clean-fid, EDM, ADM).

        Count is None and provenance {} where the file lacks them.  FileNotFoundError or ValueError names the file.
        """
        with _open_npz(path) as arrays:
            missing = {"mu", "sigma"} - set(arrays.files)
            if missing:
                raise ValueError(
                    f"{path} has no {' or '.join(sorted(missing))} (only {', '.join(arrays.files)}); "
                    "statistics need mu and sigma"
                )
            count = int(arrays["count"]) if "count" in arrays.files else None
            provenance = json.loads(str(arrays["provenance"])) if "provenance" in arrays.files else {}
            return cls(count, torch.from_numpy(arrays["mu"]), torch.from_numpy(arrays["sigma"]), provenance)

    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.cov

    def _known_count(self) -> int:
        if self.count is None:
            raise ValueError("these statistics do not tell their count, so nothing can be merged in; set .count first")
        return self.count


def check_same_features(a: FeatureMoments, b: FeatureMoments) -> None:
    """ValueError unless a and b agree in dimension and, where both tell, in extractor and weights."""
    for key in ("extractor", "weights_sha256", "preprocessing"):
        ours, theirs = a.provenance.get(key), b.provenance.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(f"the {key} differs: {ours} against {theirs}; extract both sets with the same network")
    if a.dim != b.dim:
        raise ValueError(f"moments of d = {a.dim} and d = {b.dim} cannot be compared; use one extractor for both")


# --- arithmetic --------------------------------------------------------------------------------------------------


def _moments_of(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and covariance of x [n ≥ 1, d]."""
    if x.device.type == "cpu" and not x.requires_grad:
        return _moments_in_two_passes(x)
    moments = None
    for block in x.split(GRADIENT_BLOCK_ROWS):
        moments = _block_moments(block) if moments is None else _combine(*moments, *_block_moments(block))
    return moments


def _moments_in_two_passes(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """A mean first; then blocks about it, their products summed into one triangle by BLAS's syrk (n·d² flops).

    Rows are centred by NumPy: between two of BLAS's calls, torch's threads would still be spinning on its cores (three
    times slower at 5,000 × 512 on two cores).
    """
    n, d = x.shape
    mean = _near_mean(x)
    buffer = np.empty((min(n, BLOCK_ROWS), d))
    left_over, scatter = np.zeros(d), np.zeros((d, d), order="F")
    rows = (x if x.dtype in (torch.float32, torch.float64) else x.float()).numpy()
    for start in range(0, n, BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        centred = np.subtract(block, mean.numpy(), out=buffer[: len(block)])
        left_over += centred.sum(axis=0)
        scatter = dsyrk(1.0, centred.T, beta=1.0, c=scatter, lower=True, overwrite_c=True)
    residue = torch.from_numpy(left_over / n)  # what rounding left of the mean
    scatter = dsyrk(-float(n), residue.numpy()[:, None], beta=1.0, c=scatter, lower=True, overwrite_c=True)
    cov = torch.from_numpy(scatter.T).div_(max(n - 1, 1))
    cov += cov.T.contiguous()  # the other triangle is zero; a blocked copy, five times as fast as adding a strided view
    cov.diagonal().div_(2)
    return n, mean + residue, cov


def _near_mean(x: Tensor) -> Tensor:
    """The mean of x [n, d] as float64, summed in float32 where x has no more: what that loses is found in the rows."""
    mean = (x if x.dtype in (torch.float32, torch.float64) else x.float()).mean(dim=0).double()
    return mean if torch.isfinite(mean).all() else x.double().mean(dim=0)  # a float32 sum of huge values overflows


def _block_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Moments of one block about its own mean, and a second pass for what rounding left of that mean."""
    n = len(x)
    x = x.to(torch.float64)
    mean = x.mean(dim=0)
    centred = x - mean
    residue = centred.mean(dim=0)  # zero but for rounding
    scatter = centred.T @ centred - n * torch.outer(residue, residue)
    return n, mean + residue, scatter / max(n - 1, 1)


def _combine(
    n_a: int, mean_a: Tensor, cov_a: Tensor, n_b: int, mean_b: Tensor, cov_b: Tensor
) -> tuple[int, Tensor, Tensor]:
    """S = S_a + S_b + (n_a n_b / n) δδᵀ with δ = μ_b − μ_a (Chan, Golub & LeVeque 1983)."""
    n = n_a + n_b
    if n == 0:
        return 0, mean_a, cov_a
    delta = mean_b - mean_a
    mean = mean_a + delta * (n_b / n)
    scatter = max(n_a - 1, 0) * cov_a + max(n_b - 1, 0) * cov_b + (n_a * n_b / n) * torch.outer(delta, delta)
    return n, mean, scatter / max(n - 1, 1)


def _checked_features(x: Tensor) -> Tensor:
    x = torch.as_tensor(x)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"features must be [n, d], got shape {tuple(x.shape)}; pool or flatten them on purpose")
    if not x.is_floating_point():
        raise ValueError(f"features must be floating point, got {x.dtype}; images go through an extractor first")
    if torch.isfinite(x.detach().sum()):  # a finite sum has finite terms; an infinite one may have overflowed only
        return x
    bad = ~torch.isfinite(x.detach()).all(dim=1)
    if bad.any():
        raise ValueError(f"feature row {int(bad.nonzero()[0])} holds NaN or infinity ({int(bad.sum())} such rows)")
    return x


# --- files -------------------------------------------------------------------------------------------------------


def _open_npz(path: str | os.PathLike) -> np.lib.npyio.NpzFile:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no statistics file at {path}")
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as unreadable:
        raise ValueError(f"{path} is not an npz of statistics ({unreadable}); save mu and sigma by np.savez") from None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is a single array, not statistics; save mu and sigma together with np.savez")
    return arrays


def write_atomically(path: str | os.PathLike, write) -> None:
    """Call write(file) on a temporary neighbour of `path`, then rename it: the file appears whole or not at all."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)  # mkstemp makes the file private; statistics are shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
