"""Mean and centred covariance of features in one pass over the rows.

For rows x_1 … x_n and any centre c, the kernel computes

    s = Σ (x − c),    S = Σ (x − c)(x − c)ᵀ.                                                                    (1)

With c = μ these sums update the moments of N earlier rows (mean μ, scatter S₀ = (N−1) cov) exactly.  For N' = N + n:

    μ' = μ + s/N',    S' = S₀ + S − s sᵀ/N'.                                                                    (2)

Cancellation.  If c is within a few standard deviations of the rows, s sᵀ/N' is not larger than S, so (2) keeps its
digits.  A raw sum Σ x xᵀ would lose all digits for a mean of 10⁴ standard deviations.  The kernel therefore subtracts c
first.  It splits c into two float32 parts c_hi + c_lo, so float32 rows keep their last digits.  bfloat16 and float16
rows are exact in float32.

One pass.  A program computes one tile of the lower triangle of S.  It reads the two column ranges of the tile from all
rows.  A row is read d/BLOCK times, mostly from cache, because neighbouring programs read the same rows.  Programs on
the diagonal also sum s.  A tile is stored together with its transpose, so S is symmetric to the last bit.  A small d
has too few tiles for a device (d = 128 has three).  Then the rows are split, and the parts are added in float64 in a
fixed order, so every run gives the same bits.

Error.  Products are summed in float32 over CHUNK rows and then added to a float64 total, so the error does not grow
with n.  Relative to √(S_ii S_jj) it is at most (CHUNK + 4) ε with ε = 2⁻²⁴, by the Cauchy–Schwarz inequality for every
chunk.  Rounding errors of random sign give about √CHUNK ε = 1.3e-6, and chunks average out.  "tf32x3" adds 2⁻²² per
product.  This is less accurate than `FeatureMoments` in float64, so the kernel runs only with `kernel="triton"`.  An
emulation in float32 (d = 128 and 512, n = 5,000 and 20,000, standard deviations over one and three decades) gave errors
of at most 1.0e-7 √(S_ii S_jj) in the entries and 4e-8 in Fréchet distances.

Legend: x [n, d], i row and j column of tiles of BLOCK features, t number of a tile, v position along the rows.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import triton
import triton.language as tl

from fastfid.triton_kernels import check_choice, check_device, check_grid
from fastfid.triton_kernels.newton_schulz import lower_tile, store_mirrored, triangle

PRECISIONS = ("tf32x3", "ieee")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Rows summed in float32 before the sum goes to float64: the float32 part errs by about √512 ε = 1e-6, and converting a
# tile costs 1/512 of its multiplications.
CHUNK = 512

# Programs that fill a device: a B200 has 148 multiprocessors, each with room for about 4 programs.
FULL = 592

# Rows whose mean is the centre of the first batch of a stream: it errs by √(d/256) deviations.
FIRST_ROWS = 256

# precision: (BLOCK, BLOCK_V, warps, stages), found by trial with bench/compile_facts.py: triton 3.6 to 3.9 spill no
# register on sm_80, sm_90 and sm_100.
CONFIGS = {"tf32x3": (64, 16, 8, 2), "ieee": (64, 16, 8, 2)}

# s [d] and S [d, d] float64 of rows about a centre
Sums: TypeAlias = tuple[torch.Tensor, torch.Tensor]

# count, mean [d] and cov [d, d] float64
Moments: TypeAlias = tuple[int, torch.Tensor, torch.Tensor]


# -------------------------------------------------------------------------------------------------------------- kernel


@triton.jit
def _centred(x, v, columns, high, low, stop, d, stride_v, stride_d):  # type: ignore[no-untyped-def]
    """x − c at rows v < stop and these columns, float32 [BLOCK_V, BLOCK]; zero outside."""
    inside = (v < stop)[:, None] & (columns < d)[None, :]
    at = x + v.to(tl.int64)[:, None] * stride_v + columns.to(tl.int64)[None, :] * stride_d
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, (values - high[None, :]) - low[None, :], 0.0)


@triton.jit
def _two_parts(centre, columns, d):  # type: ignore[no-untyped-def]
    """c = c_hi + c_lo in two float32 vectors."""
    c = tl.load(centre + columns, mask=columns < d, other=0.0)
    high = c.to(tl.float32)
    return high, (c - high.to(tl.float64)).to(tl.float32)


@triton.jit
def moments_kernel(  # type: ignore[no-untyped-def]
    x,  # [n, d] float32, float16 or bfloat16
    centre,  # [d] float64
    sums,  # [splits, d] float64, out
    scatter,  # [splits, d, d] float64, out
    n,
    d,
    tiles,
    rows_per_split,  # a multiple of CHUNK
    stride_v,
    stride_d,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program split·tiles + t computes tile t of S over one split of the rows; a tile on the diagonal also gives s."""
    program = tl.program_id(0)
    split = program // tiles
    tile_i, tile_j = lower_tile(program % tiles)
    rows = tile_i * BLOCK + tl.arange(0, BLOCK)
    columns = tile_j * BLOCK + tl.arange(0, BLOCK)
    high_i, low_i = _two_parts(centre, rows, d)
    high_j, low_j = _two_parts(centre, columns, d)
    total = tl.zeros((BLOCK, BLOCK), tl.float64)
    total_sums = tl.zeros((BLOCK,), tl.float64)
    begin = split * rows_per_split
    stop = tl.minimum(n, begin + rows_per_split)
    for chunk in range(begin, stop, CHUNK):
        products = tl.zeros((BLOCK, BLOCK), tl.float32)
        part = tl.zeros((BLOCK,), tl.float32)
        for start in range(chunk, tl.minimum(chunk + CHUNK, stop), BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            left = _centred(x, v, rows, high_i, low_i, stop, d, stride_v, stride_d)
            right = _centred(x, v, columns, high_j, low_j, stop, d, stride_v, stride_d)
            products = tl.dot(tl.trans(left), right, products, input_precision=PRECISION)
            part += tl.sum(left, 0)
        total += products.to(tl.float64)
        total_sums += part.to(tl.float64)
    base = split.to(tl.int64) * d
    store_mirrored(total, scatter + base * d, rows, columns, d, d, 1)
    if tile_i == tile_j:
        tl.store(sums + base + rows, total_sums, mask=rows < d)


# ----------------------------------------------------------------------------------------------------------- launchers


def centred_moments(x: torch.Tensor, centre: torch.Tensor, input_precision: str = "tf32x3") -> Sums:
    """s [d] and S [d, d] float64 of rows x [n, d] about centre [d] (equation 1).

    x                float32, float16 or bfloat16, any strides; n < 2³¹      centre  float64, near the rows' mean
    input_precision  "tf32x3", tensor cores, or "ieee", float32 units

    ValueError for other shapes, dtypes or precisions, and if the tensors are not on one CUDA device.
    """
    _check(x, centre, DTYPES)
    check_choice("input_precision", input_precision, PRECISIONS)
    n, d = x.shape
    if n * d == 0:
        return x.new_zeros(d, dtype=torch.float64), x.new_zeros((d, d), dtype=torch.float64)
    check_device(x=x, centre=centre)
    block, block_v, warps, stages = CONFIGS[input_precision]
    tiles, chunks = triangle(triton.cdiv(d, block)), triton.cdiv(n, CHUNK)
    rows_per_split = CHUNK * triton.cdiv(chunks, min(chunks, max(1, FULL // tiles)))
    splits = triton.cdiv(n, rows_per_split)
    check_grid(splits * tiles)
    sums = torch.empty((splits, d), dtype=torch.float64, device=x.device)
    scatter = torch.empty((splits, d, d), dtype=torch.float64, device=x.device)
    centre = centre.to(torch.float64).contiguous()
    sizes = (n, d, tiles, rows_per_split, *x.stride())
    constants = (CHUNK, block, block_v, input_precision)
    with torch.cuda.device_of(x):  # s = Σ (x − c),  S = Σ (x − c)(x − c)ᵀ over each split of the rows
        moments_kernel[(splits * tiles,)](
            x, centre, sums, scatter, *sizes, *constants, num_warps=warps, num_stages=stages
        )
    return (sums.sum(0), scatter.sum(0)) if splits > 1 else (sums[0], scatter[0])


def centred_moments_ref(x: torch.Tensor, centre: torch.Tensor, input_precision: str = "ieee") -> Sums:
    """The same in float64 with torch, on any device; `input_precision` is ignored."""
    _check(x, centre, (*DTYPES, torch.float64))
    y = x.to(torch.float64) - centre.to(torch.float64)
    return y.sum(0), y.T @ y


def update_moments(
    count: int, mean: torch.Tensor, cov: torch.Tensor, x: torch.Tensor, input_precision: str = "tf32x3"
) -> Moments:
    """(count, mean [d], cov [d, d]) float64, ddof = 1, after adding the rows x [n, d] to `count` others (equation 2).

    count  rows so far, ≥ 0; with 0, mean and cov are ignored      x  as in `centred_moments`

    The covariance of fewer than two rows is zero.  ValueError as in `centred_moments`, and for a negative count.
    """
    return _update(count, mean, cov, x, lambda rows, centre: centred_moments(rows, centre, input_precision))


def update_moments_ref(
    count: int, mean: torch.Tensor, cov: torch.Tensor, x: torch.Tensor, input_precision: str = "ieee"
) -> Moments:
    """The same in float64 with torch, on any device; `input_precision` is ignored."""
    return _update(count, mean, cov, x, centred_moments_ref)


def _update(
    count: int,
    mean: torch.Tensor,
    cov: torch.Tensor,
    x: torch.Tensor,
    moments: Callable[[torch.Tensor, torch.Tensor], Sums],
) -> Moments:
    """Equation 2. `moments` gives the sums about the old mean, or about the mean of the first rows of a stream."""
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}; 0 starts a stream")
    if count + len(x) == 0:
        return 0, mean.to(torch.float64), cov.to(torch.float64)
    centre = mean.to(torch.float64) if count else x[:FIRST_ROWS].mean(0, dtype=torch.float64)
    sums, scatter = moments(x, centre)
    total = count + len(x)
    if count > 1:
        scatter += (count - 1) * cov.to(torch.float64)
    scatter -= torch.outer(sums, sums) / total
    return total, centre + sums / total, scatter / max(total - 1, 1)


def _check(x: torch.Tensor, centre: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if x.ndim != 2 or centre.shape != x.shape[1:]:
        raise ValueError(
            f"x must be [n, d] and centre [d], got {tuple(x.shape)} and {tuple(centre.shape)}; pass one row per sample"
        )
    if x.dtype not in dtypes:
        raise ValueError(f"x must be float32, float16 or bfloat16, got {x.dtype}; kernel='torch' takes others")
