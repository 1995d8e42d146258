"""Exact Fréchet distances of many sample swaps at once.

Real moments (μ_r, Σ_r); a reference set X of N samples with moments (μ_g, Σ_g).  A candidate removes some rows of X and
adds new ones; the distance of the changed set follows without ever forming its covariance.

Once per reference.  With any R of RᵀR = Σ_r, one eigendecomposition  R Σ_g Rᵀ = U Λ Uᵀ  gives P = Uᵀ R and the distance

    FD = |μ_r − μ_g|² + tr Σ_r + tr Σ_g − 2 tr √Λ.                                                             (1)

Per candidate.  Let y = x − μ_g, m_r rows removed, m_a added, n' = N − m_r + m_a, ȳ_r and ȳ_a their means.  Removing
first, N₁ = N − m_r rows stay, with mean −(m_r/N₁) ȳ_r, and the scatter of the changed set is exactly

    (n'−1) Σ' = (N−1) Σ_g − Σ_r z_r z_rᵀ + Σ_a z_a z_aᵀ,
    z_r = y_r + (√(N/N₁) − 1) ȳ_r,      z_a = y_a + (√(N₁/n') − 1) ȳ_a + √(N₁/n') (m_r/N₁) ȳ_r,                (2)

since each sum splits into scatter about its own mean plus one rank-one term, which (2) spreads evenly over the rows.
With c = (N−1)/(n'−1) and the rows w = P z/√(N−1) of W_r, W_a, the matrix R Σ' Rᵀ has the eigenvalues of
c(Λ − W_rᵀW_r + W_aᵀW_a), and

    Δ = tr √(Λ − W_rᵀW_r + W_aᵀW_a) − tr √Λ = (1/π) ∫₀^∞ log |det(J + G(τ))| dτ,                                (3)
    G(τ) = W (Λ + τ²)⁻¹ Wᵀ,   W = [W_r; W_a],   J = diag(−1 … −1, +1 … +1),

a k×k determinant, k = m_r + m_a (linalg/quadrature.py has the nodes).  J + G is quasi-definite: its leading block is
−(I − G_rr), negative definite because what stays after the removal is still a covariance, and the Schur complement of
that block is I + G_aa plus a positive term.  LDLᵀ therefore exists without pivoting: m_r negative pivots, then m_a
positive.  It is accurate while I − G_rr is not nearly singular, that is while the rows that stay span what Λ spans.

The change itself is summed, never the difference of two distances, with δ = (m_a ȳ_a − m_r ȳ_r)/n':

    FD' − FD = |δ|² − 2(μ_r−μ_g)·δ + (tr Σ' − tr Σ_g) − 2(√c Δ + (√c − 1) tr √Λ).                              (4)

Singular spectra.  If a direction of R Σ_g Rᵀ is lost (N ≤ d, constant features), or the removal loses one, Λ + S takes
the place of Λ on both sides of (3), S = diag(s), s_i = 1e-15 of the variance that direction i has in the reference, or
in a candidate's new rows where these have 1,000 times as much.  A direction v that is lost costs Δ at most √(vᵀSv),
3e-8 of its own standard deviation, one that stays next to nothing; all together never more than max(m_r, m_a)·√s, s the
largest s_i, since √(x+s) − √x is monotone with values in (0, √s] and eigenvalues interlace under each rank-one term.
`SwapEngine.report` tells the last s.

Rare directions.  A feature that is active in a few rows is lost with them, although N is large and Λ regular.  Every
removal therefore tells the smallest eigenvalue σ of I − G_rr at the first node: Λ − W_rᵀW_r ⪰ σΛ up to that node's τ².
A candidate whose σλ_min falls below the nodes' range is computed again in float64 with S and pivoted LU.

Legend: N reference samples, d features, r rank of Σ_r, B candidates, k = m_r + m_a, Q nodes; rows [.., d] or [.., r].
"""

import math
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fastfid import backend as backends
from fastfid.distances.real_side import RealFactor, named_tensor
from fastfid.linalg.iterative_roots import MATRICES_PER_PAIR
from fastfid.linalg.quadrature import error_bound, node_count, sqrt_nodes
from fastfid.runtime.devices import full_float32
from fastfid.swap.candidate_rows import CandidateRows, FeatureSums, spread_of
from fastfid.swap.checks import (
    DEFAULT_TOL,
    LEVERAGE_SLACK,
    check_device,
    check_finite_added,
    check_options,
    check_rows,
    checked_swap,
    row_indices,
)
from fastfid.swap.log_determinants import TRACE_CHANGES
from fastfid.swap.nodes import Nodes
from fastfid.swap.prepared_reference import prepare
from fastfid.swap.routes import choose
from fastfid.swap.single_swaps import single_swaps_by_cpp, single_swaps_by_torch
from fastfid.swap.whole_matrices import trace_change_by_eigenvalues, trace_change_by_products

# Shift of a singular spectrum, of a direction's variance v: w·w/(s + τ²) ≤ v/s of all new rows keeps a digit in float64
# (ε = 2e-16), and so does a removed row's 1 − w·w/(v + s).
SHIFT = 1e-15

# New rows with more than this many times a direction's variance have a direction of their own: below, w·w/v keeps
# float64's digits as it is.
GAINED = 1e3

# Singular spectra are resolved down to a root of this share of tol times the largest: a smaller one adds less.
RESOLVED = 1 / 20

# A removal must leave this much more than the nodes' range assumes.  Chosen: inverse iteration sees the smallest
# eigenvalue of I − G_rr from above, where it stands apart to a few per cent.
REMAINING_MARGIN = 1.2

# Relative error of a weight plan in units of tol.  Measured at d = 128 to 1,024, N = 1,500 … 5,000, tol = 2e-6: the
# error of a change, 1.5e-5 to 7e-5 of the candidates' standard deviation, stays what it is up to 100; at 300 some are
# twice as large.
PLAN_TOL = 50

# The same of a singular spectrum, absolute: I − G_rr as small as LEAST_REMAINING in float64 keeps four digits.
SINGULAR_PLAN_TOL = 1e-12

# Sets of nodes kept with their weight plans, 0.1 s each at d = 2048 (phase "plan", within "logdet"): of subsets, of
# single images, of leaving one out.
NODE_SETS = 4

# Below this I − G_rr, whose entries err by 1e-6 (float32) and 1e-15, keeps fewer than three, or seven, digits.
LEAST_REMAINING = {torch.float32: 1e-3, torch.float64: 1e-8}

DEFAULT_WORKSPACE = 256 << 20  # bytes

# What a candidate takes beside its rows: indices, sums and log-determinants or products at up to 100 nodes.
CANDIDATE_BYTES = 3 << 10

ROWS_IN_CACHE = 64  # float64 rows squared and then summed before the next ones: 1 MiB at d = 2048

# In host memory a chunk takes no more than this, whatever the workspace, and the engine keeps it: fresh pages cost more
# than what is computed in them.  Measured at d = 2048 over 4 to 256 MiB on two busy Zen 3 cores: 16 and 32 MiB were
# fastest, 256 MiB slower by 14% for 50-swaps and by 50% for single images.
HOST_CHUNK = 32 << 20  # bytes


class SwapEngine:
    """Fréchet distances of a reference set under many swaps, exact to `tol` (equations 1 to 4 of this module).

    real                `FeatureMoments`, a pair (mean [d], cov [d, d]), or a `RealFactor` made once for many engines
    reference_features  [N, d] any float dtype, N ≥ 2; torch, NumPy or DLPack; copied
    tol                 quadrature error relative to the largest root eigenvalue; 2e-6 in float32, 1e-10 in float64
    dtype               torch.float32 or torch.float64: projected rows and Gram matrices; statistics are always float64
    backend             "auto" | "cpp" | "triton" | "torch"; auto takes cpp in host memory and triton on CUDA devices
                        where it can, else torch; `report()` tells which and why
    method              "logdet", or a d×d matrix root of every candidate, slow, as a cross-check: "eigh" in float64,
                        "newton_schulz" or "polar_express" by products alone (errors: linalg/iterative_roots.py)
    workspace           256 MiB, bytes of temporary memory; more candidates are handled in chunks

    A reference that has lost a direction the real set has (N ≤ d, constant features) is computed in float64 with the
    shift s of this module's docstring, bound 2√c·max(m_r, m_a)·√s; `.report()` tells.  Results are float64.  Gradients
    flow to `added` if it requires them.  Methods raise ValueError naming the argument, what it was, and the remedy.
    """

    def __init__(
        self,
        real,
        reference_features,
        *,
        tol: float | None = None,
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        method: str = "logdet",
        workspace: int = DEFAULT_WORKSPACE,
    ):
        tol = DEFAULT_TOL.get(dtype) if tol is None else tol
        check_options(tol, dtype, method, workspace)
        reference = named_tensor(reference_features, "reference_features").detach()
        self.tol, self.dtype, self.method, self.workspace = tol, dtype, method, workspace
        self.requested_backend = backend
        self.real = RealFactor.of(real, reference.device)
        if self.real.mean.device != reference.device:
            raise ValueError(
                f"real is on {self.real.mean.device}, reference_features on {reference.device}; move both to one device"
            )
        self._choice = choose(backend, reference.device)
        self._extension = self._choice.name == "cpp"
        self._seconds: dict[str, float] = {}
        self._last = {"nodes": 0, "lo": math.nan, "hi": math.nan, "shift": 0.0, "recomputed": 0, "clipped": 0}
        self._buffers: dict[str, torch.Tensor] = {}
        self._turn = threading.RLock()  # buffers and report are the engine's: calls from several threads take turns
        check_rows(reference, "reference_features", self.real.dim)
        self._prepare(reference.clone())

    # ---------------------------------------------------------------------------------------------- public interface

    @property
    def distance(self) -> float:
        """Fréchet distance of the reference set from the real moments (equation 1)."""
        return self.prepared.distance

    @property
    def count(self) -> int:
        """Number N of reference samples."""
        return self.prepared.count

    @property
    def reference(self) -> torch.Tensor:
        """The reference features [N, d] in the dtype they came in; read-only by convention, see `replace`."""
        return self.prepared.features

    def score(self, removed, added) -> torch.Tensor:
        """Fréchet distance of each candidate [B] float64; arguments as in `change`."""
        return self.prepared.distance + self.change(removed, added)

    def change(self, removed, added) -> torch.Tensor:
        """Change of the Fréchet distance for each candidate [B] float64; negative is closer to the real set (eq. 4).

        removed  [B, m_r] int64 rows of the reference, no repeats inside a candidate
        added    [B, m_a, d] any float dtype; m_a may differ from m_r

        Neighbours of the batch that remove the same rows in the same order share what these cost (backend "cpp").
        """
        removed, added = checked_swap(removed, added, self.prepared.features)
        needs_grad = added.requires_grad and torch.is_grad_enabled()
        step = self._candidates_per_chunk(len(removed), removed.shape[1], added.shape[1], needs_grad)
        with self._turn, torch.set_grad_enabled(needs_grad), full_float32(added.device):
            self._last |= {"recomputed": 0, "clipped": 0}
            parts = [
                self._change_chunk(removed[i : i + step], added[i : i + step], needs_grad, range(i, i + step))
                for i in range(0, removed.shape[0], step)
            ]
            self._release_buffers()
            return torch.cat(parts) if parts else added.new_zeros(0, dtype=torch.float64)

    def change_each(self, removed, added) -> torch.Tensor:
        """Exact change of every single-image swap on its own: removed [...] int64, added [..., d] → [...] float64.

        At k = 2 the determinant is (1 + g_aa)(1 − g_rr) + g_ar², and each g is a product of rows times the node
        weights: one [n, r]×[r, Q] multiplication a product, next to nothing beside the projection.
        """
        removed, added = row_indices(removed), named_tensor(added, "added")
        if added.shape[:-1] != removed.shape or added.ndim < 1:
            raise ValueError(
                f"added must have shape [..., d] for removed [...], got {tuple(added.shape)} for {tuple(removed.shape)}"
            )
        flat = self.change(removed.reshape(-1, 1), added.reshape(removed.numel(), 1, added.shape[-1]))
        return flat.reshape(removed.shape)

    def leave_one_out(self) -> torch.Tensor:
        """Exact change of the distance when one reference row is left out, for each of them: [N] float64."""
        every = torch.arange(self.count, device=self.prepared.device)[:, None]
        return self.change(every, self.prepared.features.new_zeros((self.count, 0, self.real.dim)))

    @torch.no_grad()
    def influence(self, features) -> torch.Tensor:
        """First-order influence I(x) [n] float64 of features [n, d].

        I(x) = −2(μ_r−μ_g)·y + |y|² − Σ_i (P y)_i²/√λ_i; replacing x_i by x changes FD by about (I(x) − I(x_i))/N.
        A lost direction has no derivative: there √s stands for √λ_i.
        """
        features = named_tensor(features, "features")
        check_rows(features, "features", self.real.dim, at_least=0)
        check_device(features, "features", self.prepared.device)
        shift = 0.0 if self.prepared.resolved else SHIFT
        curvature = (self.count - 1) * math.sqrt(self.prepared.scale) * (self.prepared.spectrum + shift).rsqrt()
        nothing = torch.empty((1, 0), dtype=torch.int64, device=features.device)
        step = max(1, min(self.workspace, HOST_CHUNK) // (8 * (self.real.dim + self.real.rank)))
        parts = [features.new_zeros(0, dtype=torch.float64)]
        centre = self._centre_cpp if self._extension else self._centre_torch
        with self._turn, full_float32(features.device):
            for rows in features.split(step):
                y, moments = centre(nothing.expand(len(rows), 0), rows[:, None], torch.float64, 0)
                projected = self._project(y, needs_grad=False)[:, 0]
                squares = torch.cat([block.square_() @ curvature for block in projected.split(ROWS_IN_CACHE)])
                parts.append(moments.norm_change - 2 * moments.sum_gap - squares)
            self._release_buffers()
        return torch.cat(parts)

    @torch.no_grad()
    def replace(self, removed, added) -> "SwapEngine":
        """Commit one swap, removed [m_r] and added [m_a, d], renew the eigenbasis, and return the engine.

        Added rows take the places of the removed ones in order; surplus rows are appended, surplus places closed up.
        """
        removed, added = row_indices(removed), named_tensor(added, "added")
        if removed.ndim != 1 or added.ndim != 2:
            raise ValueError(
                "replace takes one swap, removed [m_r] and added [m_a, d], "
                f"got {tuple(removed.shape)} and {tuple(added.shape)}; commit candidates one after the other"
            )
        removed, added = checked_swap(removed[None], added[None], self.prepared.features)
        removed, added = removed[0], added[0].to(self.prepared.features.dtype)
        check_rows(added, "added", self.real.dim, at_least=0)
        both = min(len(removed), len(added))
        rows = self.prepared.features.clone()
        rows[removed[:both]] = added[:both]
        kept = torch.ones(self.count, dtype=torch.bool, device=rows.device)
        kept[removed[both:]] = False
        with self._turn:
            self._prepare(torch.cat([rows[kept], added[both:]]))
        return self

    def report(self) -> dict:
        """What was computed and how: sizes, spectrum, repairs, last nodes and shift, backend, seconds a phase.

        `recomputed` counts candidates of the last call that lose a rare direction and were computed twice;
        `changed_eigenvalues_clipped` what method "eigh" found below zero by rounding.
        """
        return {
            "count": self.count,
            "dim": self.real.dim,
            "real_rank": self.real.rank,
            "lambda_min": self.prepared.lambda_min * self.prepared.scale,
            "lambda_max": self.prepared.lambda_max * self.prepared.scale,
            "real_eigenvalues_clipped": self.real.clipped,
            "reference_eigenvalues_clipped": self.prepared.clipped,
            "nodes": self._last["nodes"],
            "quadrature_bound": self._bound(),
            "node_range": (self._last["lo"] * self.prepared.scale, self._last["hi"] * self.prepared.scale),
            "shift": self._last["shift"] * self.prepared.scale,
            "recomputed": self._last["recomputed"],
            "changed_eigenvalues_clipped": self._last["clipped"],
            "dtype": str(self.prepared.projected.dtype).removeprefix("torch."),
            "method": self.method,
            "backend": self._choice.name,
            "backend_why": self._choice.why,
            "workspace": self.workspace,
            "seconds": dict(self._seconds),
        }

    def _bound(self) -> float:
        """Bound on the rule's error for one root eigenvalue, in units of features; nan before the first swap."""
        nodes, lo, hi = (self._last[name] for name in ("nodes", "lo", "hi"))
        return error_bound(nodes, lo, hi) * math.sqrt(hi * self.prepared.scale) if nodes else math.nan

    # ------------------------------------------------------------------------------------------------------- prepare

    def _prepare(self, features: torch.Tensor) -> None:
        """Make [N, d] features the reference."""
        with self._phase("prepare"), full_float32(features.device):
            self.prepared = prepare(self.real, features, self.dtype, min(self.workspace, HOST_CHUNK))
            self._node_cache = {}  # of the spectrum before

    # -------------------------------------------------------------------------------------------------------- change

    def _change_chunk(self, removed, added, needs_grad: bool, candidate_ids: Sequence[int]) -> torch.Tensor:
        """Equation 4 for candidates that fit the workspace: removed [b, m_r], added [b, m_a, d] → [b] float64."""
        m_r, m_a = removed.shape[1], added.shape[1]
        singular = self.prepared.is_singular(m_r)
        if needs_grad and self._fused_gradient(m_r, m_a):
            change, remaining = _Change.apply(added, self, removed, candidate_ids)
        else:
            change, remaining = self._change_once(removed, added, needs_grad, candidate_ids, singular)
        if remaining is None:
            return change
        rare = (~(remaining >= self._least_remaining(singular)) | change.detach().isnan()).nonzero()[:, 0]
        return self._recomputed(change, rare, removed, added, needs_grad, candidate_ids) if len(rare) else change

    def _change_once(
        self, removed, added, needs_grad: bool, candidate_ids: Sequence[int], singular: bool, pivoted=False
    ):
        """Equation 4 [b] and, where known, the smallest eigenvalue of I − G_rr at the first node [b], or None."""
        with self._phase("project"):
            centre = self._centre_cpp if self._fused(needs_grad) else self._centre_torch
            centred, moments = centre(removed, added, torch.float64 if singular else self.dtype, candidate_ids)
            rows = self._changed_rows(removed, self._project(centred, needs_grad))
        with self._phase("logdet"):
            trace_change, remaining = self._trace_change(rows, needs_grad, candidate_ids, singular, pivoted)
        return self._combine(moments, trace_change, removed.shape[1], added.shape[1]), remaining

    def _recomputed(self, change, rare, removed, added, needs_grad: bool, candidate_ids: Sequence[int]) -> torch.Tensor:
        """`change` [b] with the candidates `rare` [n] computed as of a singular spectrum, by pivoted LU."""
        once, again = dict(self._last), []
        step = self._candidates_per_chunk(len(rare), removed.shape[1], added.shape[1], needs_grad, pivoted=True)
        for places in rare.split(step):
            named = [candidate_ids[place] for place in places.tolist()]
            again.append(self._change_once(removed[places], added[places], needs_grad, named, True, pivoted=True)[0])
        self._last = once | {"shift": self._last["shift"], "recomputed": once["recomputed"] + len(rare)}
        return change.index_put((rare,), torch.cat(again))

    def _least_remaining(self, singular: bool) -> float:
        """What a removal must leave: for the last nodes, a share of λ_min; for unpivoted LDLᵀ to keep its digits."""
        if singular:
            return LEAST_REMAINING[torch.float64]
        return max(LEAST_REMAINING[self.dtype], REMAINING_MARGIN * self._last["lo"] / self.prepared.lambda_min)

    def _combine(self, moments: FeatureSums, trace_change, m_r: int, m_a: int) -> torch.Tensor:
        """Equation 4 [b] from its parts."""
        final = self.count - m_r + m_a
        shrink = math.sqrt((self.count - 1) / (final - 1))  # √c
        delta_square, delta_gap = moments.sum_square / final**2, moments.sum_gap / final
        size_change = self.count - final
        traces = (size_change * self.prepared.trace + moments.norm_change - final * delta_square) / (final - 1)
        roots = shrink * trace_change + (shrink - 1) * self.prepared.root_trace
        return delta_square - 2 * delta_gap + traces - 2 * roots

    def _fused_gradient(self, m_r: int, m_a: int) -> bool:
        """Whether the extension computes this change together with its gradient; single rows are left to autograd."""
        exhausting = self.prepared.is_exhausted_by(m_r)
        if not self._fused(False) or max(m_r, m_a) <= 1 or m_a == 0 or self.real.rank == 0:
            return False
        return choose(self.requested_backend, self.prepared.mean.device, m_r + m_a, exhausting).name == "cpp"

    def _fused(self, needs_grad: bool) -> bool:
        """Whether the extension may do what surrounds the determinants too."""
        return self._extension and self.method == "logdet" and not needs_grad

    def _centre_cpp(self, removed, added, dtype, candidate_ids: Sequence[int], with_totals: bool = False):
        """Centred added rows [b, m_a, d] of `dtype` and their `FeatureSums`, in one pass over the rows (csrc/cpu).

        `with_totals`: in memory of their own, and Σ y_a − Σ y_r [b, d] float64 as a third result.
        """
        if added.dtype not in (torch.float32, torch.float64):
            added = added.float()
        if added.stride(-1) != 1:
            added = added.contiguous()
        centred = torch.empty(added.shape, dtype=dtype) if with_totals else self._buffer("centred", added.shape, dtype)
        norms, sums, totals = backends.extension().centre_rows(
            self.prepared.rows.numpy(), removed.contiguous().numpy(), added.detach().numpy(),
            self.prepared.mean.numpy(), self.prepared.gap.numpy(), centred.numpy(), with_totals,
            torch.get_num_threads(),
        )  # fmt: skip
        check_finite_added(torch.from_numpy(norms), candidate_ids)
        moments = FeatureSums(*torch.from_numpy(sums).unbind(1))
        return (centred, moments, torch.from_numpy(totals)) if with_totals else (centred, moments)

    def _centre_torch(self, removed, added, dtype, candidate_ids: Sequence[int]):
        """The same in torch operations, differentiable in `added`."""
        y_r = self.prepared.rows[removed].to(torch.float64) - self.prepared.mean
        y_a = added.to(torch.float64) - self.prepared.mean
        norms = y_a.square().sum(-1)
        check_finite_added(norms, candidate_ids)
        total = y_a.sum(1) - y_r.sum(1)
        norm_change = norms.sum(-1) - y_r.square().sum((1, 2))
        return y_a.to(dtype), FeatureSums(total.square().sum(-1), total @ self.prepared.gap, norm_change)

    def _project(self, centred: torch.Tensor, needs_grad: bool) -> torch.Tensor:
        """y [b, m_a, d] → w = P y/√(N−1) [b, m_a, r]: one product for all rows."""
        weights = self.prepared.projections[centred.dtype]
        if needs_grad:
            return centred @ weights
        flat = centred.reshape(-1, self.real.dim)
        return torch.mm(flat, weights, out=self._buffer("projected", (len(flat), self.real.rank), centred.dtype)).view(
            *centred.shape[:2], self.real.rank
        )

    def _buffer(self, name: str, shape, dtype) -> torch.Tensor:
        """Uninitialised memory [shape], the same for all chunks of a call: fresh pages cost more than arithmetic."""
        size = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.dtype != dtype or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, dtype=dtype, device=self.prepared.mean.device)
        return held[:size].view(shape)

    def _release_buffers(self) -> None:
        """Memory of a device goes back to its allocator; the host's pages are kept, see HOST_CHUNK."""
        if self.prepared.mean.device.type != "cpu":
            self._buffers.clear()

    def _changed_rows(self, removed: torch.Tensor, w_a: torch.Tensor) -> CandidateRows:
        """Projected rows of the candidates: removed ones looked up, or projected anew when more digits are wanted."""
        spread = spread_of(self.count, removed.shape[1], w_a.shape[1])
        if w_a.dtype == self.prepared.projected.dtype:
            return CandidateRows(self.prepared.projected, removed, w_a, spread)
        y_r = self.prepared.rows[removed.flatten()].to(torch.float64) - self.prepared.mean
        places = torch.arange(removed.numel(), device=removed.device).view(removed.shape)
        return CandidateRows(y_r.to(w_a.dtype) @ self.prepared.projections[w_a.dtype], places, w_a, spread)

    def _trace_change(
        self, rows: CandidateRows, needs_grad: bool, candidate_ids: Sequence[int], singular: bool, pivoted: bool
    ):
        """Δ of equation 3 [b] float64, and the smallest eigenvalue of I − G_rr at the first node [b] or None.

        `pivoted`: by torch's LU whatever the backend.
        """
        scale = math.sqrt(self.prepared.scale)
        if self.method == "eigh":
            change, clipped = trace_change_by_eigenvalues(*rows.spread_out(), self.prepared.spectrum)
            self._last["clipped"] += clipped
            return scale * change, None
        if self.method != "logdet":
            return scale * self._trace_change_products(rows, needs_grad), None
        energy = self._energy(rows)
        if self.real.rank == 0 or self.prepared.lambda_max + energy == 0:
            return rows.added.sum((1, 2), dtype=torch.float64) * 0, None  # nothing to change, and a gradient of zero
        m_r, m_a = rows.index.shape[1], rows.added.shape[1]
        if m_r + m_a == 0:
            return rows.added.new_zeros(len(rows.added), dtype=torch.float64), None
        nodes = self._singular_nodes(rows, energy) if singular else self._nodes(energy, m_r)
        name = "torch" if pivoted else self._choose(rows, needs_grad)
        if m_r <= 1 and m_a <= 1:
            found = (single_swaps_by_cpp if name == "cpp" else single_swaps_by_torch)(rows, nodes, candidate_ids)
        else:
            found = TRACE_CHANGES[name](rows, nodes, candidate_ids)
        return scale * found[0], found[1]

    def _trace_change_products(self, rows: CandidateRows, needs_grad: bool) -> torch.Tensor:
        """Δ/√scale [b] by the products of `method`, on the backend that has them."""
        precision, device = str(rows.added.dtype).removeprefix("torch."), rows.added.device
        self._choice = backends.choose_products(self.requested_backend, device, self.method, precision, needs_grad)
        return trace_change_by_products(
            *rows.spread_out(), self.prepared.spectrum, self.method, precision, self._choice.name
        )

    def _choose(self, rows: CandidateRows, needs_grad: bool) -> str:
        """The backend of these candidates, noted for the report."""
        m_r, rank = rows.index.shape[1], rows.index.shape[1] + rows.added.shape[1]
        exhausting = self.prepared.is_exhausted_by(m_r)
        device, dtype = rows.added.device, rows.added.dtype
        self._choice = choose(self.requested_backend, device, rank, exhausting, dtype, needs_grad)
        if needs_grad and self._choice.name == "cpp":
            self._choice = backends.Choice("torch", "gradients of single rows are left to autograd")
        return self._choice.name

    def _energy(self, rows: CandidateRows) -> float:
        """Bound on Σ|z_a|² over candidates: ‖z_a‖ ≤ ‖w_a‖ + γ√m_a |w̄_r|, and m_r |w̄_r|² ≤ λ_max as W_rᵀW_r ⪯ Λ."""
        m_r, m_a = rows.index.shape[1], rows.added.shape[1]
        if not rows.added.numel():
            return 0.0
        added = rows.added.detach()
        largest = torch.linalg.vector_norm(added, dim=(1, 2)).max().item()
        if not math.isfinite(largest):  # squares that only float64 holds, and at ten times the cost
            largest = torch.linalg.vector_norm(added, dim=(1, 2), dtype=torch.float64).max().item()
        drift = rows.spread.gamma * math.sqrt(m_a * self.prepared.lambda_max / m_r) if m_r else 0.0
        return (largest + drift) ** 2

    def _nodes(self, energy: float, removed: int) -> Nodes:
        """Nodes for changed spectra of at most λ_max + energy, all in units of λ_max.

        The lower end is a choice (`_remaining_share`), which every removal is held against (`_least_remaining`).
        """
        hi = self._highest(energy)
        lo = max(SHIFT * hi, self.prepared.lambda_min * self._remaining_share(removed) / 2)
        nodes = node_count(self.tol, lo, hi)
        self._last |= {"nodes": nodes, "lo": lo, "hi": hi, "shift": 0.0}
        return self._kept_nodes((nodes, lo, hi), self.prepared.spectrum, PLAN_TOL * self.tol, self.dtype)

    def _singular_nodes(self, rows: CandidateRows, energy: float) -> Nodes:
        """The shifted spectrum Λ + S and its nodes."""
        new = torch.linalg.vector_norm(rows.added.detach(), dim=1).to(torch.float64).square()
        gained = new.amax(0) if new.numel() else torch.zeros_like(self.prepared.spectrum)
        # rounded up to 4^j, so that one kind of new rows keeps one set of nodes
        gained = torch.where(gained > GAINED * self.prepared.spectrum, 4 ** gained.log2().div(2).ceil(), 0.0)
        shift, hi = SHIFT * torch.maximum(self.prepared.spectrum, gained), self._highest(energy)
        lo = max((RESOLVED * self.tol) ** 2 * hi, shift[shift > 0].min().item())
        nodes = node_count(self.tol, lo, hi)
        self._last |= {"nodes": nodes, "lo": lo, "hi": hi, "shift": shift.max().item()}
        key = (nodes, lo, hi, shift.cpu().numpy().tobytes())
        return self._kept_nodes(key, self.prepared.spectrum + shift, SINGULAR_PLAN_TOL, torch.float64)

    def _kept_nodes(self, key: tuple, spectrum: torch.Tensor, tol: float, dtype: torch.dtype) -> Nodes:
        """The nodes of a range, key = (Q, lo, hi, …), with their weight plan; made once."""
        if key not in self._node_cache:
            while len(self._node_cache) >= NODE_SETS:
                self._node_cache.pop(next(iter(self._node_cache)))  # the oldest
            made = self._node_cache[key] = Nodes(spectrum, *self._rule(*key[:3]), tol)
            if self._extension:
                with self._phase("plan"):
                    made.plan(np.float32 if dtype == torch.float32 else np.float64)
        return self._node_cache[key]

    def _highest(self, energy: float) -> float:
        """λ_max + energy rounded up to 2·4^j, so that one typical size of change keeps one set of nodes."""
        hi = 2.0 if self.prepared.lambda_max else 4.0 ** math.ceil(math.log(energy, 4))
        while hi < self.prepared.lambda_max + energy:
            hi *= 4
        return hi

    def _rule(self, nodes: int, lo: float, hi: float) -> list[torch.Tensor]:
        """τ [Q] and ω [Q] on the engine's device."""
        return [torch.from_numpy(values).to(self.prepared.mean.device) for values in sqrt_nodes(nodes, lo, hi)]

    def _remaining_share(self, removed: int) -> float:
        """What a removal of m_r random rows leaves of the smallest eigenvalue, at least 0.

        1 − the largest eigenvalue of W_r Λ⁻¹ W_rᵀ, a corner of a projection of rank r among N rows, whose edge is
        (√(a(1−b)) + √(b(1−a)))² with a = r/N and b = m_r/N (Wachter 1980), and 3·N^(−2/3) for its fluctuation.
        """
        a, b = min(1.0, self.real.rank / self.count), removed / self.count
        edge = (math.sqrt(a * (1 - b)) + math.sqrt(b * (1 - a))) ** 2
        return max(0.0, 1 - edge - 3 * self.count ** (-2 / 3))

    # ------------------------------------------------------------------------------------------------------- helpers

    def _candidates_per_chunk(
        self, candidates: int, removed: int, added: int, needs_grad: bool, pivoted: bool = False
    ) -> int:
        """Candidates whose centred and projected rows, and torch's copies of them, fit the workspace; at least one.

        Chunks are of one size, or the last would be too small for a fast product.
        """
        itemsize = 8 if self.prepared.is_singular(removed) else torch.finfo(self.dtype).bits // 8
        per_candidate = itemsize * added * (self.real.dim + self.real.rank) + CANDIDATE_BYTES
        if pivoted or not self._fused(needs_grad) and not (needs_grad and self._fused_gradient(removed, added)):
            per_candidate = 8 * (removed + added) * (3 * self.real.dim + 3 * self.real.rank)
        elif needs_grad:
            per_candidate += 8 * self.real.dim + itemsize * added * self.real.rank  # totals and slope
        if self.method != "logdet":
            per_candidate += 8 * MATRICES_PER_PAIR * self.real.rank**2
        host = self.prepared.device.type == "cpu"
        most = max(1, (min(self.workspace, HOST_CHUNK) if host else self.workspace) // max(1, per_candidate))
        return math.ceil(candidates / math.ceil(candidates / most)) if candidates else 1

    @contextmanager
    def _phase(self, name: str):
        """Adds seconds to this phase of the report; on a GPU those until its work is done."""
        start = time.perf_counter()
        yield
        if self.real.mean.is_cuda:
            torch.cuda.current_stream(self.real.mean.device).synchronize()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start


class _Change(torch.autograd.Function):
    """Equation 4 [b] of one chunk, the smallest eigenvalue of I − G_rr [b], and the gradient in its added rows,

    ∂/∂y_a = 2 y_a/(n'−1) − (2/n')(δ/(n'−1) + μ_r − μ_g) − 2√c ∂Δ/∂w_a P/√(N−1).
    """

    @staticmethod
    def forward(ctx, added, engine: SwapEngine, removed, candidate_ids: Sequence[int]):
        m_r, m_a = removed.shape[1], added.shape[1]
        singular = engine.prepared.is_singular(m_r)
        with engine._phase("project"):
            dtype = torch.float64 if singular else engine.dtype
            centred, moments, totals = engine._centre_cpp(removed, added, dtype, candidate_ids, True)
            rows = engine._changed_rows(removed, engine._project(centred, False))
        with engine._phase("logdet"):
            energy = engine._energy(rows)
            nodes = engine._singular_nodes(rows, energy) if singular else engine._nodes(energy, m_r)
            trace_change, remaining, slope = _swap_trace_slope(rows, nodes)
        ctx.engine, ctx.removed_count, ctx.dtype = engine, m_r, added.dtype
        ctx.save_for_backward(centred, totals, slope, engine.prepared.projections[centred.dtype], engine.prepared.gap)
        ctx.mark_non_differentiable(remaining)
        return engine._combine(moments, math.sqrt(engine.prepared.scale) * trace_change, m_r, m_a), remaining

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor, _):
        centred, totals, slope, weights, gap = ctx.saved_tensors
        engine, (batch, m_a, dim) = ctx.engine, centred.shape
        final = engine.count - ctx.removed_count + m_a
        shrink = math.sqrt((engine.count - 1) / (final - 1) * engine.prepared.scale)
        with full_float32(centred.device):
            gradient = torch.addmm(
                centred.view(-1, dim), slope.view(batch * m_a, -1), weights.T, beta=2 / (final - 1), alpha=-2 * shrink
            ).view(centred.shape)
        common = (-2 / final) * (totals / (final * (final - 1)) + gap)
        gradient.add_(common[:, None].to(gradient.dtype)).mul_(grad[:, None, None].to(gradient.dtype))
        gradient[grad == 0] = 0  # a candidate computed again has no number here
        return gradient.to(ctx.dtype), None, None, None


def _swap_trace_slope(rows: CandidateRows, nodes: Nodes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `log_determinants_by_cpp`, with the gradient ∂Δ/∂w_a [b, m_a, r] in the rows before their spread."""
    arrays = rows.arrays()
    plan, weights = nodes.plan(arrays[2].dtype), (nodes.omega / math.pi).numpy()
    logdets, remaining, slope, _, _ = backends.extension().swap_gradient(
        *arrays, plan, weights, LEVERAGE_SLACK, torch.get_num_threads()
    )
    slope = torch.from_numpy(slope)
    slope.add_(slope.mean(1, keepdim=True), alpha=rows.spread.beta)  # z_a = w_a + β w̄_a + …
    return torch.from_numpy(logdets) @ nodes.omega / math.pi, torch.from_numpy(remaining), slope
