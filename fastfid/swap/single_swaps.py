"""Equation 3 where a candidate removes and adds at most one row: three products of rows instead of a Gram matrix.

With one row removed and one added

    −det(J + G) = (1 + g_aa)(1 − g_rr) + g_ra² = 1 + (g_aa − g_rr − g_aa g_rr + g_ra²).                        (7)

Each g at all nodes is one product of rows, [b, r], times
the weights 1/(λ + τ²), [r, Q]: next to nothing beside the projection of the rows.

Legend: as in swap/log_determinants.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastfid import backend as backends
from fastfid.swap.candidate_rows import CandidateRows
from fastfid.swap.checks import check_leverage
from fastfid.swap.nodes import Nodes
from fastfid.swap.trace_change import TraceChange


def trace_change_of_singles(rows: CandidateRows, nodes: Nodes, backend: str, checked: bool = True) -> TraceChange:
    """Equation 3 for m_r ≤ 1 and m_a ≤ 1: by the extension for "cpp", else in torch operations.

    checked  False leaves a leverage above one to the caller, who sees it in `remaining`
    """
    return _by_cpp(rows, nodes) if backend == "cpp" else _by_torch(rows, nodes, checked)


def _by_torch(rows: CandidateRows, nodes: Nodes, checked: bool) -> TraceChange:
    """Products of rows times the node weights, [b, r]×[r, Q]."""
    w_r, w_a = (w[:, 0] if w.shape[1] else None for w in rows.spread_out())
    weights = nodes.weights(rows.added.dtype).T

    def product(a: Tensor | None, b: Tensor | None) -> Tensor | float:
        return 0.0 if a is None or b is None else ((a * b) @ weights).to(torch.float64)

    return _trace_change_of(product(w_r, w_r), product(w_r, w_a), product(w_a, w_a), rows, nodes, checked)


def _by_cpp(rows: CandidateRows, nodes: Nodes) -> TraceChange:
    """The same products of the unspread rows in one pass (csrc/cpu), spread by equation 2 afterwards."""
    reference, index, added, (alpha, beta, gamma) = rows.arrays()
    sums = backends.extension().swap_singles(reference, index, added, nodes.plan(added.dtype), torch.get_num_threads())
    rr, ra, aa = torch.from_numpy(sums).unbind(1)
    m_r, m_a = rows.sizes
    if not m_r:
        return _trace_change_of(0.0, 0.0, (1 + beta) ** 2 * aa, rows, nodes)
    g_rr = (1 + alpha) ** 2 * rr
    if not m_a:
        return _trace_change_of(g_rr, 0.0, 0.0, rows, nodes)
    g_ra = (1 + alpha) * ((1 + beta) * ra + gamma * rr)
    g_aa = (1 + beta) ** 2 * aa + 2 * (1 + beta) * gamma * ra + gamma**2 * rr
    return _trace_change_of(g_rr, g_ra, g_aa, rows, nodes)


def _trace_change_of(
    g_rr: Tensor | float,
    g_ra: Tensor | float,
    g_aa: Tensor | float,
    rows: CandidateRows,
    nodes: Nodes,
    checked: bool = True,
) -> TraceChange:
    """Δ and 1 − g_rr at the first node from the entries of G, each [b, Q] float64, or 0 for a missing row.

    Equation 7 without its 1 is passed to log1p, which keeps the digits of a small change.
    """
    remaining = None
    if isinstance(g_rr, Tensor):
        remaining = 1 - g_rr.detach()[:, 0]  # leverages fall with τ
        if checked:
            check_leverage(1 - remaining, rows.ids)
    change = g_aa - g_rr - g_aa * g_rr + g_ra * g_ra
    assert isinstance(change, Tensor), "no row is removed and none added"
    # rounding may carry a leverage to 1 or past it; half an ε of what is left keeps the logarithm finite
    least = torch.finfo(torch.float64).eps / 2 - 1
    return TraceChange(torch.log1p(change.clamp(min=least)) @ nodes.omega / math.pi, remaining)
