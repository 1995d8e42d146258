"""Exact Fréchet distances of many sample swaps at once.

A reference set of N samples is compared with real moments.  A candidate removes some of its rows and adds new ones, and
the distance of the changed set follows without its covariance: for 50 rows at d = 2048 about 1e9 flops instead of 1e11
and more.  The derivation, one equation a file:

    (1)  the distance and the eigenbasis of the reference                    swap/prepared_reference.py
    (2)  removed and added rows whose scatter is exact                       swap/candidate_rows.py
    (3)  the change of tr √ as an integral of k×k log-determinants           swap/log_determinants.py
         its nodes, and the shift of a spectrum that has lost directions     swap/nodes.py, linalg/quadrature.py
    (7)  the same for a single row removed and added                         swap/single_swaps.py
    (4)  the change of the distance from its parts                           swap/distance_change.py
         candidates that lose a rare direction                               swap/chunks.py
         a call on a device, which waits for it once                         swap/device_calls.py, swap/by_plan.py
         the gradient in the added rows                                      swap/gradient.py
         first-order influence                                               swap/influence.py

docs/mathematics.md has the same equations with their proofs.

Legend: N reference samples, d features, B candidates, m_r rows removed and m_a added a candidate.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor

from fastfid.distances.real_side import HasMoments, Pair, PreparedMoments, RealFactor
from fastfid.linalg.units import unit_of_variances
from fastfid.runtime.devices import as_tensor, full_float32
from fastfid.swap.candidate_rows import Candidates, RowBuffers
from fastfid.swap.checks import check_device, check_indices, check_rows, checked_shapes, checked_swap
from fastfid.swap.chunks import HOST_CHUNK, Workbench, changes_of
from fastfid.swap.device_calls import changes_by_plan, is_deferred
from fastfid.swap.influence import influence_of
from fastfid.swap.nodes import NodeSets, highest
from fastfid.swap.options import DEFAULT_TOL, DEFAULT_WORKSPACE, EngineOptions
from fastfid.swap.phases import PhaseTimer
from fastfid.swap.prepared_reference import PreparedReference, prepare_reference, replaced_rows
from fastfid.swap.report import Report
from fastfid.swap.routes import choose, route_of


class SwapEngine:
    """Fréchet distances of a reference set under many swaps, exact to `tol` (equations 1 to 4, listed above).

    real                `FeatureMoments`, a pair (mean [d], cov [d, d]), or a `RealFactor` made once for many engines
    reference_features  [N, d] any float dtype, N ≥ 2; torch, NumPy or DLPack; copied
    tol                 quadrature error relative to the largest root eigenvalue; 2e-6 in float32, 1e-10 in float64
    dtype               torch.float32 or torch.float64: projected rows and Gram matrices; statistics are always float64
    backend             "auto" | "cpp" | "triton" | "torch"; auto takes cpp in host memory and triton on CUDA devices
                        where it can, else torch; `report()` tells which and why
    method              "logdet", or a d×d matrix root of every candidate, slow, as a cross-check: "eigh" in float64,
                        "newton_schulz" or "polar_express" by products alone (errors: linalg/iterative_roots.py)
    workspace           bytes of temporary memory, 256 MiB in host memory and 2 GiB on a device; more candidates are
                        handled in chunks
    eigensolver         "device": a reference is decomposed where it is; "host": in host memory, and the vectors travel

    A reference that has lost a direction the real set has (N ≤ d, constant features) is computed in float64 with a
    shift s of its spectrum, which errs by at most 2√c·max(m_r, m_a)·√s (swap/nodes.py); `report()` returns s.  Results
    are float64.  Gradients flow to `added` if it requires them.  Methods raise ValueError naming the argument, its
    value and the remedy.  Calls from several threads take turns.
    """

    def __init__(
        self,
        real: PreparedMoments | HasMoments | Pair,
        reference_features: object,
        *,
        tol: float | None = None,
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        method: str = "logdet",
        workspace: int | None = None,
        eigensolver: str = "device",
    ):
        features = as_tensor(reference_features, "reference_features").detach()
        choice = choose(backend, features.device)
        tol = DEFAULT_TOL.get(dtype, 0.0) if tol is None else tol
        if workspace is None:
            workspace = DEFAULT_WORKSPACE.get(features.device.type, DEFAULT_WORKSPACE["cpu"])
        cpp = choice.name == "cpp"
        self._options = EngineOptions(tol, dtype, method, workspace, backend, cpp, eigensolver)
        self._real = RealFactor.of(real, features.device)
        if self._real.mean.device != features.device:
            raise ValueError(
                f"real is on {self._real.mean.device}, reference_features on {features.device}; move both to one device"
            )
        check_rows(features, "reference_features", self._real.dim)
        largest = torch.linalg.vector_norm(features, math.inf).double()  # stands for a deviation, without a copy
        self._unit = unit_of_variances(self._real.moments.cov.diagonal(), largest.square())
        self._scaled_real = self._real.in_unit(self._unit)
        self._report = Report(choice)
        self._buffers = RowBuffers(features.device)
        self._turn = threading.RLock()  # buffers, reference and report are the engine's
        self._prepare(self._scaled(features.clone(memory_format=torch.contiguous_format)))

    def _prepare(self, features: Tensor) -> None:
        """Make features [N, d] the reference."""
        timer, options = PhaseTimer(features.device), self._options
        with timer.phase("prepare"), full_float32(features.device):
            self._prepared = prepare_reference(
                self._scaled_real, features, options.dtype, self._chunk_bytes, options.eigensolver
            )
        self._nodes = NodeSets(self._prepared, self._options)
        self._report = self._report.then(Report(seconds=timer.seconds))

    def _scaled(self, rows: Tensor) -> Tensor:
        """Rows in the unit of the computation (linalg/units.py), in which distances are t² as large."""
        return rows if self._unit == 1 else rows * self._unit

    @property
    def _chunk_bytes(self) -> int:
        return min(self._options.workspace, HOST_CHUNK)

    def ready_for(self, *removals: int) -> SwapEngine:
        """Make the nodes and weight plans that the first `change` with so many rows removed would make; the engine.

        For a thread that prepares a reference beside other work: 0.1 s each at d = 2048.  Plans of a singular spectrum
        depend on the new rows, and are left to the call.
        """
        with self._turn:
            timer = PhaseTimer(self._prepared.device)
            for m_r in removals:
                if self._options.method == "logdet" and self._prepared.rank and not self._prepared.is_singular(m_r):
                    self._nodes.regular(highest(self._prepared.lambda_max, 0.0), m_r, self._options.dtype, timer)
            self._report = self._report.then(Report(seconds=timer.seconds))
        return self

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def distance(self) -> float:
        """Fréchet distance of the reference set from the real moments (equation 1)."""
        return self._prepared.distance / self._unit / self._unit

    @property
    def count(self) -> int:
        """Number N of reference samples."""
        return self._prepared.count

    @property
    def reference(self) -> Tensor:
        """The reference features [N, d] in the dtype they came in; read-only by convention, see `replace`."""
        return self._prepared.features if self._unit == 1 else self._prepared.features / self._unit

    @property
    def real(self) -> PreparedMoments:
        """The real side, factored."""
        return self._real

    @property
    def options(self) -> EngineOptions:
        """The settings, with defaults filled in."""
        return self._options

    @property
    def prepared(self) -> PreparedReference:
        """The reference with its eigenbasis and projected rows, in their unit; another value after `replace`."""
        return self._prepared

    # -------------------------------------------------------------------------------------------- distances of swaps

    def score(self, removed: object, added: object) -> Tensor:
        """Fréchet distance of each candidate [B] float64; arguments as in `change`."""
        with self._turn:
            return self.distance + self.change(removed, added)

    def change(self, removed: object, added: object) -> Tensor:
        """Change of the Fréchet distance for each candidate [B] float64; negative is closer to the real set (eq. 4).

        removed  [B, m_r] int64 rows of the reference, no repeats inside a candidate
        added    [B, m_a, d] any float dtype; m_a may differ from m_r

        Neighbours of the batch that remove the same rows in the same order share what these cost (backend "cpp").
        """
        with self._turn:
            removed, added = as_tensor(removed, "removed"), as_tensor(added, "added")
            removed, added = checked_shapes(removed, added, self._prepared.features)
            candidates = Candidates.of(removed, self._scaled(added))
            route = route_of(self._options, self._prepared, *candidates.sizes, candidates.needs_grad)
            waits_once = is_deferred(candidates, route, self._prepared)
            if not waits_once:
                check_indices(removed, self.count)
            timer = PhaseTimer(self._prepared.device)
            bench = Workbench(self._buffers, self._nodes, timer, self._options.workspace)
            with full_float32(self._prepared.device):
                compute = changes_by_plan if waits_once else changes_of
                changes, report = compute(candidates, route, self._prepared, bench)
            self._report = self._report.without_counts().then(report)
            self._buffers.release()
            return changes if self._unit == 1 else changes / self._unit / self._unit

    def change_each(self, removed: object, added: object) -> Tensor:
        """Exact change of every single-image swap on its own: removed [...] int64, added [..., d] → [...] float64."""
        removed, added = as_tensor(removed, "removed"), as_tensor(added, "added")
        if added.shape[:-1] != removed.shape or added.ndim < 1:
            raise ValueError(
                f"added must have shape [..., d] for removed [...], got {tuple(added.shape)} for {tuple(removed.shape)}"
            )
        flat = self.change(removed.reshape(-1, 1), added.reshape(removed.numel(), 1, added.shape[-1]))
        return flat.reshape(removed.shape)

    def leave_one_out(self) -> Tensor:
        """Exact change of the distance when one reference row is left out, for each of them: [N] float64."""
        with self._turn:
            features = self._prepared.features
            every = torch.arange(self.count, device=features.device)[:, None]
            return self.change(every, features.new_zeros((self.count, 0, self._prepared.dim)))

    @torch.no_grad()
    def influence(self, features: object) -> Tensor:
        """First-order influence I(x) [n] float64 of features [n, d] (swap/influence.py).

        Replacing x_i by x changes the distance by about (I(x) − I(x_i))/N.
        """
        features = as_tensor(features, "features")
        with self._turn, full_float32(features.device):
            check_rows(features, "features", self._prepared.dim, at_least=0)
            check_device(features, "features", self._prepared.device)
            rows = self._scaled(features)
            influence = influence_of(rows, self._prepared, self._options, self._buffers, self._chunk_bytes)
            self._buffers.release()
            return influence / self._unit / self._unit

    @torch.no_grad()
    def replace(self, removed: object, added: object) -> SwapEngine:
        """Commit one swap, removed [m_r] and added [m_a, d], renew the eigenbasis, and return the engine.

        Added rows take the places of the removed ones in order; surplus rows are appended, surplus places closed up.
        """
        removed, added = as_tensor(removed, "removed"), as_tensor(added, "added")
        if removed.ndim != 1 or added.ndim != 2:
            raise ValueError(
                "replace takes one swap, removed [m_r] and added [m_a, d], "
                f"got {tuple(removed.shape)} and {tuple(added.shape)}; commit candidates one after the other"
            )
        with self._turn:
            features = self._prepared.features
            removed, added = (batch[0] for batch in checked_swap(removed[None], added[None], features))
            check_rows(added, "added", self._prepared.dim, at_least=0)
            self._prepare(replaced_rows(features, removed, self._scaled(added)))
        return self

    # -------------------------------------------------------------------------------------------------------- report

    @property
    def last_report(self) -> Report:
        """What the last calls needed, as `report` tells it in units of features."""
        return self._report

    def report(self) -> dict[str, Any]:
        """What was computed and how: sizes, spectrum, repairs, last nodes and shift, backend, seconds of each phase.

        `recomputed` counts candidates of the last call that lose a rare direction and were computed twice;
        `changed_eigenvalues_clipped` those eigenvalues that method "eigh" found below zero by rounding.
        """
        with self._turn:
            prepared, options, report = self._prepared, self._options, self._report
        scale = prepared.scale / self._unit**2 / self._unit**2
        assert report.choice is not None, "the first choice is made with the engine"
        return {
            "count": prepared.count,
            "dim": prepared.dim,
            "real_rank": prepared.rank,
            "lambda_min": prepared.lambda_min * scale,
            "lambda_max": prepared.lambda_max * scale,
            "real_eigenvalues_clipped": self._real.clipped,
            "reference_eigenvalues_clipped": prepared.clipped,
            **report.quadrature(scale),
            "recomputed": report.recomputed,
            "changed_eigenvalues_clipped": report.clipped,
            "dtype": str(prepared.projected.dtype).removeprefix("torch."),
            "method": options.method,
            "backend": report.choice.name,
            "backend_why": report.choice.why,
            "workspace": options.workspace,
            "eigensolver": options.eigensolver,
            "seconds": dict(report.seconds),
        }
