"""Equation 4: the change of the Fréchet distance from its parts.

The change itself is summed, never the difference of two distances.  With c = (N−1)/(n'−1) and
δ = (m_a ȳ_a − m_r ȳ_r)/n',

    FD' − FD = |δ|² − 2(μ_r−μ_g)·δ + (tr Σ' − tr Σ_g) − 2(√c Δ + (√c − 1) tr √Λ).                              (4)

Legend: N reference samples, n' = N − m_r + m_a rows of the changed set, b candidates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from fastfid.swap.candidate_rows import FeatureSums
from fastfid.swap.prepared_reference import PreparedReference
from fastfid.swap.report import Report


class ChunkChange(NamedTuple):
    """Changes of a chunk's candidates and how they were computed.

    change     [b] float64
    remaining  [b] float64 smallest eigenvalue of I − G_rr at the first node; None where it is not known
    report     nodes, choice and repairs; no seconds
    """

    change: Tensor
    remaining: Tensor | None
    report: Report


def distance_change(
    sums: FeatureSums, trace_change: Tensor, sizes: tuple[int, int], prepared: PreparedReference
) -> Tensor:
    """Equation 4 [b] float64 for swaps of m_r rows for m_a; Δ of equation 3 [b] in units of √scale."""
    m_r, m_a = sizes
    final = prepared.count - m_r + m_a
    shrink = math.sqrt((prepared.count - 1) / (final - 1))  # √c
    delta_square, delta_gap = sums.sum_square / final**2, sums.sum_gap / final
    size_change = prepared.count - final
    traces = (size_change * prepared.trace + sums.norm_change - final * delta_square) / (final - 1)
    roots = shrink * (math.sqrt(prepared.scale) * trace_change) + (shrink - 1) * prepared.root_trace
    return delta_square - 2 * delta_gap + traces - 2 * roots
