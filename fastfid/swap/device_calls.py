"""A call on a device: all candidates are enqueued, and the host waits once, to read what it must know.

The host would otherwise wait for the range of the indices, for NaN among the added rows, for the largest new row, which
decides the nodes, and for candidates that lose a rare direction.  All of this is one vector here (`Told`), read after
the last kernel.  The nodes are those of the range that the first call mostly needs.  A call whose rows turn out to need
a wider one is computed again, so a result depends on its own rows alone.

Indices are clamped to the reference before rows are looked up, as a wrong one would end every later call of a device.
An error is raised after the call, in the words of the other routes.

Legend: B candidates of a call, b of a chunk, m_r rows removed and m_a added.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastfid import triton_kernels
from fastfid.swap.by_plan import plan_bytes, trace_change_by_plan
from fastfid.swap.candidate_rows import (
    Candidates,
    Centred,
    FeatureSums,
    Spread,
    centred_unchecked,
    check_added,
    rows_of,
)
from fastfid.swap.checks import LEVERAGE_SLACK, check_indices, check_leverage
from fastfid.swap.chunks import CANDIDATE_BYTES, Workbench, equal_step, is_rare, recomputed
from fastfid.swap.distance_change import ChunkChange, distance_change
from fastfid.swap.gradient import with_gradient
from fastfid.swap.nodes import Nodes, energy_of, highest
from fastfid.swap.prepared_reference import PreparedReference
from fastfid.swap.report import Report
from fastfid.swap.routes import Route
from fastfid.swap.single_swaps import trace_change_of_singles
from fastfid.swap.trace_change import TraceChange


class Told(NamedTuple):
    """What the host must know of a call, one number each.

    low, high  smallest and largest index of a removed row
    repeated   whether a candidate names a row twice
    square     Σ|y_a|² of the added rows, not finite if one of them is not
    largest    largest ‖w_a‖ of a candidate's projected rows
    rare       candidates that lose a rare direction
    leverage   largest share of a direction that removed rows take
    """

    low: float
    high: float
    repeated: float
    square: float
    largest: float
    rare: float
    leverage: float


class Enqueued(NamedTuple):
    """A chunk's results [b] float64, not yet computed: change, what remains, rare or not, and the parts of `Told`."""

    change: Tensor
    remaining: Tensor
    rare: Tensor
    square: Tensor
    largest: Tensor


def is_deferred(candidates: Candidates, route: Route, prepared: PreparedReference) -> bool:
    """Whether a call goes this way: log-determinants of a regular spectrum on a device, or by Triton's interpreter.

    A gradient of single images is left to autograd.
    """
    somewhere_else = prepared.device.type == "cuda" or route.backend == "triton"
    by_autograd = candidates.needs_grad and max(candidates.sizes) <= 1
    something = len(candidates) and sum(candidates.sizes) and prepared.rank
    return bool(route.method == "logdet" and somewhere_else and something and not route.singular and not by_autograd)


def changes_by_plan(
    candidates: Candidates, route: Route, prepared: PreparedReference, bench: Workbench
) -> tuple[Tensor, Report]:
    """Equation 4 for every candidate [B] float64, and what it took; as `chunks.changes_of`."""
    hi = highest(prepared.lambda_max, 0.0)
    while True:
        nodes = bench.nodes.regular(hi, candidates.sizes[0], route.dtype, bench.timer)
        found, told = _computed(candidates, nodes, route, prepared, bench)
        _raise_if_wrong(told, candidates, found, prepared)
        spread = Spread.of(prepared.count, *candidates.sizes)
        needed = highest(prepared.lambda_max, energy_of(told.largest, spread, candidates.sizes, prepared.lambda_max))
        if needed == hi:
            break
        hi = needed
    report = Report.of(nodes, route.choice)
    once = ChunkChange(found.change, found.remaining, report)
    if told.rare:
        once = recomputed(once, found.rare.nonzero()[:, 0], candidates, route, prepared, bench)
    return once.change, replace(once.report, seconds=bench.timer.seconds)


def _computed(
    candidates: Candidates, nodes: Nodes, route: Route, prepared: PreparedReference, bench: Workbench
) -> tuple[Enqueued, Told]:
    """All candidates at these nodes, in chunks that fit the workspace, and what the host waits for."""
    safe = replace(candidates, removed=candidates.removed.clamp(0, prepared.count - 1))
    step = candidates_per_chunk(candidates, nodes, route, prepared, bench.workspace)
    parts = [_enqueued(safe[at : at + step], nodes, route, prepared, bench) for at in range(0, len(safe), step)]
    found = Enqueued(*(torch.cat(part) for part in zip(*parts, strict=True)))
    values = [*_index_facts(candidates.removed), found.square.sum(), found.largest.max(), found.rare.sum()]
    values.append((1 - found.remaining).max())
    told = torch.stack([value.detach().to(torch.float64) for value in values])
    return found, Told(*told.tolist())


def _index_facts(removed: Tensor) -> list[Tensor]:
    """low, high and repeated of `Told`."""
    if not removed.shape[1]:
        return list(removed.new_zeros((3,)).unbind())
    ordered = removed.sort(-1).values
    return [ordered[:, 0].min(), ordered[:, -1].max(), (ordered[:, 1:] == ordered[:, :-1]).any()]


def _enqueued(
    candidates: Candidates, nodes: Nodes, route: Route, prepared: PreparedReference, bench: Workbench
) -> Enqueued:
    """Equation 4 of a chunk."""
    wants_slope = candidates.needs_grad
    with torch.no_grad():
        with bench.timer.phase("project"):
            centred, projected, square = _centred_and_projected(candidates, route, prepared)
            rows = rows_of(candidates, projected, prepared)
        with bench.timer.phase("logdet"):
            if max(rows.sizes) > 1:
                found = trace_change_by_plan(rows, nodes, route.backend, wants_slope)
            else:
                found = trace_change_of_singles(rows, nodes, route.backend, checked=False)
        change = distance_change(centred.sums, found.change, rows.sizes, prepared)
    if found.slope is not None:
        change = with_gradient(candidates.added, change, centred, found.slope, rows.sizes[0], prepared)
    return _facts(change, found, square, projected, nodes, route, prepared)


def _facts(
    change: Tensor,
    found: TraceChange,
    square: Tensor,
    projected: Tensor,
    nodes: Nodes,
    route: Route,
    prepared: PreparedReference,
) -> Enqueued:
    """A chunk's results together with what `Told` needs of them."""
    largest = torch.linalg.vector_norm(projected, dim=(1, 2), dtype=torch.float64)
    if found.remaining is None:  # nothing is removed, so nothing can be lost
        ones = torch.ones_like(square)
        return Enqueued(change, ones, torch.zeros_like(ones, dtype=torch.bool), square, largest)
    rare = is_rare(change, found.remaining, nodes, route, prepared)
    return Enqueued(change, found.remaining, rare, square, largest)


def _centred_and_projected(
    candidates: Candidates, route: Route, prepared: PreparedReference
) -> tuple[Centred, Tensor, Tensor]:
    """Centred rows and their sums, projected rows [b, m_a, r], and Σ|y_a|² [b]. Triton writes no centred rows."""
    added, mean, projection = candidates.added.detach(), prepared.mean, prepared.projections[route.dtype]
    if route.backend != "triton":
        centred, norms = centred_unchecked(replace(candidates, added=added), prepared, route.dtype)
        return centred, centred.added @ projection, norms.sum(-1)
    kernel = triton_kernels.load("centre_sums")
    total, sum_square, sum_gap, norm_change, norm_added = kernel.centre_sums(
        added, prepared.rows, candidates.removed, mean, prepared.gap
    )
    centred = Centred(added, FeatureSums(sum_square, sum_gap, norm_change), total)
    return centred, _projected_by_triton(added, mean, projection), norm_added


def _projected_by_triton(added: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    """w_a [b, m_a, r] float32; float64 rows are centred first, as float32 would not hold them."""
    kernel = triton_kernels.load("project")
    if added.dtype not in kernel.DTYPES:
        added, mean = (added.to(torch.float64) - mean).float(), torch.zeros_like(mean)
    flat = kernel.project(added.reshape(-1, added.shape[-1]), mean, projection)
    projected: Tensor = flat.view(*added.shape[:2], projection.shape[1])
    return projected


def _raise_if_wrong(told: Told, candidates: Candidates, found: Enqueued, prepared: PreparedReference) -> None:
    """ValueError in the words of the other routes, which look again at what is wrong."""
    if told.low < 0 or told.high >= prepared.count or told.repeated:
        check_indices(candidates.removed, prepared.count)
    if not math.isfinite(told.square):
        check_added((candidates.added.detach().to(torch.float64) - prepared.mean).square().sum(-1), candidates.ids)
    if max(candidates.sizes) <= 1 and not told.leverage <= 1 + LEVERAGE_SLACK:
        check_leverage(1 - found.remaining, candidates.ids)


def candidates_per_chunk(
    candidates: Candidates, nodes: Nodes, route: Route, prepared: PreparedReference, workspace: int
) -> int:
    """Candidates whose temporary memory fits the workspace; at least one, and chunks of one size."""
    return equal_step(len(candidates), workspace // bytes_per_candidate(candidates, nodes, route, prepared))


def bytes_per_candidate(candidates: Candidates, nodes: Nodes, route: Route, prepared: PreparedReference) -> int:
    """Bytes of temporary memory of one candidate, counted from the tensors of this file and of swap/by_plan.py."""
    (m_r, m_a), dim, rank, item = candidates.sizes, prepared.dim, prepared.rank, route.dtype.itemsize
    by_triton = route.backend == "triton"
    centring = item * m_a * rank + 8 * dim
    if not by_triton:  # float64 rows, their squares, and centred rows in the route's dtype
        centring += 8 * 3 * (m_r + m_a) * dim + item * m_a * dim
    elif candidates.added.dtype == torch.float64:
        centring += (8 + item) * m_a * dim
    if max(m_r, m_a) <= 1:
        return CANDIDATE_BYTES + centring + 4 * item * rank
    plan = nodes.on_device(route.dtype)
    more = plan_bytes(plan, (m_r, m_a), rank, item, by_triton, candidates.needs_grad)
    return CANDIDATE_BYTES + (centring + more if candidates.needs_grad else max(centring, more))
