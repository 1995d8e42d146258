"""The quadrature nodes of equation 3: the range of eigenvalues a change can reach, and the shift of singular spectra.

Singular spectra.  A direction of R Σ_g Rᵀ may be lost (N ≤ d, constant features), or the removal may lose one.  Then Λ
+ S takes the place of Λ on both sides of equation 3.  S = diag(s), where s_i is 1e-15 of direction i's variance in the
reference, or in the new rows if they have more than 1,000 times as much.  A lost direction v costs Δ at most √(vᵀSv),
which is 3e-8 of its own standard deviation; a direction that stays costs next to nothing.  All directions together cost
at most max(m_r, m_a)·√s with s the largest s_i, since √(x+s) − √x is monotone with values in (0, √s] and eigenvalues
interlace under each rank-one term.  `SwapEngine.report` returns the last s.

Legend: λ eigenvalues in units of the largest, r of them; τ node, ω weight, Q nodes; N reference samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfid.linalg.device_plan import DevicePlan
from fastfid.linalg.quadrature import node_count, sqrt_nodes
from fastfid.linalg.weight_plan import SLICE, SPAN, WeightPlan, weight_plan
from fastfid.swap.candidate_rows import CandidateRows, Spread
from fastfid.swap.options import EngineOptions
from fastfid.swap.phases import PhaseTimer
from fastfid.swap.prepared_reference import PreparedReference

# Shift of a singular spectrum, of a direction's variance v: w·w/(s + τ²) ≤ v/s of all new rows keeps a digit in float64
# (ε = 2e-16), and so does a removed row's 1 − w·w/(v + s).
SHIFT = 1e-15

# New rows with more than this many times a direction's variance set that direction's shift: below, w·w/v keeps
# its digits in float64.
GAINED = 1e3

# Singular spectra are resolved down to a root of this share of tol times the largest: a smaller one adds less.
RESOLVED = 1 / 20

# Relative error of a weight plan in units of tol.  Measured at d = 128 to 1,024, N = 1,500 to 5,000, tol = 2e-6: up to
# 100 it does not add to the error of a change (1.5e-5 to 7e-5 of the candidates' spread); 300 doubles some errors.
PLAN_TOL = 50

# The same of a singular spectrum, absolute: I − G_rr as small as LEAST_REMAINING in float64 keeps four digits.
SINGULAR_PLAN_TOL = 1e-12

# Sets of nodes kept with their weight plans, 0.1 s each at d = 2048: for subsets, single images, leaving one out.
NODE_SETS = 4


@dataclass(frozen=True, eq=False)
class Nodes:
    """A spectrum with the quadrature nodes for its changes; weights and plans are computed once and kept.

    spectrum  λ [r] float64, or λ + s
    tau       nodes τ [Q] float64, ascending
    omega     weights ω [Q] float64
    tol       relative error allowed to each 1/(λ + τ²) of the weight plan; float32 adds some 1e-7 of its own
    lo, hi    range of eigenvalues that the nodes are made for
    shift     largest s_i of a singular spectrum, else 0
    """

    spectrum: Tensor
    tau: Tensor
    omega: Tensor
    tol: float
    lo: float = math.nan
    hi: float = math.nan
    shift: float = 0.0
    _plans: dict[np.dtype[Any], WeightPlan] = field(default_factory=dict)
    _on_device: dict[torch.dtype, DevicePlan] = field(default_factory=dict)
    _weights: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tau)

    def plan(self, dtype: np.dtype[Any]) -> WeightPlan:
        """The weight plan in NumPy's `dtype`, for every route."""
        if dtype not in self._plans:
            spectrum, tau = self.spectrum.cpu().numpy(), self.tau.cpu().numpy()
            self._plans[dtype] = weight_plan(spectrum, tau, self.tol, SLICE, SPAN, dtype)
        return self._plans[dtype]

    def on_device(self, dtype: torch.dtype) -> DevicePlan:
        """The same plan as tensors where the spectrum is."""
        if dtype not in self._on_device:
            self._on_device[dtype] = DevicePlan.of(self.plan(_numpy_dtype(dtype)), self.spectrum.device)
        return self._on_device[dtype]

    def weights(self, dtype: torch.dtype) -> Tensor:
        """1/(λ_p + τ_q²) [Q, r] in `dtype`."""
        if dtype not in self._weights:
            self._weights[dtype] = (self.spectrum + self.tau[:, None].square()).reciprocal().to(dtype)
        return self._weights[dtype]


class NodeSets:
    """The last few `Nodes` that changes of one prepared reference needed, each made once."""

    def __init__(self, prepared: PreparedReference, options: EngineOptions):
        self._prepared, self._options = prepared, options
        self._kept: dict[tuple[Any, ...], Nodes] = {}

    def of(self, rows: CandidateRows, singular: bool, timer: PhaseTimer) -> Nodes | None:
        """Nodes for the spectra that these candidates may have; None where no eigenvalue can change.

        singular  shift the spectrum (this module's docstring)
        timer     takes the seconds of a new weight plan as phase "plan"
        """
        energy = energy_bound(rows, self._prepared.lambda_max)
        if self._prepared.rank == 0 or self._prepared.lambda_max + energy == 0 or sum(rows.sizes) == 0:
            return None
        hi = highest(self._prepared.lambda_max, energy)
        if singular:
            return self._singular(rows, hi, timer)
        return self.regular(hi, rows.sizes[0], rows.added.dtype, timer)

    def regular(self, hi: float, m_r: int, dtype: torch.dtype, timer: PhaseTimer) -> Nodes:
        """Nodes for spectra up to `hi` after a removal of m_r rows, for rows of this dtype.

        The lower end is an estimate (`remaining_share`).  Every removal is compared with it afterwards.
        """
        prepared = self._prepared
        lo = max(SHIFT * hi, prepared.lambda_min * remaining_share(prepared, m_r) / 2)
        return self._get((lo, hi), prepared.spectrum, 0.0, PLAN_TOL * self._options.tol, dtype, timer)

    def _singular(self, rows: CandidateRows, hi: float, timer: PhaseTimer) -> Nodes:
        """The shifted spectrum Λ + S and its nodes."""
        spectrum = self._prepared.spectrum
        shift = singular_shift(spectrum, rows)
        lo = max((RESOLVED * self._options.tol) ** 2 * hi, shift[shift > 0].min().item())
        key = (lo, hi, shift.cpu().numpy().tobytes())
        return self._get(key, spectrum + shift, shift.max().item(), SINGULAR_PLAN_TOL, rows.added.dtype, timer)

    def _get(
        self,
        key: tuple[Any, ...],
        spectrum: Tensor,
        shift: float,
        plan_tol: float,
        dtype: torch.dtype,
        timer: PhaseTimer,
    ) -> Nodes:
        """The nodes of a key (lo, hi, …), made with their weight plan unless they are kept."""
        if key not in self._kept:
            while len(self._kept) >= NODE_SETS:
                self._kept.pop(next(iter(self._kept)))  # the oldest
            lo, hi = key[:2]
            rule = sqrt_nodes(node_count(self._options.tol, lo, hi), lo, hi)
            tau, omega = (torch.from_numpy(values).to(spectrum.device) for values in rule)
            made = self._kept[key] = Nodes(spectrum, tau, omega, plan_tol, lo, hi, shift)
            if self._options.cpp:
                with timer.phase("plan"):
                    made.plan(_numpy_dtype(dtype))
            elif spectrum.device.type == "cuda" and not shift:
                with timer.phase("plan"):
                    made.on_device(dtype)
        return self._kept[key]


def energy_bound(rows: CandidateRows, lambda_max: float) -> float:
    """Bound on Σ|z_a|² over candidates: ‖z_a‖ ≤ ‖w_a‖ + γ√m_a |w̄_r|, and m_r |w̄_r|² ≤ λ_max as W_rᵀW_r ⪯ Λ."""
    if not rows.added.numel():
        return 0.0
    added = rows.added.detach()
    largest: float = torch.linalg.vector_norm(added, dim=(1, 2)).max().item()
    if not math.isfinite(largest):  # squares that only float64 holds, at ten times the cost
        largest = torch.linalg.vector_norm(added, dim=(1, 2), dtype=torch.float64).max().item()
    return energy_of(largest, rows.spread, rows.sizes, lambda_max)


def energy_of(largest: float, spread: Spread, sizes: tuple[int, int], lambda_max: float) -> float:
    """`energy_bound` of candidates whose added rows w_a have a norm ‖w_a‖ of at most `largest`."""
    m_r, m_a = sizes
    drift = spread.gamma * math.sqrt(m_a * lambda_max / m_r) if m_r and m_a else 0.0
    return (largest + drift) ** 2


def remaining_share(prepared: PreparedReference, m_r: int) -> float:
    """Share of the smallest eigenvalue that a removal of m_r random rows leaves, at least 0.

    The removal takes the largest eigenvalue of W_r Λ⁻¹ W_rᵀ, a corner of a projection of rank r among N rows.  Its
    spectrum ends at (√(a(1−b)) + √(b(1−a)))² with a = r/N and b = m_r/N (Wachter 1980); 3·N^(−2/3) is for fluctuation.
    """
    a, b = min(1.0, prepared.rank / prepared.count), m_r / prepared.count
    edge = (math.sqrt(a * (1 - b)) + math.sqrt(b * (1 - a))) ** 2
    fluctuation: float = 3 * float(prepared.count) ** (-2 / 3)
    return max(0.0, 1 - edge - fluctuation)


def singular_shift(spectrum: Tensor, rows: CandidateRows) -> Tensor:
    """s_i [r] float64 of this module's docstring for the spectrum λ [r]."""
    new = torch.linalg.vector_norm(rows.added.detach(), dim=1).to(torch.float64).square()
    gained = new.amax(0) if new.numel() else torch.zeros_like(spectrum)
    # rounded up to 4^j, so that new rows of about one size keep one set of nodes
    gained = torch.where(gained > GAINED * spectrum, 4 ** gained.log2().div(2).ceil(), 0.0)
    return SHIFT * torch.maximum(spectrum, gained)


def highest(lambda_max: float, energy: float) -> float:
    """λ_max + energy rounded up to 2·4^j, so that changes of about one size keep one set of nodes."""
    hi = 2.0 if lambda_max else 4.0 ** math.ceil(math.log(energy, 4))
    while hi < lambda_max + energy:
        hi *= 4
    return hi


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return np.dtype(str(dtype).removeprefix("torch."))
