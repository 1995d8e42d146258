"""Sums over the features of a candidate's rows, in one pass over them: what equation 4 needs beside determinants.

For added rows x_a [m_a, d], removed rows x_r of a reference and a centre μ,

    s = Σ (x_a − μ) − Σ (x_r − μ),    |s|²,    s·g,    Σ|x_a − μ|² − Σ|x_r − μ|²,    Σ|x_a − μ|².                 (1)

Everything is float64: a device has enough of it for three operations per number that it reads.  The last sum is
finite exactly where all added rows are, so the engine sees NaN and inf without another pass.  A program takes BLOCK
features of one candidate, and the parts are added in a fixed order, so every run gives the same bits.

Legend: b candidate, v row, d features.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastfid.triton_kernels import check_device, check_grid

ROWS, BLOCK = 16, 128  # of a program's tile: 16·128 float64 are 16 registers of its 128 threads
WARPS, STAGES = 4, 2


class Sums(NamedTuple):
    """Equation 1: s [b, d], |s|² [b], s·g [b], Σ|y_a|² − Σ|y_r|² [b], Σ|y_a|² [b], all float64."""

    total: torch.Tensor
    sum_square: torch.Tensor
    sum_gap: torch.Tensor
    norm_change: torch.Tensor
    norm_added: torch.Tensor


@triton.jit
def _sums_of(  # type: ignore[no-untyped-def]
    x, places, stride_v, stride_d, columns, centre, m, d, ROWS: tl.constexpr, BLOCK: tl.constexpr, GATHER: tl.constexpr
):
    """Σ (x − μ) and Σ (x − μ)² [BLOCK] float64 over m rows: those at `places`, or the first ones."""
    total = tl.zeros((BLOCK,), tl.float64)
    square = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, m, ROWS):
        v = start + tl.arange(0, ROWS)
        row = tl.load(places + v, mask=v < m, other=0) if GATHER else v.to(tl.int64)
        inside = (v < m)[:, None] & (columns < d)[None, :]
        at = x + row[:, None] * stride_v + columns.to(tl.int64)[None, :] * stride_d
        y = tl.where(inside, tl.load(at, mask=inside, other=0.0).to(tl.float64) - centre[None, :], 0.0)
        total += tl.sum(y, 0)
        square += tl.sum(y * y, 0)
    return total, square


@triton.jit
def centre_sums_kernel(  # type: ignore[no-untyped-def]
    added,  # [b, m_a, d] any float dtype
    reference,  # [N, d] any float dtype
    removed,  # [b, m_r] int64
    mean,  # [d] float64
    gap,  # [d] float64, g
    totals,  # [b, d] float64, out
    parts,  # [b, blocks, 4] float64, out: |s|², s·g, Σ|y_r|², Σ|y_a|² of a block of features
    blocks,
    m_r,
    m_a,
    d,
    stride_ab,
    stride_am,
    stride_ad,
    stride_rn,
    stride_rd,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program b·blocks + i sums the features i·BLOCK … of candidate b."""
    program = tl.program_id(0)
    b, block = (program // blocks).to(tl.int64), program % blocks
    columns = block * BLOCK + tl.arange(0, BLOCK)
    centre = tl.load(mean + columns, mask=columns < d, other=0.0)
    s_a, q_a = _sums_of(
        added + b * stride_ab, removed, stride_am, stride_ad, columns, centre, m_a, d, ROWS, BLOCK, False
    )
    s_r, q_r = _sums_of(reference, removed + b * m_r, stride_rn, stride_rd, columns, centre, m_r, d, ROWS, BLOCK, True)
    total = s_a - s_r
    g = tl.load(gap + columns, mask=columns < d, other=0.0)
    tl.store(totals + b * d + columns, total, mask=columns < d)
    out = parts + program.to(tl.int64) * 4
    tl.store(out, tl.sum(total * total, 0))
    tl.store(out + 1, tl.sum(total * g, 0))
    tl.store(out + 2, tl.sum(q_r, 0))
    tl.store(out + 3, tl.sum(q_a, 0))


def centre_sums(
    added: torch.Tensor, reference: torch.Tensor, removed: torch.Tensor, mean: torch.Tensor, gap: torch.Tensor
) -> Sums:
    """Equation 1 of every candidate.

    added      [b, m_a, d] any float dtype and strides
    reference  [N, d] likewise
    removed    [b, m_r] int64 rows of the reference, within [0, N): they are not checked here
    mean, gap  μ and g [d] float64

    ValueError for other shapes, and if the tensors are not on one CUDA device.
    """
    _check(added, reference, removed, mean, gap)
    check_device(added=added, reference=reference, removed=removed, mean=mean)
    (batch, m_a, d), m_r = added.shape, removed.shape[1]
    blocks = max(1, triton.cdiv(d, BLOCK))
    check_grid(batch * blocks)
    totals = torch.zeros((batch, d), dtype=torch.float64, device=added.device)
    parts = torch.zeros((batch, blocks, 4), dtype=torch.float64, device=added.device)
    sizes = (blocks, m_r, m_a, d, *added.stride(), *reference.stride())
    if batch:
        with torch.cuda.device_of(added):
            centre_sums_kernel[(batch * blocks,)](
                added, reference, removed.contiguous(), mean, gap, totals, parts, *sizes, ROWS, BLOCK,
                num_warps=WARPS, num_stages=STAGES,
            )  # fmt: skip
    square, with_gap, norm_removed, norm_added = parts.sum(1).unbind(1)
    return Sums(totals, square, with_gap, norm_added - norm_removed, norm_added)


def centre_sums_ref(
    added: torch.Tensor, reference: torch.Tensor, removed: torch.Tensor, mean: torch.Tensor, gap: torch.Tensor
) -> Sums:
    """The same with torch, on any device; differentiable in the added rows."""
    _check(added, reference, removed, mean, gap)
    y_a, y_r = added.to(torch.float64) - mean, reference[removed].to(torch.float64) - mean
    total, norm_added = y_a.sum(1) - y_r.sum(1), y_a.square().sum((1, 2))
    change = norm_added - y_r.square().sum((1, 2))
    return Sums(total, total.square().sum(-1), total @ gap, change, norm_added)


def _check(
    added: torch.Tensor, reference: torch.Tensor, removed: torch.Tensor, mean: torch.Tensor, gap: torch.Tensor
) -> None:
    d = mean.numel()
    if added.ndim != 3 or reference.ndim != 2 or removed.ndim != 2 or len(removed) != len(added):
        raise ValueError(
            "added must be [b, m_a, d], reference [N, d] and removed [b, m_r], got "
            f"{tuple(added.shape)}, {tuple(reference.shape)} and {tuple(removed.shape)}; use the engine's arguments"
        )
    if {added.shape[2], reference.shape[1], gap.numel()} != {d}:
        raise ValueError(
            f"added, reference and gap must have {d} features as mean, got {added.shape[2]}, {reference.shape[1]} and "
            f"{gap.numel()}; use one extractor"
        )
