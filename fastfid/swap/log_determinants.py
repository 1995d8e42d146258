"""Equation 3: the change of tr √ under a swap, by log-determinants of k×k matrices.

With c = (N−1)/(n'−1) and the rows w = P z/√(N−1) of W_r (removed) and W_a (added), the matrix R Σ' Rᵀ of the changed
set has the eigenvalues of c(Λ − W_rᵀW_r + W_aᵀW_a), and

    Δ = tr √(Λ − W_rᵀW_r + W_aᵀW_a) − tr √Λ = (1/π) ∫₀^∞ log |det(J + G(τ))| dτ,                                (3)
    G(τ) = W (Λ + τ²)⁻¹ Wᵀ,   W = [W_r; W_a],   J = diag(−1 … −1, +1 … +1),

a k×k determinant, k = m_r + m_a (linalg/quadrature.py derives the integral and its nodes).  J + G is quasi-definite.
Its leading block −(I − G_rr) is negative definite, because what is left after the removal is still a covariance, and
the Schur complement of that block is I + G_aa plus a positive term.  So LDLᵀ exists without pivoting: m_r negative
pivots, then m_a positive ones.  It is accurate while I − G_rr is not nearly singular, that is while the rows that are
left span what Λ spans.  Every route therefore also returns the smallest eigenvalue of I − G_rr at the first node.

Legend: b candidates, k = m_r + m_a changed rows of a candidate, r rank of Λ, Q nodes τ with weights ω.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastfid import backend as backends
from fastfid.swap.by_plan import trace_change_by_plan
from fastfid.swap.candidate_rows import CandidateRows
from fastfid.swap.checks import LEVERAGE_SLACK, check_leverage, raise_inconsistent
from fastfid.swap.nodes import Nodes
from fastfid.swap.routes import choose
from fastfid.swap.trace_change import TraceChange, smallest_eigenvalue


def swap_trace_change(
    w_r: Tensor, w_a: Tensor, spectrum: Tensor, tau: Tensor, omega: Tensor, backend: str = "auto", tol: float = 1e-6
) -> Tensor:
    """Δ of equation 3 [b] float64 by log-determinants.

    w_r [b, m_r, r], w_a [b, m_a, r] float32 or float64; spectrum λ [r], nodes τ [Q], weights ω [Q] float64; `tol`: see
    `Nodes`.  Differentiable, which takes the torch route.  ValueError for rows that are no part of the spectrum.
    """
    rows, needs_grad = CandidateRows.of(w_r, w_a), w_r.requires_grad or w_a.requires_grad
    choice = choose(backend, w_a.device, sum(rows.sizes), False, w_a.dtype, needs_grad)
    name, nodes = "torch" if needs_grad else choice.name, Nodes(spectrum, tau, omega, tol)
    by_nodes = trace_change_by_plan if name == "triton" else trace_change_by_log_determinants
    found = by_nodes(rows, nodes, name).change
    wrong = found.detach().isnan().nonzero()
    if len(wrong):
        raise_inconsistent(int(wrong[0, 0]), "a pivot has the wrong sign")
    return found


def swap_trace_change_ref(
    w_r: Tensor, w_a: Tensor, spectrum: Tensor, tau: Tensor, omega: Tensor, backend: str = "auto", tol: float = 1e-6
) -> Tensor:
    """Δ of equation 3 as it is written, float64, LU with pivoting: the reference of `swap_trace_change`."""
    w = torch.cat([w_r, w_a], 1).to(torch.float64)
    signs = torch.cat([-w.new_ones(w_r.shape[1]), w.new_ones(w_a.shape[1])])
    total = w.new_zeros(w.shape[0])
    for node, weight in zip(tau, omega, strict=True):
        gram = (w / (spectrum + node**2)) @ w.mT
        total = total + weight * torch.linalg.slogdet(signs.diag() + gram).logabsdet
    return total / math.pi


def trace_change_by_log_determinants(rows: CandidateRows, nodes: Nodes, backend: str) -> TraceChange:
    """Equation 3 by "cpp", or else by torch, node by node, which is differentiable and pivots."""
    return trace_change_by_cpp(rows, nodes) if backend == "cpp" else trace_change_by_torch(rows, nodes)


def trace_change_by_torch(rows: CandidateRows, nodes: Nodes) -> TraceChange:
    """Batched torch: Gram matrices in the rows' dtype, determinants in float64, one node at a time."""
    w_r, w_a = rows.spread_out()
    m_r = w_r.shape[1]
    w = torch.cat([w_r, w_a], 1)
    signs = torch.ones(w.shape[1], dtype=torch.float64, device=w.device)
    signs[:m_r] = -1
    total, remaining = torch.zeros(w.shape[0], dtype=torch.float64, device=w.device), None
    least = nodes.tau.min().item()
    for node, weight in zip(nodes.tau.tolist(), nodes.omega.tolist(), strict=True):
        scaled = w * (nodes.spectrum + node**2).rsqrt().to(w.dtype)
        gram = (scaled @ scaled.mT).to(torch.float64)  # G = (W D^½)(W D^½)ᵀ
        if m_r and node == least:  # leverages fall with τ
            remaining = _remaining_of(gram.detach()[:, :m_r, :m_r], rows)
        total = total + weight * torch.linalg.slogdet(gram + signs.diag()).logabsdet
    return TraceChange(total / math.pi, remaining)


def trace_change_by_cpp(rows: CandidateRows, nodes: Nodes) -> TraceChange:
    """The fused kernel of csrc/cpu: Gram, LDLᵀ and log-determinant without writing G."""
    arrays = rows.arrays()
    plan = nodes.plan(arrays[2].dtype)
    logdets, remaining, _, _ = backends.extension().swap_logdet(*arrays, plan, LEVERAGE_SLACK, torch.get_num_threads())
    return TraceChange(torch.from_numpy(logdets) @ nodes.omega / math.pi, torch.from_numpy(remaining))


def _remaining_of(gram: Tensor, rows: CandidateRows) -> Tensor:
    """Smallest eigenvalue of I − G_rr [b] for G_rr [b, m_r, m_r] float64, from above; 0 if none is above 0.

    ValueError if rounding does not explain an eigenvalue below 0.
    """
    size = gram.shape[-1]
    lower, failed = torch.linalg.cholesky_ex(torch.eye(size, dtype=gram.dtype, device=gram.device) - gram)
    wrong = failed.nonzero().flatten()
    if len(wrong):  # eigenvalues of these alone: some devices compute those of a batch one matrix at a time
        check_leverage(torch.linalg.eigvalsh(gram[wrong])[:, -1], [rows.ids[place] for place in wrong.tolist()])
    return smallest_eigenvalue(lower, failed != 0)
