"""log|det(J + G)| of every candidate at every node. One program computes one of them, entirely in registers.

For the rows W = [W_r; W_a] of a candidate and a node τ, equation 3 of fastfid/swap/log_determinants.py needs

    G = W (Λ + τ²)⁻¹ Wᵀ = S Sᵀ,   S = W D^½,   D = (Λ + τ²)⁻¹,   J = diag(−1 … −1, +1 … +1),   log|det(J + G)|.

Gram matrix.  The kernel reads S along the rank in slices of BLOCK columns and adds G += S_p S_pᵀ to a K×K float32
accumulator.  K is the next power of two of k = m_r + m_a.  Both factors are scaled by D^½, not one by D.  So both
operands are the same tile, and G is symmetric.  W_r and W_a are not copied: a row index below m_r reads the first
tensor, the others read the second.  Products are float32 ("ieee") or three tensor-core products of tf32 halves
("tf32x3", error about 2⁻²²).  Plain tf32 keeps 2⁻¹¹ of G, too little for the change of one swap, and is an error.

LDLᵀ.  The removed rows come first, so J + G is quasi-definite and needs no pivoting
(swap/log_determinants.py).  For j = 0 … k−1

    d_j = J_j + G_jj,   G −= g gᵀ/d_j   with g = G[:, j],   log|det(J + G)| = Σ_j log|d_j|.

The update changes the whole tile.  Rows and columns up to j become meaningless.  The kernel never reads them again: a
later column uses only its pivot and the entries below the diagonal.  J is never added to the matrix (as in
csrc/cuda/ldl_logdet.cuh).  The kernel uses the excess e = |d_j| − 1 instead, which is −G_jj for a removed row and G_jj
for an added one.  e keeps digits in float32 that 1 + e rounds away.  Σ log1p(e) is taken in float64 after the
elimination.  These k logarithms are few next to the k³/2 multiply-adds, and the sum needs no compensation.

A pivot of the wrong sign (by more than `slack`, the error allowed for float32) means that the removed rows are not in
the reference.  Then the log-determinant is NaN, and the pivot d_j is returned as well.

Changes of more than 128 rows do not fit into the registers of a program.  torch forms their Gram matrices.  Up to
k = 256 the CUDA kernel of csrc/cuda factors them.  torch's Cholesky factors them for larger k, if that kernel was not
built, or if it needs more shared memory than the device has (`factor_obstacle`; the engine's report says which).

Legend: b candidate, q node, Q nodes, k rows of W, m_r of them removed, r rank, p position along it, i row and x, j
columns of G; K power of two ≥ k, BLOCK positions per step.
"""

from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl

from fastfid.runtime.devices import full_float32
from fastfid.triton_kernels import check_choice, check_device, check_grid

PRECISIONS = ("tf32x3", "ieee")

# Least 1 − g of a leverage g: 4 ε of float32, as in csrc/cuda/ldl_logdet.cuh. Below it, 1 − g is only rounding error.
LEAST = tl.constexpr(4.8e-7)

# Largest order of a tile: order 256 would take 256²/256 threads = 256 of the 255 registers of a thread (8 warps).
MAX_K = 128

# Largest order that csrc/cuda/ldl_logdet.cu factors (LDL_MAX_K there).
CUDA_MAX_K = 256

# cudaErrorInvalidValue: the device does not have the shared memory that a block asked for.
INVALID_VALUE = 1

# Bytes of scaled rows that wide changes hold at a time; small compared with the engine's workspace of 256 MiB.
WIDE_BYTES = 64 << 20

# (K, precision): (BLOCK, warps, stages), found by trial with bench/compile_facts.py: triton 3.6 to 3.9 spill no
# register on sm_80, sm_90 and sm_100.  With 2 warps, triton 3.6 spills 8 bytes of (32, "ieee") on sm_90.
CONFIGS = {
    (16, "tf32x3"): (32, 1, 2),
    (32, "tf32x3"): (32, 2, 2),
    (64, "tf32x3"): (16, 4, 2),
    (128, "tf32x3"): (16, 8, 2),
    (16, "ieee"): (16, 1, 2),
    (32, "ieee"): (16, 4, 2),
    (64, "ieee"): (16, 4, 2),
    (128, "ieee"): (16, 16, 2),
}

# log-determinants and wrong pivots, each [b, Q] float64
Logdets: TypeAlias = tuple[torch.Tensor, torch.Tensor]


# ------------------------------------------------------------------------------------------------------------- kernel


@triton.jit
def _gram(  # type: ignore[no-untyped-def]
    w_r, w_a, roots, m_r, k, r, stride_rm, stride_rp, stride_am, stride_ap, K, BLOCK, PRECISION
):
    """G = Σ_p S_p S_pᵀ [K, K] float32 of one candidate and node; rows beyond k are zero."""
    i = tl.arange(0, K)[:, None]
    rows_r = w_r + i.to(tl.int64) * stride_rm
    rows_a = w_a + (i - m_r).to(tl.int64) * stride_am
    g = tl.zeros((K, K), tl.float32)
    for start in range(0, r, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < r
        column = p.to(tl.int64)[None, :]
        root = tl.load(roots + p, mask=inside, other=0.0)
        removed = tl.load(rows_r + column * stride_rp, mask=(i < m_r) & inside[None, :], other=0.0)
        added = (i >= m_r) & (i < k)
        w = tl.load(rows_a + column * stride_ap, mask=added & inside[None, :], other=removed)
        s = w * root[None, :]
        g = tl.dot(s, tl.trans(s), g, input_precision=PRECISION)
    return g


@triton.jit
def _excess(g, removed):  # type: ignore[no-untyped-def]
    """|J + g| − 1, limited to what exact arithmetic allows: 1 − g > 0 for a removed row, g ≥ 0 for an added one."""
    return tl.where(removed, tl.where(g <= 1 - LEAST, -g, LEAST - 1), tl.maximum(g, 0.0))


@triton.jit
def _eliminate(g, m_r, k, K):  # type: ignore[no-untyped-def]
    """Pivots without J, which are G_jj at step j of the LDLᵀ of J + G, as a vector [K]."""
    i = tl.arange(0, K)
    pivots = tl.zeros((K,), tl.float32)
    for j in range(k):
        column = tl.sum(tl.where(i[None, :] == j, g, 0.0), 1)
        pivot = tl.sum(tl.where(i == j, column, 0.0), 0)
        pivots = tl.where(i == j, pivot, pivots)
        sign = tl.where(j < m_r, -1.0, 1.0)
        factor = column * (sign / (1 + _excess(pivot, j < m_r)))
        g -= factor[:, None] * column[None, :]
    return pivots


@triton.jit
def _log1p(e):  # type: ignore[no-untyped-def]
    """log(1 + e) in float64, accurate for small e (Goldberg 1991, theorem 4)."""
    u = 1 + e
    return tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def swap_logdet_kernel(  # type: ignore[no-untyped-def]
    w_r,  # [b, m_r, r] float32, any strides
    w_a,  # [b, m_a, r] float32, any strides
    roots,  # [Q, r] float32, D^½
    logdets,  # [b, Q] float64, out
    wrong,  # [b, Q] float64, out: the first pivot of the wrong sign, or 0
    nodes,  # Q
    m_r,
    k,
    r,
    slack,
    stride_rb,
    stride_rm,
    stride_rp,
    stride_ab,
    stride_am,
    stride_ap,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program b·Q + q computes log|det(J + G)| of candidate b at node q."""
    program = tl.program_id(0)
    b, q = (program // nodes).to(tl.int64), (program % nodes).to(tl.int64)
    w_r += b * stride_rb
    w_a += b * stride_ab
    g = _gram(w_r, w_a, roots + q * r, m_r, k, r, stride_rm, stride_rp, stride_am, stride_ap, K, BLOCK, PRECISION)
    i = tl.arange(0, K)
    diagonal = tl.sum(tl.where(i[:, None] == i[None, :], g, 0.0), 1)
    pivots = _eliminate(g, m_r, k, K)
    removed = i < m_r
    plausible = tl.where(removed, pivots <= 1 + slack, pivots >= -slack * (1 + diagonal))
    first = tl.min(tl.where(plausible | (i >= k), K, i), 0)
    logs = tl.where(i < k, _log1p(_excess(pivots, removed).to(tl.float64)), 0.0)
    signed = tl.where(removed, -1.0, 1.0) + pivots
    tl.store(logdets + program, tl.where(first < K, float("nan"), tl.sum(logs, 0)))
    tl.store(wrong + program, tl.sum(tl.where(i == first, signed, 0.0), 0).to(tl.float64))


# ----------------------------------------------------------------------------------------------------------- launchers


def swap_logdet(
    w_r: torch.Tensor,
    w_a: torch.Tensor,
    spectrum: torch.Tensor,
    tau_squares: torch.Tensor,
    slack: float = 1e-3,
    input_precision: str = "tf32x3",
) -> Logdets:
    """log|det(J + G)| [b, Q] float64 (equation 3 of swap/log_determinants.py) and wrong-signed pivots [b, Q] float64.

    w_r          [b, m_r, r] float32, any strides: removed rows          w_a  [b, m_a, r] likewise: added rows
    spectrum     λ [r] and tau_squares τ² [Q] float64, λ + τ² > 0
    slack        1e-3, by how much a leverage may exceed one
    input_precision  "tf32x3", tensor cores, or "ieee", float32 units

    If a pivot has the wrong sign, the log-determinant is NaN and the second result is that pivot; otherwise it is 0.
    ValueError for other shapes, dtypes or precisions, and if the tensors are not on one CUDA device.
    """
    _check(w_r, w_a, spectrum, tau_squares)
    check_choice("input_precision", input_precision, PRECISIONS)
    batch, m_r, r = w_r.shape
    k, nodes = m_r + w_a.shape[1], len(tau_squares)
    check_grid(batch * nodes)
    if batch * nodes * k * r == 0:
        logdets, wrong = w_r.new_zeros((2, batch, nodes), dtype=torch.float64).unbind(0)
        return logdets, wrong
    roots = (spectrum.to(torch.float64) + tau_squares.to(torch.float64)[:, None]).rsqrt().to(torch.float32)
    if k > MAX_K:
        return _swap_logdet_wide(w_r, w_a, roots, slack)
    check_device(w_r=w_r, w_a=w_a, spectrum=spectrum, tau_squares=tau_squares)
    logdets, wrong = (torch.empty((batch, nodes), dtype=torch.float64, device=w_r.device) for _ in range(2))
    order = max(16, triton.next_power_of_2(k))
    block, warps, stages = CONFIGS[order, input_precision]
    sizes = (nodes, m_r, k, r, float(slack), *w_r.stride(), *w_a.stride())
    with torch.cuda.device_of(w_r):  # logdets[b, q] = Σ_j log|d_j| of J + G
        swap_logdet_kernel[(batch * nodes,)](
            w_r, w_a, roots, logdets, wrong, *sizes, order, block, input_precision, num_warps=warps, num_stages=stages
        )
    return logdets, wrong


def swap_logdet_ref(
    w_r: torch.Tensor,
    w_a: torch.Tensor,
    spectrum: torch.Tensor,
    tau_squares: torch.Tensor,
    slack: float = 1e-3,
    input_precision: str = "ieee",
) -> Logdets:
    """The same in float64 with torch, column by column, on any device, for any k; `input_precision` is ignored."""
    _check(w_r, w_a, spectrum, tau_squares, dtypes=(torch.float32, torch.float64))
    w = torch.cat([w_r, w_a], 1).to(torch.float64)[:, None]
    scaled = w * (spectrum.to(torch.float64) + tau_squares.to(torch.float64)[:, None]).rsqrt()[:, None]
    return _logdets_of_pivots(scaled @ scaled.mT, w_r.shape[1], slack, least=4 * torch.finfo(torch.float64).eps)


def _swap_logdet_wide(w_r: torch.Tensor, w_a: torch.Tensor, roots: torch.Tensor, slack: float) -> Logdets:
    """swap_logdet for k > 128, a few candidates at a time: Gram matrices by torch in float32, then their factors."""
    m_r, k = w_r.shape[1], w_r.shape[1] + w_a.shape[1]
    step = max(1, WIDE_BYTES // (4 * k * max(k, w_r.shape[2]) * len(roots)))
    parts = []
    with full_float32(w_r.device):
        for first in range(0, len(w_r), step):
            w = torch.cat([w_r[first : first + step], w_a[first : first + step]], 1)
            scaled = w[:, None] * roots[:, None]
            gram = scaled @ scaled.mT
            use_cuda = not factor_obstacle(k, gram.dtype, gram.device)
            parts.append((_factor_cuda if use_cuda else _factor_torch)(gram, m_r, slack))
    logdets, wrong = (torch.cat(part) for part in zip(*parts, strict=True))
    return logdets, wrong


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


def _factor_cuda(gram: torch.Tensor, m_r: int, slack: float) -> Logdets:
    """(log-determinants, wrong pivots) [b, Q] of J + gram [b, Q, k, k] by csrc/cuda/ldl_logdet.cu, in gram's dtype.

    If the device lacks shared memory, torch factors instead.  Any other CUDA error is a RuntimeError with its number.
    """
    logdets = torch.empty(gram.shape[:2], dtype=torch.float64, device=gram.device)
    bad = torch.empty(gram.shape[:2], dtype=torch.int32, device=gram.device)
    with torch.cuda.device_of(gram):
        status = _cuda_kernel()(
            *(t.data_ptr() for t in (gram, logdets, bad)),
            count=logdets.numel(),
            k=gram.shape[-1],
            removed=m_r,
            slack=slack,
            is_double=gram.dtype == torch.float64,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    if status == INVALID_VALUE:
        return _factor_torch(gram, m_r, slack)
    if status:
        raise RuntimeError(f"ldl_logdet failed with CUDA error {status} on {gram.device}; pass backend='torch'")
    return logdets, _wrong_pivots(gram, logdets, m_r, slack)


def _factor_torch(gram: torch.Tensor, m_r: int, slack: float) -> Logdets:
    """The same by two Cholesky factors: of I − G_rr and of its Schur complement I + G_aa + G_ar (I − G_rr)⁻¹ G_ra."""
    gram = gram.to(torch.float64)
    eye = torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)
    lower, info = torch.linalg.cholesky_ex(eye[:m_r, :m_r] - gram[..., :m_r, :m_r])
    half = torch.linalg.solve_triangular(lower, gram[..., :m_r, m_r:], upper=False)
    schur, info_a = torch.linalg.cholesky_ex(eye[m_r:, m_r:] + gram[..., m_r:, m_r:] + half.mT @ half)
    diagonals = torch.cat([f.diagonal(dim1=-2, dim2=-1) for f in (lower, schur)], -1)
    logdets = 2 * diagonals.log().sum(-1)
    logdets[(info != 0) | (info_a != 0) | ~torch.isfinite(logdets)] = torch.nan
    wrong = torch.zeros_like(logdets)
    failed = logdets.isnan()
    if failed.any():  # a leverage within the slack of one, or a wrong pivot: column by column
        logdets[failed], wrong[failed] = _logdets_of_pivots(gram[failed], m_r, slack)
    return logdets, wrong


def _wrong_pivots(gram: torch.Tensor, logdets: torch.Tensor, m_r: int, slack: float) -> torch.Tensor:
    """The pivot of the wrong sign if a log-determinant is NaN, otherwise 0: [b, Q] float64."""
    wrong = torch.zeros_like(logdets)
    failed = logdets.isnan()
    if failed.any():
        wrong[failed] = _logdets_of_pivots(gram[failed].to(torch.float64), m_r, slack)[1]
    return wrong


def _logdets_of_pivots(gram: torch.Tensor, m_r: int, slack: float, least: float = LEAST.value) -> Logdets:
    """(Σ log|d_j| or NaN, first wrong pivot or 0) of J + gram [..., k, k] float64, by the LDLᵀ described above."""
    gram = gram.clone()
    k = gram.shape[-1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1).clone()
    logdets = gram.new_zeros(gram.shape[:-2])
    wrong, failed = torch.zeros_like(logdets), torch.zeros_like(logdets, dtype=torch.bool)
    for j in range(k):
        g, sign = gram[..., j, j].clone(), -1.0 if j < m_r else 1.0
        plausible = g <= 1 + slack if j < m_r else g >= -slack * (1 + diagonal[..., j])
        wrong = torch.where(failed | plausible, wrong, sign + g)
        failed = failed | ~plausible
        excess = (-g).clamp(min=least - 1) if j < m_r else g.clamp(min=0)
        logdets += excess.log1p()
        column = gram[..., j + 1 :, j].clone()
        gram[..., j + 1 :, j + 1 :] -= (sign / (1 + excess))[..., None, None] * column[..., None] * column[..., None, :]
    return logdets.masked_fill(failed, torch.nan), wrong


def _check(
    w_r: torch.Tensor,
    w_a: torch.Tensor,
    spectrum: torch.Tensor,
    tau_squares: torch.Tensor,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> None:
    if w_r.ndim != 3 or w_a.ndim != 3 or w_r.shape[0] != w_a.shape[0] or w_r.shape[2] != w_a.shape[2]:
        raise ValueError(
            f"w_r must be [b, m_r, r] and w_a [b, m_a, r], got {tuple(w_r.shape)} and {tuple(w_a.shape)}; "
            "project both with the same basis"
        )
    for name, w in (("w_r", w_r), ("w_a", w_a)):
        if w.dtype not in dtypes:
            raise ValueError(f"{name} must be float32, got {w.dtype}; use the torch backend for other dtypes")
    if spectrum.shape != (w_r.shape[2],):
        raise ValueError(
            f"spectrum must be [{w_r.shape[2]}], the length of the rows, got {tuple(spectrum.shape)}; pass λ"
        )
    if tau_squares.ndim != 1:
        raise ValueError(f"tau_squares must be [Q], got {tuple(tau_squares.shape)}; pass one τ² per node")
