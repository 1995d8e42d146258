"""Rows centred and projected, W = (X − μ) P, in one product.

The centre μ is float64 and split into two float32 parts c_hi + c_lo, so float32 rows keep their last digits, as in
moments.py.  Products are three tensor-core products of tf32 halves ("tf32x3", error about 2⁻²²): six flops for a
multiply-add, at eight times the speed of float32 units on an H100.  The centred rows are never written.

Legend: x [n, d], P [d, r]; v row, i feature, p column of P.
"""

import torch
import triton
import triton.language as tl

from fastfid.triton_kernels import check_device, check_grid
from fastfid.triton_kernels.moments import _two_parts

PRECISION = "tf32x3"

# rows and columns of a tile, features a step, warps, stages: found by trial with bench/compile_facts.py, no spills
BLOCK_V, BLOCK_P, BLOCK_D, WARPS, STAGES = 128, 64, 16, 8, 2

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def project_kernel(  # type: ignore[no-untyped-def]
    x,  # [n, d] float32, float16 or bfloat16
    mean,  # [d] float64
    projection,  # [d, r] float32
    out,  # [n, r] float32
    n,
    d,
    r,
    tiles,  # of columns
    stride_v,
    stride_d,
    stride_pd,
    stride_pr,
    BLOCK_V: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program i·tiles + j computes tile (i, j) of W; neighbours share rows of x."""
    program = tl.program_id(0)
    v = (program // tiles) * BLOCK_V + tl.arange(0, BLOCK_V)
    p = (program % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    rows = x + v.to(tl.int64)[:, None] * stride_v
    w = tl.zeros((BLOCK_V, BLOCK_P), tl.float32)
    for start in range(0, d, BLOCK_D):
        i = start + tl.arange(0, BLOCK_D)
        high, low = _two_parts(mean, i, d)
        inside = (v < n)[:, None] & (i < d)[None, :]
        values = tl.load(rows + i.to(tl.int64)[None, :] * stride_d, mask=inside, other=0.0).to(tl.float32)
        y = tl.where(inside, (values - high[None, :]) - low[None, :], 0.0)
        at = projection + i.to(tl.int64)[:, None] * stride_pd + p.to(tl.int64)[None, :] * stride_pr
        weights = tl.load(at, mask=(i < d)[:, None] & (p < r)[None, :], other=0.0)
        w = tl.dot(y, weights, w, input_precision=PRECISION)
    to = out + v.to(tl.int64)[:, None] * r + p[None, :]
    tl.store(to, w, mask=(v < n)[:, None] & (p < r)[None, :])


def project(x: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """(x − mean) @ projection [n, r] float32.

    x           [n, d] float32, float16 or bfloat16, any strides
    mean        [d] float64
    projection  [d, r] float32, any strides

    ValueError for other shapes or dtypes, and if the tensors are not on one CUDA device.
    """
    _check(x, mean, projection)
    if x.dtype not in DTYPES or projection.dtype != torch.float32:
        raise ValueError(f"x must be float32, float16 or bfloat16 and projection float32, got {x.dtype} and "
                         f"{projection.dtype}; use project_ref for other dtypes")  # fmt: skip
    check_device(x=x, mean=mean, projection=projection)
    (n, d), r = x.shape, projection.shape[1]
    out = torch.zeros((n, r), dtype=torch.float32, device=x.device)
    if n * d * r == 0:
        return out
    tiles, rows = triton.cdiv(r, BLOCK_P), triton.cdiv(n, BLOCK_V)
    check_grid(tiles * rows)
    sizes = (n, d, r, tiles, *x.stride(), *projection.stride())
    with torch.cuda.device_of(x):  # W = (X − μ) P
        project_kernel[(tiles * rows,)](
            x, mean.contiguous(), projection, out, *sizes, BLOCK_V, BLOCK_P, BLOCK_D, PRECISION,
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return out


def project_ref(x: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """The same in float64 with torch, on any device."""
    _check(x, mean, projection)
    return (x.to(torch.float64) - mean) @ projection.to(torch.float64)


def _check(x: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor) -> None:
    if x.ndim != 2 or projection.ndim != 2 or mean.shape != x.shape[1:] or len(projection) != x.shape[1]:
        raise ValueError(
            "x must be [n, d], mean [d] and projection [d, r], got "
            f"{tuple(x.shape)}, {tuple(mean.shape)} and {tuple(projection.shape)}; use one extractor"
        )
