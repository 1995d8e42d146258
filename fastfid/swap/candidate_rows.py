"""Equation 2: candidates, and their rows projected and spread so that their scatter is exact.

A candidate removes m_r rows of the reference and adds m_a; n' = N − m_r + m_a rows result.  Let y = x − μ_g, and ȳ_r
and ȳ_a the means over removed and added rows.  After the removal N₁ = N − m_r rows are left, with mean −(m_r/N₁) ȳ_r,
and the scatter of the changed set is exactly

    (n'−1) Σ' = (N−1) Σ_g − Σ_r z_r z_rᵀ + Σ_a z_a z_aᵀ,
    z_r = y_r + (√(N/N₁) − 1) ȳ_r,      z_a = y_a + (√(N₁/n') − 1) ȳ_a + √(N₁/n') (m_r/N₁) ȳ_r.                (2)

Each sum splits into the scatter about its own mean and one rank-one term; (2) spreads that term evenly over the rows.
Projected rows w = P y/√(N−1) are spread by the same coefficients, as projection is linear.

Legend: N reference samples, d features, r rank of Σ_r, B candidates of a call, b of a chunk; rows [.., d] or [.., r].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid import backend
from fastfid.swap.prepared_reference import PreparedReference
from fastfid.swap.routes import Route


@dataclass(frozen=True, eq=False)
class Candidates:
    """Swaps to compute.

    removed  [b, m_r] int64 rows of the reference
    added    [b, m_a, d] any float dtype; gradients flow to it
    ids      their places in the caller's batch, for error messages
    """

    removed: Tensor
    added: Tensor
    ids: Sequence[int]

    @classmethod
    def of(cls, removed: Tensor, added: Tensor) -> Candidates:
        """The candidates of a whole call."""
        return cls(removed, added, range(len(removed)))

    def __len__(self) -> int:
        return len(self.removed)

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient in the added rows is wanted."""
        return self.added.requires_grad and torch.is_grad_enabled()

    @property
    def sizes(self) -> tuple[int, int]:
        """m_r and m_a."""
        return self.removed.shape[1], self.added.shape[1]

    def __getitem__(self, places: slice | Tensor) -> Candidates:
        """Those at a slice, or at places [n] int64."""
        ids = self.ids[places] if isinstance(places, slice) else [self.ids[place] for place in places.tolist()]
        return Candidates(self.removed[places], self.added[places], ids)


# --- features, centred -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """Sums over a candidate's features, each [b] float64, s = Σ y_a − Σ y_r: |s|², s·(μ_r − μ_g), Σ|y_a|² − Σ|y_r|²."""

    sum_square: Tensor
    sum_gap: Tensor
    norm_change: Tensor


class Centred(NamedTuple):
    """Added rows y_a [b, m_a, d], the sums of equation 4, and, where asked for, s = Σ y_a − Σ y_r [b, d] float64."""

    added: Tensor
    sums: FeatureSums
    totals: Tensor | None = None


def centred_by_cpp(
    candidates: Candidates, prepared: PreparedReference, out: Tensor, with_totals: bool = False
) -> Centred:
    """Centred rows, written to `out` [b, m_a, d], and their sums in one pass over the rows (csrc/cpu/rows_kernel.h)."""
    added = candidates.added.detach()
    if added.dtype not in (torch.float32, torch.float64):
        added = added.float()
    if added.stride(-1) != 1:
        added = added.contiguous()
    norms, sums, totals = backend.extension().centre_rows(
        prepared.rows.numpy(), candidates.removed.contiguous().numpy(), added.numpy(), prepared.mean.numpy(),
        prepared.gap.numpy(), out.numpy(), with_totals, torch.get_num_threads(),
    )  # fmt: skip
    check_added(torch.from_numpy(norms), candidates.ids)
    sums = FeatureSums(*torch.from_numpy(sums).unbind(1))
    return Centred(out, sums, torch.from_numpy(totals) if with_totals else None)


def centred_by_torch(candidates: Candidates, prepared: PreparedReference, dtype: torch.dtype) -> Centred:
    """The same in torch operations, differentiable in the added rows; `dtype` of the centred rows."""
    centred, norms = centred_unchecked(candidates, prepared, dtype)
    check_added(norms, candidates.ids)
    return centred


def centred_unchecked(
    candidates: Candidates, prepared: PreparedReference, dtype: torch.dtype
) -> tuple[Centred, Tensor]:
    """The same with totals, and |y_a|² [b, m_a] float64, which `check_added` has still to see."""
    y_r = prepared.rows[candidates.removed].to(torch.float64) - prepared.mean
    y_a = candidates.added.to(torch.float64) - prepared.mean
    norms = y_a.square().sum(-1)
    total = y_a.sum(1) - y_r.sum(1)
    norm_change = norms.sum(-1) - y_r.square().sum((1, 2))
    sums = FeatureSums(total.square().sum(-1), total @ prepared.gap, norm_change)
    return Centred(y_a.to(dtype), sums, total), norms


def check_added(square_norms: Tensor, candidate_ids: Sequence[int]) -> None:
    """ValueError unless |y_a|² [b, m_a] are finite."""
    bad = (~torch.isfinite(square_norms.detach())).nonzero()
    if len(bad):
        places = [(candidate_ids[candidate], row) for candidate, row in bad[:5].tolist()]
        raise ValueError(
            f"added has NaN or inf, or squares that overflow, in {len(bad)} rows, first (candidate, row) {places}; "
            "drop them"
        )


# --- projected rows --------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Coefficients of equation 2: z_r = w_r + α w̄_r, z_a = w_a + β w̄_a + γ w̄_r."""

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0

    @classmethod
    def of(cls, count: int, m_r: int, m_a: int) -> Spread:
        """Equation 2 for m_r rows removed from N = `count` and m_a added."""
        remaining, final = count - m_r, count - m_r + m_a
        keep = math.sqrt(remaining / final)
        if m_r and remaining:
            return cls(math.sqrt(count / remaining) - 1, keep - 1, keep * m_r / remaining)
        return cls(0.0, keep - 1, 0.0)  # with every row removed ȳ_r is zero and z_r = y_r


@dataclass(frozen=True, eq=False)
class CandidateRows:
    """Projected rows of candidates.

    reference  [N, r] rows w from which removed ones are taken
    index      [b, m_r] int64, the removed rows' places in it
    added      [b, m_a, r] rows w_a
    spread     coefficients of equation 2
    ids        the candidates' places in the caller's batch, for error messages
    """

    reference: Tensor
    index: Tensor
    added: Tensor
    spread: Spread
    ids: Sequence[int]

    @classmethod
    def of(cls, w_r: Tensor, w_a: Tensor) -> CandidateRows:
        """Rows given directly and spread already, z_r [b, m_r, r] and z_a [b, m_a, r]."""
        places = torch.arange(w_r.shape[0] * w_r.shape[1], device=w_r.device).view(w_r.shape[:2])
        return cls(w_r.reshape(-1, w_r.shape[2]), places, w_a, Spread(), range(len(w_a)))

    @property
    def sizes(self) -> tuple[int, int]:
        """m_r and m_a."""
        return self.index.shape[1], self.added.shape[1]

    def spread_out(self) -> tuple[Tensor, Tensor]:
        """z_r [b, m_r, r] and z_a [b, m_a, r] of equation 2."""
        w_r, w_a, by = self.reference[self.index], self.added, self.spread
        if not w_r.shape[1]:
            return w_r, w_a + by.beta * w_a.mean(1, keepdim=True) if w_a.shape[1] else w_a
        mean_r = w_r.mean(1, keepdim=True)
        if w_a.shape[1]:
            w_a = w_a + (by.beta * w_a.mean(1, keepdim=True) + by.gamma * mean_r)
        return w_r + by.alpha * mean_r, w_a

    def arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[Any], Spread]:
        """What the extension takes: reference, index, added rows in float32 or float64, spread."""
        reference, index, added = (x.contiguous().numpy() for x in (self.reference, self.index, self.added.detach()))
        return reference, index, added, self.spread


class RowBuffers:
    """Uninitialised memory for rows that chunks and calls reuse: fresh pages cost more than the arithmetic in them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory [shape] of `dtype`, the same for every call with this name; its content is undefined."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.dtype != dtype or held.numel() < size:
            held = self._held[name] = torch.empty(size, dtype=dtype, device=self._device)
        return held[:size].view(*shape)

    def release(self) -> None:
        """Give a device's memory back to its allocator; host memory is kept, see `HOST_CHUNK` in swap/chunks.py."""
        if self._device.type != "cpu":
            self._held.clear()


def candidate_rows(
    candidates: Candidates, route: Route, prepared: PreparedReference, buffers: RowBuffers
) -> tuple[CandidateRows, Centred]:
    """Centre and project the candidates' rows, and look up the removed ones."""
    if route.rows_by_cpp:
        keep = route.gradient_by_cpp  # memory of its own and the totals, for the gradient
        shape = candidates.added.shape
        out = torch.empty(shape, dtype=route.dtype) if keep else buffers.take("centred", shape, route.dtype)
        centred = centred_by_cpp(candidates, prepared, out, with_totals=keep)
    else:
        centred = centred_by_torch(candidates, prepared, route.dtype)
    projected = project(centred.added, prepared, None if candidates.needs_grad else buffers)
    return rows_of(candidates, projected, prepared), centred


def project(centred: Tensor, prepared: PreparedReference, buffers: RowBuffers | None) -> Tensor:
    """y [b, m_a, d] → w [b, m_a, r] by one product, into a buffer, or differentiable without `buffers`."""
    projection = prepared.projections[centred.dtype]
    if buffers is None:
        return centred @ projection
    rows = centred.reshape(-1, prepared.dim)
    out = buffers.take("projected", (len(rows), prepared.rank), centred.dtype)
    return torch.mm(rows, projection, out=out).view(*centred.shape[:2], prepared.rank)


def rows_of(candidates: Candidates, w_a: Tensor, prepared: PreparedReference) -> CandidateRows:
    """Candidates' rows in the dtype of the added rows w_a [b, m_a, r].

    Removed rows are looked up, or projected again where more digits are wanted than the reference keeps.
    """
    spread = Spread.of(prepared.count, *candidates.sizes)
    removed = candidates.removed
    if w_a.dtype == prepared.projected.dtype:
        return CandidateRows(prepared.projected, removed, w_a, spread, candidates.ids)
    y_r = prepared.rows[removed.flatten()].to(torch.float64) - prepared.mean
    w_r = y_r.to(w_a.dtype) @ prepared.projections[w_a.dtype]
    places = torch.arange(removed.numel(), device=removed.device).view(removed.shape)
    return CandidateRows(w_r, places, w_a, spread, candidates.ids)
