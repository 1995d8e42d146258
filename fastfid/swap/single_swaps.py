"""Equation 3 where a candidate removes and adds one row at most."""

import math
from collections.abc import Sequence

import torch

from fastfid import backend as backends
from fastfid.swap.candidate_rows import CandidateRows
from fastfid.swap.checks import check_leverage
from fastfid.swap.log_determinants import TraceChange
from fastfid.swap.nodes import Nodes


def single_swaps_by_torch(rows: CandidateRows, nodes: Nodes, candidate_ids: Sequence[int]) -> TraceChange:
    """Products of rows times the node weights, [b, r]×[r, Q]."""
    w_r, w_a = (w[:, 0] if w.shape[1] else None for w in rows.spread_out())
    weights = nodes.weights(rows.added.dtype).T

    def product(a, b):
        return 0.0 if a is None or b is None else ((a * b) @ weights).to(torch.float64)

    return _trace_change_of(product(w_r, w_r), product(w_r, w_a), product(w_a, w_a), nodes, candidate_ids)


def single_swaps_by_cpp(rows: CandidateRows, nodes: Nodes, candidate_ids: Sequence[int]) -> TraceChange:
    """The same products of the unspread rows in one pass (csrc/cpu), spread by equation 2 afterwards."""
    reference, index, added, (alpha, beta, gamma) = rows.arrays()
    sums = backends.extension().swap_singles(reference, index, added, nodes.plan(added.dtype), torch.get_num_threads())
    rr, ra, aa = torch.from_numpy(sums).unbind(1)
    if not index.shape[1]:
        return _trace_change_of(0.0, 0.0, (1 + beta) ** 2 * aa, nodes, candidate_ids)
    g_rr = (1 + alpha) ** 2 * rr
    if not added.shape[1]:
        return _trace_change_of(g_rr, 0.0, 0.0, nodes, candidate_ids)
    g_ra = (1 + alpha) * ((1 + beta) * ra + gamma * rr)
    g_aa = (1 + beta) ** 2 * aa + 2 * (1 + beta) * gamma * ra + gamma**2 * rr
    return _trace_change_of(g_rr, g_ra, g_aa, nodes, candidate_ids)


def _trace_change_of(g_rr, g_ra, g_aa, nodes: Nodes, candidate_ids: Sequence[int]) -> TraceChange:
    """Δ [b] and 1 − g_rr at the first node [b] from the entries of G, each [b, Q] float64 or 0 for a missing row.

    det(J + G) = −[(1 + g_aa)(1 − g_rr) + g_ra²]; the bracket minus one is summed and passed to log1p.
    """
    remaining = None
    if isinstance(g_rr, torch.Tensor):
        remaining = 1 - g_rr.detach()[:, 0]  # leverages fall with τ
        check_leverage(1 - remaining, candidate_ids)
    change = g_aa - g_rr - g_aa * g_rr + g_ra * g_ra
    # rounding may carry a leverage to 1 or past it; half an ε of what is left keeps the logarithm finite
    least = torch.finfo(torch.float64).eps / 2 - 1
    return torch.log1p(change.clamp(min=least)) @ nodes.omega / math.pi, remaining
