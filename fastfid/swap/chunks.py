"""Changes of many candidates, chunk by chunk: rows, nodes, determinants, and the repair of rare directions.

Rare directions.  A feature that is active in a few rows is lost with them, although N is large and Λ regular.  Every
removal therefore returns the smallest eigenvalue σ of I − G_rr at the first node: Λ − W_rᵀW_r ⪰ σΛ up to that
node's τ².  A candidate whose σλ_min falls below the nodes' range is computed again in float64, with the shift S of
swap/nodes.py and pivoted LU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastfid.linalg.iterative_roots import MATRICES_PER_PAIR
from fastfid.swap.candidate_rows import CandidateRows, Candidates, RowBuffers, candidate_rows
from fastfid.swap.distance_change import ChunkChange, distance_change
from fastfid.swap.gradient import trace_change_with_slope, with_gradient
from fastfid.swap.log_determinants import trace_change_by_log_determinants
from fastfid.swap.nodes import Nodes, NodeSets
from fastfid.swap.phases import PhaseTimer
from fastfid.swap.prepared_reference import PreparedReference
from fastfid.swap.report import Report
from fastfid.swap.routes import Route
from fastfid.swap.single_swaps import trace_change_of_singles
from fastfid.swap.trace_change import TraceChange
from fastfid.swap.whole_matrices import trace_change_by_whole_matrices

# What a candidate takes beside its rows: indices, sums and log-determinants or products at up to 100 nodes.
CANDIDATE_BYTES = 3 << 10

# Largest chunk in host memory, for any workspace; the engine keeps it, as fresh pages cost more than the
# arithmetic done in them.  Measured at d = 2048 over 4 to 256 MiB on two busy Zen 3 cores: 16 and 32 MiB were fastest,
# 256 MiB was slower by 14% for 50-swaps and by 50% for single images.
HOST_CHUNK = 32 << 20  # bytes

# Safety factor on the lower end of the nodes' range: inverse iteration overestimates the smallest eigenvalue of
# I − G_rr by a few percent where it stands apart.
REMAINING_MARGIN = 1.2

# Below this I − G_rr, whose entries err by 1e-6 (float32) and 1e-15, keeps fewer than three, or seven, digits.
LEAST_REMAINING = {torch.float32: 1e-3, torch.float64: 1e-8}


@dataclass(frozen=True, eq=False)
class Workbench:
    """What one call works with.

    buffers, nodes  kept by the engine for its next calls
    timer           of this call
    workspace       bytes of temporary memory
    """

    buffers: RowBuffers
    nodes: NodeSets
    timer: PhaseTimer
    workspace: int


def changes_of(
    candidates: Candidates, route: Route, prepared: PreparedReference, bench: Workbench
) -> tuple[Tensor, Report]:
    """Equation 4 for every candidate [B] float64, and what it took."""
    changes, report = [candidates.added.new_zeros(0, dtype=torch.float64)], Report()
    step = candidates_per_chunk(candidates, route, prepared, bench.workspace)
    for start in range(0, len(candidates), step):
        chunk = candidates[start : start + step]
        found = _change_once(chunk, route, prepared, bench)
        rare = _rare(found, route, prepared)
        if len(rare):
            found = recomputed(found, rare, chunk, route, prepared, bench)
        changes.append(found.change)
        report = report.then(found.report)
    return torch.cat(changes), replace(report, seconds=bench.timer.seconds)


def _change_once(candidates: Candidates, route: Route, prepared: PreparedReference, bench: Workbench) -> ChunkChange:
    """Equation 4 by the route for candidates that fit the workspace."""
    with torch.set_grad_enabled(candidates.needs_grad and not route.gradient_by_cpp):
        with bench.timer.phase("project"):
            rows, centred = candidate_rows(candidates, route, prepared, bench.buffers)
        with bench.timer.phase("logdet"):
            found, report = _trace_change(rows, route, prepared, bench)
        change = distance_change(centred.sums, found.change, rows.sizes, prepared)
    if found.slope is not None:
        change = with_gradient(candidates.added, change, centred, found.slope, rows.sizes[0], prepared)
    return ChunkChange(change, found.remaining, report)


def _trace_change(
    rows: CandidateRows, route: Route, prepared: PreparedReference, bench: Workbench
) -> tuple[TraceChange, Report]:
    """Equation 3 [b] in units of √scale, and what it took."""
    if route.method == "logdet":
        nodes = bench.nodes.of(rows, route.singular, bench.timer)
        return _integrated(rows, nodes, route), Report.of(nodes, None if nodes is None else route.choice)
    change, clipped = trace_change_by_whole_matrices(rows, prepared.spectrum, route.method, route.backend)
    return TraceChange(change), Report(route.choice, clipped=clipped)


def _integrated(rows: CandidateRows, nodes: Nodes | None, route: Route) -> TraceChange:
    """Equation 3 [b] by log-determinants at the nodes, None where no eigenvalue can change."""
    if nodes is None:  # zeros, with a gradient of zeros
        slope = torch.zeros_like(rows.added) if route.gradient_by_cpp else None
        return TraceChange(rows.added.sum((1, 2), dtype=torch.float64) * 0, slope=slope)
    if max(rows.sizes) > 1 and not route.gradient_by_cpp:
        return trace_change_by_log_determinants(rows, nodes, route.backend)
    if route.gradient_by_cpp:
        return trace_change_with_slope(rows, nodes)
    return trace_change_of_singles(rows, nodes, route.backend)


def _rare(found: ChunkChange, route: Route, prepared: PreparedReference) -> Tensor:
    """Candidates [n] int64 whose removal leaves too little for the nodes' range, or for LDLᵀ to keep its digits."""
    if found.remaining is None or found.report.nodes is None:
        return torch.empty(0, dtype=torch.int64)
    return is_rare(found.change, found.remaining, found.report.nodes, route, prepared).nonzero()[:, 0]


def is_rare(change: Tensor, remaining: Tensor, nodes: Nodes, route: Route, prepared: PreparedReference) -> Tensor:
    """Whether a removal leaves too little of a candidate [b] bool; `change` and `remaining` [b] float64."""
    least = LEAST_REMAINING[route.dtype]
    if not route.singular:
        least = max(least, REMAINING_MARGIN * nodes.lo / prepared.lambda_min)
    return ~(remaining >= least) | change.detach().isnan()


def recomputed(
    once: ChunkChange,
    rare: Tensor,
    candidates: Candidates,
    route: Route,
    prepared: PreparedReference,
    bench: Workbench,
) -> ChunkChange:
    """`once` with the candidates at `rare` [n] computed as of a singular spectrum, by pivoted LU."""
    few, route, changes, report = candidates[rare], route.for_rare(), [], once.report
    step = candidates_per_chunk(few, route, prepared, bench.workspace)
    for start in range(0, len(few), step):
        found = _change_once(few[start : start + step], route, prepared, bench)
        changes.append(found.change)
        report = report.then(found.report)
    change = once.change.index_put((rare,), torch.cat(changes))
    return once._replace(change=change, report=replace(once.report, shift=report.shift, recomputed=len(rare)))


def candidates_per_chunk(candidates: Candidates, route: Route, prepared: PreparedReference, workspace: int) -> int:
    """Candidates whose centred and projected rows, and torch's copies of them, fit the workspace; at least one.

    Chunks have one size, as a small last one would have a slow product.
    """
    (m_r, m_a), dim, rank = candidates.sizes, prepared.dim, prepared.rank
    if route.rows_by_cpp and not route.pivoted:
        per_candidate = route.dtype.itemsize * m_a * (dim + rank) + CANDIDATE_BYTES
        if route.gradient_by_cpp:
            per_candidate += 8 * dim + route.dtype.itemsize * m_a * rank  # totals and slope
    else:
        per_candidate = 8 * (m_r + m_a) * (3 * dim + 3 * rank)
    if route.method != "logdet":
        per_candidate += 8 * MATRICES_PER_PAIR * rank**2
    memory = min(workspace, HOST_CHUNK) if prepared.device.type == "cpu" else workspace
    return equal_step(len(candidates), memory // max(1, per_candidate))


def equal_step(count: int, most: int) -> int:
    """Size of the fewest equal chunks of at most `most` of `count` candidates; at least one."""
    return math.ceil(count / math.ceil(count / max(1, most))) if count else 1
