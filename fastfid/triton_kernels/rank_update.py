"""c (M + WᵀJW) for many candidates at once: each candidate changes one shared symmetric matrix by a few rows.

A swap changes the matrix M (Λ, or R Σ_g Rᵀ in any basis) to

    C_b = c_b (M + W_bᵀ J W_b) = c_b (M − W_rᵀ W_r + W_aᵀ W_a).

This is the matrix of equation 3 in swap/log_determinants.py.  The Newton–Schulz route takes its square root.  All
candidates share M.  Each candidate reads a tile of M once, mostly from cache, because consecutive programs work on the
same tile for different candidates.  The kernel never stores WᵀJW or the unscaled sum.  Removed and added rows stay in
their own tensors; J is the sign of their dot product.  C is symmetric, so the kernel computes only tiles on and below
the diagonal and stores each together with its transpose.

The update is small compared with M.  The kernel sums it in float32 on its own and adds it to M last.  The rounding of
the sum is then relative to the update, and only one rounding is relative to M.

Legend: b candidate, n order, m_r removed and m_a added rows, i row and j column of tiles of BLOCK, t number of a tile,
m position along the rows of W.
"""

import torch
import triton
import triton.language as tl

from fastfid.triton_kernels import check_choice, check_device, check_grid
from fastfid.triton_kernels.newton_schulz import lower_tile, store_mirrored, triangle

PRECISIONS = ("tf32x3", "ieee")

# precision: (BLOCK, BLOCK_M, warps, stages), found by trial with bench/compile_facts.py: triton 3.6 to 3.9 spill no
# register on sm_80, sm_90 and sm_100.
CONFIGS = {"tf32x3": (64, 32, 4, 2), "ieee": (64, 16, 8, 2)}


# -------------------------------------------------------------------------------------------------------------- kernel


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    total, w, count, rows, columns, n, stride_m, stride_n, SIGN, BLOCK_M, PRECISION
):
    """total + SIGN · WᵀW at (rows, columns), W [count, n]."""
    for start in range(0, count, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        at = w + m.to(tl.int64)[:, None] * stride_m
        inside = (m < count)[:, None]
        left = tl.load(at + rows.to(tl.int64)[None, :] * stride_n, mask=inside & (rows < n)[None, :], other=0.0)
        right = tl.load(at + columns.to(tl.int64)[None, :] * stride_n, mask=inside & (columns < n)[None, :], other=0.0)
        total = tl.dot(tl.trans(SIGN * left), right, total, input_precision=PRECISION)
    return total


@triton.jit
def rank_update_kernel(  # type: ignore[no-untyped-def]
    matrix,  # [n, n] float32, symmetric
    w_r,  # [b, m_r, n] float32
    w_a,  # [b, m_a, n] float32
    scale,  # [b] float32, c
    out,  # [b, n, n]
    batch,
    n,
    m_r,
    m_a,
    stride_m,
    stride_n,
    stride_rb,
    stride_rm,
    stride_rn,
    stride_ab,
    stride_am,
    stride_an,
    stride_ob,
    stride_om,
    stride_on,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program t·batch + b computes tile t of c_b (M + W_bᵀ J W_b) and stores it with its transpose."""
    program = tl.program_id(0)
    b = (program % batch).to(tl.int64)
    tile_i, tile_j = lower_tile(program // batch)
    rows = tile_i * BLOCK + tl.arange(0, BLOCK)
    columns = tile_j * BLOCK + tl.arange(0, BLOCK)
    update = tl.zeros((BLOCK, BLOCK), tl.float32)
    update = _products(
        update, w_r + b * stride_rb, m_r, rows, columns, n, stride_rm, stride_rn, -1.0, BLOCK_M, PRECISION
    )
    update = _products(
        update, w_a + b * stride_ab, m_a, rows, columns, n, stride_am, stride_an, 1.0, BLOCK_M, PRECISION
    )
    at = matrix + rows.to(tl.int64)[:, None] * stride_m + columns.to(tl.int64)[None, :] * stride_n
    shared = tl.load(at, mask=(rows < n)[:, None] & (columns < n)[None, :], other=0.0)
    result = tl.load(scale + b) * (shared + update)
    store_mirrored(result.to(out.dtype.element_ty), out + b * stride_ob, rows, columns, n, stride_om, stride_on)


# ----------------------------------------------------------------------------------------------------------- launchers


def rank_update(
    matrix: torch.Tensor,
    w_r: torch.Tensor,
    w_a: torch.Tensor,
    scale: float | torch.Tensor = 1.0,
    *,
    input_precision: str = "tf32x3",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """c (M + WᵀJW) [b, n, n] of `dtype` for every candidate (equation 3 of fastfid/swap/log_determinants.py).

    matrix  M [n, n] float32, symmetric; only its lower triangle is read      w_r [b, m_r, n], w_a [b, m_a, n] float32
    scale   c, a number or [b]                                           input_precision  "tf32x3" | "ieee"

    Any strides.  ValueError for other shapes, dtypes or precisions, and if the tensors are not on one CUDA device.
    """
    _check(matrix, w_r, w_a, scale)
    check_choice("input_precision", input_precision, PRECISIONS)
    check_choice("dtype", dtype, (torch.float32, torch.bfloat16, torch.float16))
    batch, n = len(w_r), len(matrix)
    out = torch.empty((batch, n, n), dtype=dtype, device=matrix.device)
    if out.numel() == 0:
        return out
    check_device(matrix=matrix, w_r=w_r, w_a=w_a)
    scale = torch.as_tensor(scale, dtype=torch.float32, device=matrix.device).expand(batch).contiguous()
    block, block_m, warps, stages = CONFIGS[input_precision]
    tiles = triangle(triton.cdiv(n, block))
    check_grid(batch * tiles)
    sizes = (batch, n, w_r.shape[1], w_a.shape[1])
    strides = (*matrix.stride(), *w_r.stride(), *w_a.stride(), *out.stride())
    constants = (block, block_m, input_precision)
    with torch.cuda.device_of(matrix):  # C_b = c_b (M − W_rᵀ W_r + W_aᵀ W_a)
        rank_update_kernel[(batch * tiles,)](
            matrix, w_r, w_a, scale, out, *sizes, *strides, *constants, num_warps=warps, num_stages=stages
        )
    return out


def rank_update_ref(
    matrix: torch.Tensor,
    w_r: torch.Tensor,
    w_a: torch.Tensor,
    scale: float | torch.Tensor = 1.0,
    *,
    input_precision: str = "ieee",
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """The same in float64 with torch, on any device; `input_precision` is ignored."""
    _check(matrix, w_r, w_a, scale, dtypes=(torch.float32, torch.float64))
    w_r, w_a = w_r.to(torch.float64), w_a.to(torch.float64)
    scale = torch.as_tensor(scale, dtype=torch.float64, device=matrix.device).expand(len(w_r))
    changed = matrix.to(torch.float64) - w_r.mT @ w_r + w_a.mT @ w_a
    return (scale[:, None, None] * changed).to(dtype)


def _check(
    matrix: torch.Tensor,
    w_r: torch.Tensor,
    w_a: torch.Tensor,
    scale: float | torch.Tensor,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be [n, n], got {tuple(matrix.shape)}; all candidates share it")
    n = len(matrix)
    for name, w in (("w_r", w_r), ("w_a", w_a)):
        if w.ndim != 3 or w.shape[2] != n or len(w) != len(w_r):
            raise ValueError(
                f"{name} must be [b, m, {n}] with one b, got {tuple(w.shape)}; project with the matrix's basis"
            )
    for name, tensor in (("matrix", matrix), ("w_r", w_r), ("w_a", w_a)):
        if tensor.dtype not in dtypes:
            raise ValueError(f"{name} must be float32, got {tensor.dtype}; convert it first")
    shape = tuple(torch.as_tensor(scale).shape)
    if shape not in ((), (len(w_r),)):
        raise ValueError(f"scale must be a number or [{len(w_r)}], got {shape}; pass one factor per candidate")
