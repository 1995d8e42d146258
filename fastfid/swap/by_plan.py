"""Equation 3 on a device: Gram matrices by the weight plan, combined to the nodes, then factored.

    triton  three tensor-core products of tf32 for a float32 one, and factors in registers or in shared memory
    torch   batched products in the rows' dtype, and two Cholesky factors in float64; also the gradient

The factors.  With A = I − G_rr, B = G_ra and the Schur complement S = I + G_aa + Bᵀ A⁻¹ B,

    log|det(J + G)| = log det A + log det S,      (J + G)⁻¹ = [[· , ·], [S⁻¹ Bᵀ A⁻¹, S⁻¹]].

The gradient.  ∂Δ/∂W = (2/π) Σ_q ω_q (J + G_q)⁻¹ W (Λ + τ_q²)⁻¹ needs the inverse's added rows alone.  They are combined
from the nodes back to the functions, as the Gram matrices were combined from the functions to the nodes.

Nothing here waits for the device: a matrix that has no factor gives NaN, which the caller sees with all else.

Legend: b candidates, m_r rows removed and m_a added, k = m_r + m_a, F functions, Q nodes, r rank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastfid import triton_kernels
from fastfid.linalg.device_plan import DevicePlan
from fastfid.swap.candidate_rows import CandidateRows
from fastfid.swap.checks import LEVERAGE_SLACK
from fastfid.swap.nodes import Nodes
from fastfid.swap.trace_change import TraceChange, smallest_eigenvalue


def trace_change_by_plan(rows: CandidateRows, nodes: Nodes, backend: str, with_slope: bool = False) -> TraceChange:
    """Equation 3 [b] by "triton" or "torch", NaN where a factor fails; `with_slope` by torch only."""
    plan, m_r = nodes.on_device(rows.added.dtype), rows.sizes[0]
    w = torch.cat(rows.spread_out(), 1)
    by_triton = backend == "triton"
    grams = node_grams(w, plan, by_triton and w.shape[1] <= triton_kernels.load("plan_grams").MAX_K)
    if by_triton and _factored_by_kernel(w):
        logdets, remaining = triton_kernels.load("ldl_logdet").ldl_logdet(grams, m_r, LEVERAGE_SLACK)
        return TraceChange(logdets @ nodes.omega / math.pi, remaining if m_r else None)
    found = factors(grams.to(torch.float64), m_r)
    slope = None
    if with_slope:
        slope = _slope(w, found, nodes, plan, m_r)
        slope.add_(slope.mean(1, keepdim=True), alpha=rows.spread.beta)  # z_a = w_a + β w̄_a + …
    remaining = smallest_eigenvalue(found.lower[:, 0], found.failed[:, 0]) if m_r else None
    return TraceChange(found.logdets @ nodes.omega / math.pi, remaining, slope)


def _factored_by_kernel(w: Tensor) -> bool:
    """Whether csrc/cuda or Triton factors matrices of this order."""
    kernel, k = triton_kernels.load("ldl_logdet"), w.shape[1]
    return k <= kernel.MAX_K or not kernel.factor_obstacle(k, w.dtype, w.device)


def node_grams(w: Tensor, plan: DevicePlan, by_triton: bool) -> Tensor:
    """G of every candidate and node, [b, Q, k, k], for rows w [b, k, r]."""
    batch, k, _ = w.shape
    if by_triton:
        kernel = triton_kernels.load("plan_grams")
        grams = kernel.plan_grams(w, plan.functions, plan.first, plan.stop, plan.offset)
    else:
        grams = w.new_empty((batch, len(plan), k, k))
        for part in plan.slices:
            sliced = w[:, :, part.begin : part.end]
            scaled = _scaled(sliced, plan.functions_of(part))
            grams[:, part.one : part.last] = (scaled @ sliced.mT).view(batch, -1, k, k)
    of_nodes: Tensor = plan.combine @ grams.view(batch, len(plan), k * k)
    return of_nodes.view(batch, -1, k, k)


def _scaled(sliced: Tensor, functions: Tensor) -> Tensor:
    """Rows [b, k, p] times each of the functions [n, p]: [b, n·k, p]."""
    return (sliced[:, None] * functions[None, :, None]).flatten(1, 2)


class FactorPair(NamedTuple):
    """Factors of A and S and what follows from them.

    logdets  [b, Q] log|det(J + G)|, NaN where a factor fails
    lower    [b, Q, m_r, m_r] Cholesky factor L of A
    half     [b, Q, m_r, m_a] L⁻¹ B
    schur    [b, Q, m_a, m_a] Cholesky factor of S
    failed   [b, Q] whether A has no factor
    """

    logdets: Tensor
    lower: Tensor
    half: Tensor
    schur: Tensor
    failed: Tensor


def factors(gram: Tensor, m_r: int) -> FactorPair:
    """The two Cholesky factors of J + gram, [b, Q, k, k] float64."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    lower, info = torch.linalg.cholesky_ex(eye[:m_r, :m_r] - gram[..., :m_r, :m_r])
    half = torch.linalg.solve_triangular(lower, gram[..., :m_r, m_r:], upper=False)
    schur, info_a = torch.linalg.cholesky_ex(eye[m_r:, m_r:] + gram[..., m_r:, m_r:] + half.mT @ half)
    diagonals = torch.cat([f.diagonal(dim1=-2, dim2=-1) for f in (lower, schur)], -1)
    logdets = torch.where((info == 0) & (info_a == 0), 2 * diagonals.log().sum(-1), math.nan)
    return FactorPair(logdets, lower, half, schur, info != 0)


def _slope(w: Tensor, found: FactorPair, nodes: Nodes, plan: DevicePlan, m_r: int) -> Tensor:
    """∂Δ/∂z_a [b, m_a, r] in the dtype of the rows w [b, k, r]."""
    batch, k, _ = w.shape
    eye = torch.eye(k - m_r, dtype=found.schur.dtype, device=w.device)
    root = torch.linalg.solve_triangular(found.schur, eye.expand_as(found.schur), upper=False)
    inverse = root.mT @ root  # S⁻¹; by products, as some devices invert the matrices of a batch one at a time
    removed = torch.linalg.solve_triangular(found.lower.mT, found.half, upper=True)  # A⁻¹ B
    rows = torch.cat([inverse @ removed.mT, inverse], -1).to(w.dtype)  # [b, Q, m_a, k]
    weights = (plan.combine * (nodes.omega[:, None] * (2 / math.pi)).to(w.dtype)).T  # [F, Q]
    rows = (weights @ rows.flatten(2)).view(batch, len(plan), k - m_r, k)
    slope = w.new_empty((batch, k - m_r, w.shape[2]))
    for part in plan.slices:
        scaled = _scaled(w[:, :, part.begin : part.end], plan.functions_of(part))
        slope[:, :, part.begin : part.end] = rows[:, part.one : part.last].transpose(1, 2).flatten(2) @ scaled
    return slope


def plan_bytes(
    plan: DevicePlan, sizes: tuple[int, int], rank: int, item: int, by_triton: bool, with_slope: bool
) -> int:
    """Bytes that a candidate takes here at most: rows and their copies, Gram matrices, factors, slope."""
    (m_r, m_a), nodes = sizes, len(plan.combine)
    k = m_r + m_a
    rows = item * rank * (3 * k + m_a)  # looked up, spread out, joined; and the added ones that came
    grams = item * (len(plan) + nodes) * k**2
    if by_triton:
        return rows + grams + item * (2 * k) ** 2  # and an inverse, in a tile of the next power of two
    widest = max((part.last - part.one) * (part.end - part.begin) for part in plan.slices)
    scaled = 2 * item * widest * k
    pairs = 8 * nodes * 5 * k**2  # float64 of the matrices, their parts and their factors
    slope = (item * (2 * m_a * rank + 2 * len(plan) * m_a * k) + 8 * nodes * 2 * m_a * k) if with_slope else 0
    return rows + max(grams + scaled, item * nodes * k**2 + pairs) + slope
