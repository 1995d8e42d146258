"""Count, mean and covariance of a feature set: streamed, evicted, merged, reduced over ranks, saved with provenance.

Rows are collected into blocks.  Each block is centred by its own mean in float64 and added to one triangle of the
covariance, in place, by the pairwise update of Chan, Golub & LeVeque (1983).  Σxxᵀ − nμμᵀ is never formed, so a mean of
10⁴ standard deviations costs no digits.  Rows in the same order give the same bits in batches of any size.
In host memory csrc/cpu does both steps without a centred copy.  On other devices, or without the extension, torch does.

Legend: n samples, d feature dimension; scatter S = Σ (x − μ)(x − μ)ᵀ = (n − 1) cov.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastfid import triton_kernels
from fastfid.distances.moments_file import StoredMoments, read_moments, reading_arrays, write_moments
from fastfid.distances.rows import checked_features
from fastfid.distances.scatter import (
    RowBuffer,
    add_scatter,
    block_mean,
    combine,
    mirror_triangle,
    moments_with_gradient,
)
from fastfid.identity import Identity, Provenance
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.mapped_arrays import open_numpy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class FeatureMoments:
    """Moments of n feature rows: count n, mean float64 [d], cov float64 [d, d] with ddof = 1 (zeros while n < 2).

    count       int, or None if a statistics file does not state it
    provenance  dict of strings: extractor, weights_sha256, version…; {} if unknown

    Tensors read from `mean` and `cov` do not change when rows are added later.
    """

    def __init__(self, count: int | None, mean: Tensor, cov: Tensor, provenance: Provenance | None = None):
        self._mean = as_tensor(mean, "mean", meta=True).to(torch.float64)
        self._cov = as_tensor(cov, "cov", meta=True).to(torch.float64)
        if self._mean.dim() != 1 or self._cov.shape != (len(self._mean), len(self._mean)):
            raise ValueError(
                f"moments need mean [d] and cov [d, d], got {tuple(self._mean.shape)} and {tuple(self._cov.shape)}; "
                "pass a vector and a square matrix"
            )
        if len(self._mean) == 0:
            raise ValueError("moments of d = 0 features were given; a distance needs at least 1")
        self._count = _checked_count(count)  # rows in _mean and _cov, without those in the buffers
        self.provenance = {} if provenance is None else provenance
        self._added, self._evicted = RowBuffer(), RowBuffer()
        self._shared = True  # someone else may hold _cov, so it must not be written to
        self._mirrored = True  # whether both triangles of _cov are valid, or only the upper one

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureMoments, (self.count, self.mean, self.cov, self.provenance)

    def __repr__(self) -> str:
        return f"FeatureMoments(count={self.count}, dim={self.dim}, provenance={self.provenance})"

    @property
    def count(self) -> int | None:
        """Rows n, or None if unknown."""
        return None if self._count is None else self._count + len(self._added) - len(self._evicted)

    @count.setter
    def count(self, count: int | None) -> None:
        self._flush()
        self._count = _checked_count(count)

    @property
    def mean(self) -> Tensor:
        """Mean row, float64 [d]."""
        self._flush()
        return self._mean

    @property
    def cov(self) -> Tensor:
        """Covariance with ddof = 1, float64 [d, d]."""
        self._flush()
        if not self._mirrored:
            mirror_triangle(self._cov)
            self._mirrored = True
        self._shared = True
        return self._cov

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return len(self._mean)

    @property
    def identity(self) -> Identity:
        """The network that made the features, as far as `provenance` records it."""
        return Identity.of(self.provenance)

    @classmethod
    def empty(
        cls, dim: int, provenance: Provenance | None = None, device: str | torch.device = "cpu"
    ) -> FeatureMoments:
        """Moments of no rows, to be filled by `update`; rows are sent to `device`."""
        mean = torch.zeros(dim, dtype=torch.float64, device=device)
        moments = cls(0, mean, torch.zeros(dim, dim, dtype=torch.float64, device=device), dict(provenance or {}))
        moments._shared = False
        return moments

    @classmethod
    def from_features(cls, x: Tensor, provenance: Provenance | None = None, kernel: str = "torch") -> FeatureMoments:
        """Moments of x [n, d], any float dtype, n ≥ 2; differentiable.  `kernel` as in `update`.

        ValueError for another shape, fewer than two rows, or rows that are not finite (it says which).
        """
        x = checked_features(x)
        if len(x) < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {len(x)}; stream single rows with update()")
        if x.requires_grad and kernel == "torch":
            return cls(*moments_with_gradient(x), dict(provenance or {}))
        moments = cls.empty(x.shape[1], provenance, x.device)
        if kernel == "torch":
            moments._add(x)  # the same as `update`, without a second search for NaN
        else:
            moments.update(x, kernel)
        moments._flush()
        moments._added = RowBuffer()
        return moments

    @torch.inference_mode(False)  # later calls write to these tensors, perhaps outside the caller's inference mode
    def update(self, x: Tensor, kernel: str = "torch") -> FeatureMoments:
        """Add the rows of x [m, d], m ≥ 0, in place and return self, now the exact moments of all rows.

        kernel  "torch", float64 throughout | "triton", one pass over x on a CUDA device, float16, bfloat16 or float32

        The result is differentiable in rows that require a gradient, with "torch" only.  "triton"
        (fastfid/triton_kernels/moments.py) sums products of 512 rows in float32 before it adds them in float64.  It
        changes cov_ij by at most 3e-5 √(cov_ii cov_jj); in emulation by 1e-7 of that, and a Fréchet distance by 4e-8.
        """
        if kernel not in ("torch", "triton"):
            raise ValueError(f"kernel must be 'torch' or 'triton', got {kernel!r}; 'torch' runs on any device")
        x, n = self.checked_rows(x), self._known_count()
        needs_grad = len(x) and (x.requires_grad or self._mean.requires_grad or self._cov.requires_grad)
        if kernel == "triton":
            if needs_grad:
                raise ValueError("kernel='triton' carries no gradient; detach() the features or pass kernel='torch'")
            fused = triton_kernels.load("moments").update_moments
            self._count, self._mean, self._cov = fused(n, self.mean, self.cov, x.to(self._mean.device))
            return self
        if needs_grad:
            added = moments_with_gradient(x.to(self._mean.device))
            self._count, self._mean, self._cov = combine(n, self.mean, self.cov, *added)
            return self
        self._add(x)
        return self

    @torch.inference_mode(False)
    def evict(self, x: Tensor) -> FeatureMoments:
        """Remove the rows of x [m, d], which were added before, in place and return self; ValueError if n < m.

        Each block that is added or removed rounds the covariance by a few ε = 2·10⁻¹⁶ of its largest entry so far.
        These errors add up: 2·10⁻¹⁴ was measured after 1,000 rows with means of 5 standard deviations were replaced
        100 times.  Rows that were never added are not detected.  `FeatureWindow` keeps its rows, and computes the
        moments again whenever all of them have been replaced.
        """
        x, n = self.checked_rows(x), self._known_count()
        if len(x) > n:
            raise ValueError(f"{len(x)} rows cannot be evicted from moments of {n}; evict rows that were added")
        if self._mean.requires_grad or self._cov.requires_grad:
            raise ValueError("rows cannot be evicted from moments that carry a gradient; detach() their mean and cov")
        for rows in self._evicted.blocks(x.detach(), self._mean.device):
            self._absorb(self._added.taken())
            self._absorb(rows, sign=-1)
        return self

    def to(self, device: str | torch.device) -> FeatureMoments:
        """The same moments on `device`: this object if it is there already, else a copy."""
        device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        if self._mean.device == device:
            return self
        return FeatureMoments(self.count, self.mean.to(device), self.cov.to(device), dict(self.provenance))

    def copy(self) -> FeatureMoments:
        """An independent copy."""
        return FeatureMoments(self.count, self.mean.clone(), self.cov.clone(), dict(self.provenance))

    def without_provenance(self) -> FeatureMoments:
        """A copy of unknown origin, which can be compared with any moments of d features."""
        return FeatureMoments(self.count, self.mean, self.cov)

    def state_dict(self) -> dict[str, Any]:
        """`count`, `mean`, `cov` and `provenance`, for torch.save."""
        return {"count": self.count, "mean": self.mean, "cov": self.cov, "provenance": dict(self.provenance)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the moments of a `state_dict` onto this object's device; ValueError for another d."""
        if len(state["mean"]) != self.dim:
            raise ValueError(
                f"these moments have d = {self.dim}, the state has d = {len(state['mean'])}; use one extractor"
            )
        device = self._mean.device
        mean, cov = state["mean"].to(device), state["cov"].to(device)
        loaded = FeatureMoments(state["count"], mean, cov, dict(state["provenance"]))
        self.__dict__.update(loaded.__dict__)

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Moments of both sets together, as a new object; ValueError if their dimension or provenance differ."""
        check_same_features(self, other)
        merged = combine(self._known_count(), self.mean, self.cov, other._known_count(), other.mean, other.cov)
        return FeatureMoments(*merged, self.provenance or other.provenance)

    def all_reduce(self, group: ProcessGroup | None = None) -> FeatureMoments:
        """Moments of all ranks' rows together, the same on every rank of the torch.distributed `group`.

        Every rank must call it, also a rank without rows (`empty`).  Without an initialised group it returns a copy.
        It sums n and nμ first, then the scatters about the common mean.
        """
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return self.copy()
        n, device = self._known_count(), reducing_device(self._mean.device, group)
        own_mean, own_cov = self.mean.to(device), self.cov.to(device)
        sums = torch.cat([n * own_mean, own_mean.new_tensor([n])])  # counts below 2⁵³ are exact in float64
        dist.all_reduce(sums, group=group)
        total = int(sums[-1].item())
        mean = sums[:-1] / max(total, 1)
        delta = own_mean - mean
        scatter = max(n - 1, 0) * own_cov + n * torch.outer(delta, delta)
        dist.all_reduce(scatter, group=group)
        mean, cov = (t.to(self._mean.device) for t in (mean, scatter / max(total - 1, 1)))
        return FeatureMoments(total, mean, cov, dict(self.provenance))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz with `mu`, `sigma`, `count` and a JSON `provenance`; pytorch-fid reads the first two.

        The file appears whole or not at all.
        """
        write_moments(path, StoredMoments(self.count, self.mean, self.cov, self.provenance))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureMoments:
        """Read an npz with `mu` and `sigma` of fastfid or another tool (pytorch-fid, clean-fid, EDM, ADM).

        The count is None and the provenance {} if the file does not hold them.  FileNotFoundError or ValueError names
        the file.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no statistics file at {path}; correct the path")
        with reading_arrays(path):
            content = open_numpy(path)
            if isinstance(content, np.ndarray):
                raise ValueError(f"{path} is a single array, not statistics; save mu and sigma together with np.savez")
            with content:
                return cls(*read_moments(path, content))

    def _known_count(self) -> int:
        if self.count is None:
            raise ValueError("the count of these statistics is unknown, so nothing can be merged in; set .count first")
        return self.count

    def checked_rows(self, x: Tensor) -> Tensor:
        """x [m, d] as a tensor; ValueError unless its rows are finite floats of these moments' d."""
        x = checked_features(x)
        if x.shape[1] != self.dim:
            raise ValueError(f"these moments have d = {self.dim}, the batch has d = {x.shape[1]}; use one extractor")
        return x

    @torch.inference_mode(False)
    def _add(self, x: Tensor) -> None:
        """Add checked rows that carry no gradient."""
        for rows in self._added.blocks(x, self._mean.device):
            self._absorb(rows)

    @torch.inference_mode(False)
    def _flush(self) -> None:
        """Bring waiting rows into the mean and the covariance."""
        self._absorb(self._added.taken())
        self._absorb(self._evicted.taken(), sign=-1)

    def _absorb(self, rows: Tensor, sign: int = 1) -> None:
        """Add a block's rows to the moments (sign 1) or take them out (sign −1).

        There are n rows before and n' = n ± m after; the block has m rows with mean μ + δ:
            μ' = μ ± (m/n') δ,      S' = S ± (S_block + (n m/n') δδᵀ).
        The last term enters the product of the centred rows as one more row, √(n m/n') δ.
        """
        m = len(rows)
        if not m:
            return
        assert self._count is not None  # update and evict require a known count
        n, after = self._count, self._count + sign * m
        if self._shared or self._cov.is_inference():
            self._cov, self._shared = self._cov.clone(memory_format=torch.contiguous_format), False
        self._count, self._mirrored = after, False
        if not after:
            self._mean = torch.zeros_like(self._mean)
        else:
            own = block_mean(rows)
            delta = own - self._mean
            self._mean = self._mean + delta * (sign * m / after)
        if after < 2:
            self._cov.zero_()
        else:
            extra = delta * math.sqrt(n * m / after)
            add_scatter(self._cov, rows, own, extra, sign / (after - 1), max(n - 1, 0) / (after - 1))


def _checked_count(count: int | None) -> int | None:
    """The count; ValueError for a negative one."""
    if count is not None and count < 0:
        raise ValueError(f"the count of these statistics is {count}; pass the number of images, or None if unknown")
    return count


def check_same_features(a: FeatureMoments, b: FeatureMoments) -> None:
    """ValueError if a and b differ in dimension or device, or are known to be of different networks."""
    if found := a.identity.difference(b.identity):
        raise ValueError(
            f"the {found.field} differs: {found.first} against {found.second}; extract both sets with the same network"
        )
    if a.dim != b.dim:
        raise ValueError(f"moments of d = {a.dim} and d = {b.dim} cannot be compared; use one extractor for both")
    if a._mean.device != b._mean.device:
        raise ValueError(f"moments lie on {a._mean.device} and {b._mean.device}; move one side with .to(device)")


def reducing_device(device: torch.device, group: ProcessGroup | None) -> torch.device:
    """The device on which the group reduces: the CPU if it has a backend for the CPU, else the GPU (NCCL).

    The choice must be the same on all ranks, also on one without rows, which does not know the device of the others.
    """
    import torch.distributed as dist

    if "cpu:" in dist.get_backend_config(group):
        return torch.device("cpu")
    return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())
