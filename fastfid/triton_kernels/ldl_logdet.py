"""log|det(J + G)| of Gram matrices, and what a removal leaves: a program a matrix, in registers or in shared memory.

For the matrices G [k, k] of equation 3 (fastfid/swap/log_determinants.py), J = diag(−1 … −1, +1 … +1),

    d_j = J_j + G_jj,   G −= g gᵀ/d_j   with g = G[:, j],   log|det(J + G)| = Σ_j log|d_j|.                      (1)

The removed rows come first, so J + G is quasi-definite and needs no pivoting.  J is never added to the matrix (as in
csrc/cuda/ldl_logdet.cuh): the kernel uses the excess e = |d_j| − 1, which is −G_jj for a removed row and G_jj for an
added one and keeps digits in float32 that 1 + e rounds away.  Σ log1p(e) is taken in float64 after the elimination.  A
pivot of the wrong sign (by more than `slack`, the error allowed for float32) makes the log-determinant NaN.

What is left.  The engine also needs the smallest eigenvalue of A = I − G_rr at the first node.  Steps 1 … m_r are
therefore sweeps: with d_j − 1 in the place of d_j in g, the same update also turns row and column j into those of the
inverse, up to a constant on the diagonal.

    G[i, j] − g_i (d_j − 1)/d_j = g_i/d_j,      d_j − (d_j − 1)²/d_j = 2 − 1/d_j.                                (2)

After m_r sweeps the leading block is −(−A)⁻¹ = A⁻¹, with 2 from (2) and 1 from J too much on its diagonal.  Later steps
leave it alone.  Inverse iteration with it gives the eigenvalue from above.

In Triton the elimination, the logarithms and the inverse iteration are kernels of their own: in one kernel they spill
registers, as float64 logarithms stand beside a whole tile.

csrc/cuda factors up to k = 256 in shared memory, several matrices a multiprocessor, and is preferred where it was
built.  The Triton kernel holds a K×K tile in registers, K ≤ 128 the next power of two of k.

Legend: b candidate, q node, Q nodes, k order, m_r removed rows, i row and x, j columns of G.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fastfid.triton_kernels import check_device, check_grid

# Least 1 − g of a leverage g: 4 ε of float32, as in csrc/cuda/ldl_logdet.cuh. Below it, 1 − g is only rounding error.
LEAST = tl.constexpr(4.8e-7)

# Largest order of a tile: order 256 would take 256²/256 threads = 256 of the 255 registers of a thread (8 warps).
MAX_K = 128

# Largest order that csrc/cuda/ldl_logdet.cu factors (LDL_MAX_K there).
CUDA_MAX_K = 256

# cudaErrorInvalidValue: the device does not have the shared memory that a block asked for.
INVALID_VALUE = 1

# K: (warps, stages), found by trial with bench/compile_facts.py: triton 3.6 to 3.9 spill no register.
CONFIGS = {16: (1, 1), 32: (2, 1), 64: (8, 1), 128: (8, 1)}

LOG_WARPS = 1  # of the sum of at most 128 logarithms

# Steps of inverse iteration.  From a start with parts along all of n eigenvectors they overestimate the eigenvalue by
# about log(n)/(2·STEPS), 20% for n = 128, where its neighbours are close, and by far less where it stands apart
# (Kuczyński & Woźniakowski, SIAM J. Matrix Anal. Appl. 13 (1992)).  A step costs as much as one column's elimination.
STEPS = tl.constexpr(12)

# The start of inverse iteration is without symmetry: fractional parts of the golden ratio's multiples at 1, 4, 9 …
GOLDEN = tl.constexpr(0.6180339887498949)


class Factors(NamedTuple):
    """Log-determinants [b, Q] float64, NaN for a wrong pivot; smallest eigenvalue of I − G_rr at node 0 [b] float64."""

    logdets: torch.Tensor
    remaining: torch.Tensor


# ------------------------------------------------------------------------------------------------------------- kernel


@triton.jit
def _excess(g, removed):  # type: ignore[no-untyped-def]
    """|J + g| − 1, limited to what exact arithmetic allows: 1 − g > 0 for a removed row, g ≥ 0 for an added one."""
    return tl.where(removed, tl.where(g <= 1 - LEAST, -g, LEAST - 1), tl.maximum(g, 0.0))


@triton.jit
def _log1p(e):  # type: ignore[no-untyped-def]
    """log(1 + e) in float64, accurate for small e (Goldberg 1991, theorem 4)."""
    u = 1 + e
    return tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def ldl_pivots_kernel(  # type: ignore[no-untyped-def]
    grams,  # [b, Q, k, k] float32
    pivots,  # [b, Q, k] float32, out: d_j − J_j
    inverses,  # [b, K, K] float32, out: A⁻¹ of node 0, the first m_r rows and columns
    nodes,  # Q
    m_r,
    k,
    K: tl.constexpr,
):
    """Program b·Q + q eliminates the matrix of candidate b at node q; that of node 0 also gives A⁻¹."""
    program = tl.program_id(0)
    i = tl.arange(0, K)
    square = (i < k)[:, None] & (i < k)[None, :]
    g = tl.load(grams + program.to(tl.int64) * k * k + i[:, None] * k + i[None, :], mask=square, other=0.0)
    for j in range(k):
        column = tl.sum(tl.where(i[None, :] == j, g, 0.0), 1)
        pivot = tl.sum(tl.where(i == j, column, 0.0), 0)
        tl.store(pivots + program.to(tl.int64) * k + j, pivot)
        column = tl.where((i == j) & (j < m_r), column - 2, column)  # J + g − 1
        sign = tl.where(j < m_r, -1.0, 1.0)
        factor = column * (sign / (1 + _excess(pivot, j < m_r)))
        factor = tl.where((j < m_r) | (i > j), factor, 0.0)  # an added row's step leaves the inverse alone
        g -= factor[:, None] * column[None, :]
    if program % nodes == 0:
        inverse = tl.where(i[:, None] == i[None, :], g - 3, g)
        # whole tiles, whose addresses are known to the compiler, as masks and odd addresses would cost registers
        tl.store(inverses + (program // nodes).to(tl.int64) * (K * K) + i[:, None] * K + i[None, :], inverse)


@triton.jit
def ldl_logs_kernel(  # type: ignore[no-untyped-def]
    grams,  # [b, Q, k, k] float32, of which the diagonals are read
    pivots,  # [b, Q, k] float32
    logdets,  # [b, Q] float64, out
    m_r,
    k,
    slack,
    K: tl.constexpr,
):
    """Program b·Q + q sums the logarithms of the pivots of candidate b at node q."""
    program = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, K)
    pivot = tl.load(pivots + program * k + i, mask=i < k, other=0.0)
    diagonal = tl.load(grams + program * k * k + i * (k + 1), mask=i < k, other=0.0)
    removed = i < m_r
    plausible = tl.where(removed, pivot <= 1 + slack, pivot >= -slack * (1 + diagonal))
    wrong = tl.max(tl.where(plausible | (i >= k), 0, 1), 0)
    logs = tl.where(i < k, _log1p(_excess(pivot, removed).to(tl.float64)), 0.0)
    tl.store(logdets + program, tl.where(wrong > 0, float("nan"), tl.sum(logs, 0)))


@triton.jit
def ldl_remaining_kernel(  # type: ignore[no-untyped-def]
    inverses,  # [b, K, K] float32, of which the first m_r rows and columns are A⁻¹
    remaining,  # [b] float64, out
    m_r,
    K: tl.constexpr,
):
    """Program b finds the smallest eigenvalue of A, from above, by inverse iteration."""
    b = tl.program_id(0)
    i = tl.arange(0, K)
    at = inverses + b.to(tl.int64) * (K * K) + i[:, None] * K + i[None, :]
    inverse = tl.load(at, mask=(i < m_r)[:, None] & (i < m_r)[None, :], other=0.0)
    place = (i + 1).to(tl.float32)
    x = place * place * GOLDEN
    x = tl.where(i < m_r, x - tl.floor(x), 0.0)
    for _ in range(STEPS):
        x = x / tl.sqrt(tl.sum(x * x, 0))
        x = tl.sum(inverse * x[None, :], 1)
    tl.store(remaining + b, (1 / tl.sqrt(tl.sum(x * x, 0))).to(tl.float64))


# ----------------------------------------------------------------------------------------------------------- launchers


def ldl_logdet(grams: torch.Tensor, m_r: int, slack: float = 1e-3) -> Factors:
    """Equation 1 of every matrix, by csrc/cuda where it can, else by Triton.

    grams  [b, Q, k, k] float32, the nodes of each candidate in ascending order; k ≤ 128, or 256 by csrc/cuda
    m_r    how many rows are removed; with 0, `remaining` is 1
    slack  1e-3, by how much a leverage may exceed one

    ValueError for other shapes or dtypes, and where the matrices are not on a CUDA device.
    """
    if grams.ndim != 4 or grams.shape[2] != grams.shape[3] or grams.dtype != torch.float32:
        raise ValueError(f"grams must be [b, Q, k, k] float32, got {tuple(grams.shape)} {grams.dtype}; convert them")
    batch, nodes, k, _ = grams.shape
    if not 0 <= m_r <= k:
        raise ValueError(f"m_r must lie in [0, {k}], the order of the matrices, got {m_r}; it counts removed rows")
    check_grid(batch * nodes)
    logdets = torch.zeros((batch, nodes), dtype=torch.float64, device=grams.device)
    remaining = torch.ones(batch, dtype=torch.float64, device=grams.device)
    if grams.numel() == 0:
        return Factors(logdets, remaining)
    check_device(grams=grams)
    found, grams = Factors(logdets, remaining), grams.contiguous()
    if not factor_obstacle(k, grams.dtype, grams.device) and _by_cuda(grams, m_r, slack, found):
        return found
    if k > MAX_K:
        raise ValueError(f"matrices of order {k} exceed a program's {MAX_K}; use torch's route")
    order = max(16, triton.next_power_of_2(k))
    warps, stages = CONFIGS[order]
    inverses = torch.empty((batch, order, order), dtype=torch.float32, device=grams.device)
    pivots = torch.empty((batch, nodes, k), dtype=torch.float32, device=grams.device)
    options = {"num_warps": warps, "num_stages": stages}
    with torch.cuda.device_of(grams):
        ldl_pivots_kernel[(batch * nodes,)](grams, pivots, inverses, nodes, m_r, k, order, **options)  # d_j
        ldl_logs_kernel[(batch * nodes,)](
            grams, pivots, logdets, m_r, k, float(slack), order, num_warps=LOG_WARPS, num_stages=1
        )  # logdets[b, q] = Σ_j log|d_j| of J + G
        if m_r:  # remaining[b] = λ_min(A)
            ldl_remaining_kernel[(batch,)](inverses, remaining, m_r, order, **options)
    return found


def ldl_logdet_ref(grams: torch.Tensor, m_r: int, slack: float = 1e-3) -> Factors:
    """The same in float64 with torch: pivots column by column, eigenvalues of I − G_rr themselves."""
    gram = grams.to(torch.float64).clone()
    k, least = gram.shape[-1], 4 * torch.finfo(torch.float64).eps
    remaining = gram.new_ones(len(gram))
    if m_r and gram.numel():
        remaining = 1 - torch.linalg.eigvalsh(gram[:, 0, :m_r, :m_r])[:, -1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1).clone()
    logdets = gram.new_zeros(gram.shape[:-2])
    wrong = torch.zeros_like(logdets, dtype=torch.bool)
    for j in range(k):
        g, sign = gram[..., j, j].clone(), -1.0 if j < m_r else 1.0
        wrong |= ~(g <= 1 + slack if j < m_r else g >= -slack * (1 + diagonal[..., j]))
        excess = (-g).clamp(min=least - 1) if j < m_r else g.clamp(min=0)
        logdets += excess.log1p()
        column = gram[..., j + 1 :, j].clone()
        gram[..., j + 1 :, j + 1 :] -= (sign / (1 + excess))[..., None, None] * column[..., None] * column[..., None, :]
    return Factors(logdets.masked_fill(wrong, torch.nan), remaining)


# --------------------------------------------------------------------------------------------------- the CUDA kernel


def factor_obstacle(k: int, dtype: torch.dtype, device: torch.device) -> str:
    """The reason why csrc/cuda/ldl_logdet.cu cannot factor matrices of order k on this device; empty if it can."""
    if device.type != "cuda":
        return f"data lives on {device}"
    if k > CUDA_MAX_K:
        return f"{k} rows exceed the CUDA kernel's {CUDA_MAX_K}"
    if _cuda_kernel() is None:
        return "fastfid._C was built without CUDA"
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack the next field
    needed, most = ldl_shared_bytes(k, dtype), properties.shared_memory_per_block_optin
    return "" if needed <= most else f"{k} rows need {needed} bytes of shared memory and a block has {most}"


def ldl_shared_bytes(k: int, dtype: torch.dtype) -> int:
    """Bytes of shared memory that a block of csrc/cuda/ldl_logdet.cuh takes (`ldl_shared_bytes` there)."""
    return 256 * (8 + 4) + (k * (k + 1) // 2 + 2 * k) * dtype.itemsize


def _cuda_kernel() -> Any:
    """`fastfid._C.ldl_logdet_cuda`, or None if the extension was not built or was built without CUDA."""
    try:
        from fastfid import _C
    except ImportError:
        return None
    return getattr(_C, "ldl_logdet_cuda", None)


def _by_cuda(grams: torch.Tensor, m_r: int, slack: float, out: Factors) -> bool:
    """Fill `out` by csrc/cuda/ldl_logdet.cu; False if the device lacks shared memory, RuntimeError for other errors."""
    wrong = torch.empty(grams.shape[:2], dtype=torch.int32, device=grams.device)
    with torch.cuda.device_of(grams):
        status = _cuda_kernel()(
            *(t.data_ptr() for t in (grams, out.logdets, wrong, out.remaining)),
            count=wrong.numel(),
            nodes=grams.shape[1],
            k=grams.shape[-1],
            removed=m_r,
            slack=slack,
            is_double=grams.dtype == torch.float64,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    if status not in (0, INVALID_VALUE):
        raise RuntimeError(f"ldl_logdet failed with CUDA error {status} on {grams.device}; pass backend='torch'")
    return bool(status == 0)
