"""The gradient of a change in the added rows, by the compiled extension.

    ∂(FD' − FD)/∂y_a = 2 y_a/(n'−1) − (2/n')(δ/(n'−1) + μ_r − μ_g) − 2√c ∂Δ/∂w_a P/√(N−1)

follows from equation 4: |y_a|² enters tr Σ' over n' − 1, δ moves by 1/n' with each added row, and w_a = P y_a/√(N−1).
The extension returns ∂Δ/∂w_a beside Δ.  Other routes leave the gradient to autograd.

Legend: as in swap/distance_change.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastfid import backend
from fastfid.runtime.devices import full_float32
from fastfid.swap.candidate_rows import CandidateRows, Centred
from fastfid.swap.checks import LEVERAGE_SLACK
from fastfid.swap.nodes import Nodes
from fastfid.swap.prepared_reference import PreparedReference
from fastfid.swap.trace_change import TraceChange


def trace_change_with_slope(rows: CandidateRows, nodes: Nodes) -> TraceChange:
    """As `trace_change_by_cpp`, with ∂Δ/∂w_a of the rows before their spread."""
    arrays = rows.arrays()
    plan, weights = nodes.plan(arrays[2].dtype), (nodes.omega / math.pi).numpy()
    logdets, remaining, slope, _, _ = backend.extension().swap_gradient(
        *arrays, plan, weights, LEVERAGE_SLACK, torch.get_num_threads()
    )
    slope = torch.from_numpy(slope)
    slope.add_(slope.mean(1, keepdim=True), alpha=rows.spread.beta)  # z_a = w_a + β w̄_a + …
    change = torch.from_numpy(logdets) @ nodes.omega / math.pi
    return TraceChange(change, torch.from_numpy(remaining), slope)


def with_gradient(
    added: Tensor, change: Tensor, centred: Centred, slope: Tensor, m_r: int, prepared: PreparedReference
) -> Tensor:
    """`change` [b] of equation 4 with the gradient above in `added` [b, m_a, d].

    centred  the added rows and Σ y_a − Σ y_r
    slope    ∂Δ/∂w_a [b, m_a, r]
    """
    return _WithGradient.apply(added, change, centred, slope, m_r, prepared)  # type: ignore[no-any-return, no-untyped-call]


class _WithGradient(torch.autograd.Function):
    """`with_gradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        added: Tensor,
        change: Tensor,
        centred: Centred,
        slope: Tensor,
        m_r: int,
        prepared: PreparedReference,
    ) -> Tensor:
        ctx.m_r, ctx.prepared, ctx.dtype = m_r, prepared, added.dtype
        ctx.save_for_backward(centred.added, centred.totals, slope)
        return change

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, totals, slope = ctx.saved_tensors
        prepared = ctx.prepared
        final = prepared.count - ctx.m_r + centred.shape[1]  # n'
        shrink = math.sqrt((prepared.count - 1) / (final - 1) * prepared.scale)  # √c in units of features
        projection = prepared.projections[centred.dtype]  # P/√(N−1), transposed
        with full_float32(centred.device):
            gradient = torch.addmm(
                centred.view(-1, prepared.dim),
                slope.view(-1, prepared.rank),
                projection.T,
                beta=2 / (final - 1),
                alpha=-2 * shrink,
            ).view(centred.shape)
        common = (-2 / final) * (totals / (final * (final - 1)) + prepared.gap)
        gradient.add_(common[:, None].to(gradient.dtype)).mul_(grad[:, None, None].to(gradient.dtype))
        gradient[grad == 0] = 0  # a candidate computed again has no number here
        return gradient.to(ctx.dtype), None, None, None, None, None
