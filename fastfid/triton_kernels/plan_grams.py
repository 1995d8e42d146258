"""Gram matrices of the functions of a weight plan. One program computes one of them, in registers.

For the rows W [k, r] of a candidate and the functions f of equation 6 (fastfid/linalg/weight_plan.py), each of which
lives on a slice of the positions,

    G_f = Σ_{p in slice} f(p) w_p w_pᵀ.                                                                          (1)

Combined to the nodes they are the matrices of equation 3 (swap/log_determinants.py): about three times the flops of one
Gram matrix stand for those of sixteen nodes.  A program reads the slice of W in blocks of BLOCK positions and adds
(f·w) wᵀ to a K×K float32 accumulator, K the next power of two of k.  Products are three tensor-core products of tf32
halves ("tf32x3", error about 2⁻²²).  Plain tf32 keeps 2⁻¹¹ of G, too little for the change of one swap.

Functions may be negative, so one operand is scaled and not both by a root.  The two triangles then differ by rounding;
whoever reads them takes the lower one or does not care.

Legend: b candidate, f function, F functions, k rows, r rank, p position along it, i row and x column of G.
"""

import torch
import triton
import triton.language as tl

from fastfid.triton_kernels import check_device, check_grid

# Largest order of a tile: order 256 would take 256²/256 threads = 256 of the 255 registers of a thread (8 warps).
MAX_K = 128

PRECISION = "tf32x3"

# K: (BLOCK, warps, stages), found by trial with bench/compile_facts.py: triton 3.6 to 3.9 spill no register on sm_80,
# sm_90 and sm_100.
CONFIGS = {16: (32, 1, 2), 32: (32, 2, 2), 64: (16, 4, 2), 128: (16, 8, 2)}


@triton.jit
def plan_grams_kernel(  # type: ignore[no-untyped-def]
    w,  # [b, k, r] float32
    functions,  # float32, function after function
    first,  # [F] int32, first position of each function
    stop,  # [F] int32, one past its last position
    offset,  # [F] int64, its place in `functions`
    grams,  # [b, F, k, k] float32, out
    count,  # F
    k,
    stride_wb,
    stride_wk,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program b·F + f computes equation 1 of candidate b and function f."""
    program = tl.program_id(0)
    b, f = (program // count).to(tl.int64), program % count
    begin, end = tl.load(first + f), tl.load(stop + f)
    function = functions + tl.load(offset + f)
    i = tl.arange(0, K)
    # Rows from k on repeat the last one: what they give is not stored, and a mask for them would cost registers.
    rows = w + b * stride_wb + tl.minimum(i, k - 1).to(tl.int64)[:, None] * stride_wk
    g = tl.zeros((K, K), tl.float32)
    for start in range(begin, end, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < end
        values = tl.load(rows + p[None, :], mask=inside[None, :], other=0.0)
        weights = tl.load(function + (p - begin), mask=inside, other=0.0)
        g = tl.dot(values * weights[None, :], tl.trans(values), g, input_precision=PRECISION)
    out = grams + program.to(tl.int64) * k * k + i[:, None] * k + i[None, :]
    tl.store(out, g, mask=(i < k)[:, None] & (i < k)[None, :])


def plan_grams(
    w: torch.Tensor, functions: torch.Tensor, first: torch.Tensor, stop: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """Equation 1 of every candidate and function: [b, F, k, k] float32.

    w            [b, k, r] float32 with contiguous rows, k ≤ 128
    functions    float32, function after function
    first, stop  [F] int32, positions of each function: first to stop − 1
    offset       [F] int64, its place in `functions`

    ValueError for other shapes or dtypes, and if the tensors are not on one CUDA device.
    """
    _check(w, functions, first, stop, offset)
    batch, k, _ = w.shape
    count = len(first)
    check_grid(batch * count)
    grams = torch.empty((batch, count, k, k), dtype=torch.float32, device=w.device)
    if grams.numel() == 0:
        return grams
    check_device(w=w, functions=functions, first=first)
    order = max(16, triton.next_power_of_2(k))
    block, warps, stages = CONFIGS[order]
    sizes = (count, k, *w.stride()[:2])
    with torch.cuda.device_of(w):  # grams[b, f] = Σ f(p) w_p w_pᵀ
        plan_grams_kernel[(batch * count,)](
            w, functions, first, stop, offset, grams, *sizes, order, block, PRECISION,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return grams


def plan_grams_ref(
    w: torch.Tensor, functions: torch.Tensor, first: torch.Tensor, stop: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """The same in float64 with torch, function by function, on any device."""
    w, functions = w.to(torch.float64), functions.to(torch.float64)
    grams = w.new_zeros((w.shape[0], len(first), w.shape[1], w.shape[1]))
    for f, (begin, end, place) in enumerate(zip(first.tolist(), stop.tolist(), offset.tolist(), strict=True)):
        part = w[:, :, begin:end]
        grams[:, f] = (part * functions[place : place + end - begin]) @ part.mT
    return grams


def _check(
    w: torch.Tensor, functions: torch.Tensor, first: torch.Tensor, stop: torch.Tensor, offset: torch.Tensor
) -> None:
    if w.ndim != 3 or w.dtype != torch.float32 or (w.numel() and w.stride(2) != 1):
        raise ValueError(
            f"w must be [b, k, r] float32 with contiguous rows, got {tuple(w.shape)} {w.dtype} of strides "
            f"{w.stride()}; use the torch backend for other dtypes"
        )
    if w.shape[1] > MAX_K:
        raise ValueError(f"w has {w.shape[1]} rows a candidate, a program takes {MAX_K}; use torch's route")
    if functions.ndim != 1 or functions.dtype != torch.float32 or not first.shape == stop.shape == offset.shape:
        raise ValueError(
            f"functions must be flat float32 and first, stop, offset [F], got {tuple(functions.shape)} "
            f"{functions.dtype}, {tuple(first.shape)}, {tuple(stop.shape)} and {tuple(offset.shape)}; pass a plan of "
            "linalg/device_plan.py"
        )
