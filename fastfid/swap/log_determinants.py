"""Equation 3 by log-determinants of k×k matrices."""

import math
from collections.abc import Sequence

import torch

from fastfid import backend as backends
from fastfid import triton_kernels
from fastfid.swap.candidate_rows import CandidateRows
from fastfid.swap.checks import LEVERAGE_SLACK, check_leverage, raise_inconsistent
from fastfid.swap.nodes import Nodes
from fastfid.swap.routes import choose

REMAINING_STEPS = 3  # as in csrc/cpu/factor_kernel.h


def swap_trace_change(w_r, w_a, spectrum, tau, omega, backend: str = "auto", tol: float = 1e-6) -> torch.Tensor:
    """Δ of equation 3 [b] float64 by log-determinants.

    w_r [b, m_r, r], w_a [b, m_a, r] float32 or float64; spectrum λ [r], nodes τ [Q], weights ω [Q] float64; `tol`: see
    `Nodes`.  Differentiable, which takes the torch route.
    """
    needs_grad = w_r.requires_grad or w_a.requires_grad
    choice = choose(backend, w_a.device, w_r.shape[1] + w_a.shape[1], False, w_a.dtype, needs_grad)
    compute = TRACE_CHANGES["torch" if needs_grad else choice.name]
    candidate_ids = range(w_r.shape[0])
    found, _ = compute(CandidateRows.of(w_r, w_a), Nodes(spectrum, tau, omega, tol), candidate_ids)
    wrong = found.detach().isnan().nonzero()
    if len(wrong):
        raise_inconsistent(candidate_ids[wrong[0, 0].item()], "a pivot has the wrong sign")
    return found


def swap_trace_change_ref(w_r, w_a, spectrum, tau, omega, backend: str = "auto", tol: float = 1e-6) -> torch.Tensor:
    """Δ of equation 3 as it is written, float64, LU with pivoting: the reference of `swap_trace_change`."""
    w = torch.cat([w_r, w_a], 1).to(torch.float64)
    signs = torch.cat([-w.new_ones(w_r.shape[1]), w.new_ones(w_a.shape[1])])
    total = w.new_zeros(w.shape[0])
    for node, weight in zip(tau, omega, strict=True):
        gram = (w / (spectrum + node**2)) @ w.mT
        total = total + weight * torch.linalg.slogdet(signs.diag() + gram).logabsdet
    return total / math.pi


# Δ of equation 3 [b] and the smallest eigenvalue of I − G_rr at the first node [b], None without removed rows.
TraceChange = tuple[torch.Tensor, torch.Tensor | None]


def by_torch(rows: CandidateRows, nodes: Nodes, candidate_ids: Sequence[int]) -> TraceChange:
    """Batched torch: Gram matrices in the rows' dtype, determinants in float64, one node at a time."""
    w_r, w_a = rows.spread_out()
    removed = w_r.shape[1]
    w = torch.cat([w_r, w_a], 1)
    signs = torch.ones(w.shape[1], dtype=torch.float64, device=w.device)
    signs[:removed] = -1
    total, remaining = torch.zeros(w.shape[0], dtype=torch.float64, device=w.device), None
    least = nodes.tau.min().item()
    for node, weight in zip(nodes.tau.tolist(), nodes.omega.tolist(), strict=True):
        scaled = w * (nodes.spectrum + node**2).rsqrt().to(w.dtype)
        gram = (scaled @ scaled.mT).to(torch.float64)  # G = (W D^½)(W D^½)ᵀ
        if removed and node == least:  # leverages fall with τ
            remaining = _remaining_of(gram.detach()[:, :removed, :removed], candidate_ids)
        total = total + weight * torch.linalg.slogdet(gram + signs.diag()).logabsdet
    return total / math.pi, remaining


def by_cpp(rows: CandidateRows, nodes: Nodes, candidate_ids: Sequence[int]) -> TraceChange:
    """The fused kernel of csrc/cpu: Gram, LDLᵀ and log-determinant without writing G."""
    arrays = rows.arrays()
    plan = nodes.plan(arrays[2].dtype)
    logdets, remaining, _, _ = backends.extension().swap_logdet(*arrays, plan, LEVERAGE_SLACK, torch.get_num_threads())
    return torch.from_numpy(logdets) @ nodes.omega / math.pi, torch.from_numpy(remaining)


def by_triton(rows: CandidateRows, nodes: Nodes, candidate_ids: Sequence[int]) -> TraceChange:
    """One program of fastfid/triton_kernels/swap_logdet.py a candidate and node, float32."""
    kernel, (w_r, w_a) = triton_kernels.load("swap_logdet"), rows.spread_out()
    logdets, wrong = kernel.swap_logdet(w_r, w_a, nodes.spectrum, nodes.tau.square(), LEVERAGE_SLACK)
    logdets = logdets.where(wrong == 0, math.nan)
    scaled = w_r * (nodes.spectrum + nodes.tau[0].square()).rsqrt().to(w_r.dtype)
    remaining = _remaining_of((scaled @ scaled.mT).to(torch.float64), candidate_ids) if w_r.shape[1] else None
    return logdets @ nodes.omega / math.pi, remaining


TRACE_CHANGES = {
    "torch": by_torch,
    "cpp": by_cpp,
    "triton": by_triton,
}


def _remaining_of(gram: torch.Tensor, candidate_ids: Sequence[int]) -> torch.Tensor:
    """Smallest eigenvalue of I − G_rr [b] for G_rr [b, m_r, m_r] float64, from above, 0 where it is none above 0.

    Inverse iteration as in csrc/cpu/factor_kernel.h; ValueError where rounding does not explain what is below 0.
    """
    size = gram.shape[-1]
    lower, failed = torch.linalg.cholesky_ex(torch.eye(size, dtype=gram.dtype, device=gram.device) - gram)
    if failed.any():
        check_leverage(torch.linalg.eigvalsh(gram)[:, -1], candidate_ids)
    places = torch.arange(1, size + 1, dtype=gram.dtype, device=gram.device)
    x = (0.6180339887498949 * places.square()).remainder(1)[:, None].expand(len(gram), -1, 1)
    for _ in range(REMAINING_STEPS):
        x = torch.cholesky_solve(x / torch.linalg.vector_norm(x, dim=1, keepdim=True), lower)
    return torch.where(failed == 0, 1 / torch.linalg.vector_norm(x, dim=1)[:, 0], 0.0)
