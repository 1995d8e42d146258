"""Traces of matrix square roots by the coupled Newton–Schulz iteration, with fused and half-computed products.

For A symmetric positive semidefinite with λ_max(A) ≤ s, the iteration

    Y₀ = A/s,  Z₀ = I,    T = (3I − Z Y)/2,    Y ← Y T,   Z ← T Z

converges to Y = (A/s)^½, Z = (A/s)^−½ (Higham, Functions of Matrices, 2008, eq. 6.35), each eigenvalue y² = λ/s of its
own: y grows by 3/2 a step while small, then quadratically.  With the residual E = I − Z Y, T = I + E/2 and

    E = I − Z Y,    Y ← Y + ½ Y E,    Z ← Z + ½ E Z,                                                            (1)

which is how it is computed: near convergence T is one plus something small, and E keeps that something's digits where a
stored T, in bf16 above all, has rounded them away (emulated tf32, n = 40, loses 2e-4 of a trace with T and 6e-5 with
E).  The last step needs no product but E: tr(Y + ½ Y E) = tr Y + ½ Σ Y∘E.

What may be taken for symmetric.  Y, Z and E are polynomials in A, so every product of (1) is symmetric in exact
arithmetic.  Rounding errors are not.  With small errors F of Y and G of Z, both symmetric, entry (i, j) in A's
eigenbasis of δE is −(y_j G_ij + F_ij/y_i), which has no symmetry, but Y δE has: −(y_i y_j G_ij + F_ij).  So both
updates may be symmetrised, and are: (F, G) goes to ½(F − y_i y_j G), ½(G − F/(y_i y_j)), a projection, and nothing
grows.  E may not be: ½(δE + δEᵀ) turns the projection into a map with the eigenvalue 1 − (2 + ρ + 1/ρ)/4, ρ = y_i/y_j,
below −1 as soon as cond(A) > 34.  Tried in float32 with n = 40 and cond(A) = 1e3: with a symmetrised E the error of the
trace grows about fourfold a step from step 14 on and overflows before step 25; with a full E it stays at 1e-7.  So E
costs n³ multiplications and each update n³/2, two thirds of the plain iteration.

One kernel.  All three products have the form

    C = α I + β X + γ P Q                                                                                       (2)

with (α, X, γ) = (1, none, −1), (0, Y, ½), (0, Z, ½), and the polynomial is applied in registers.  A symmetric C is
computed on a triangular grid, tiles on and below the diagonal; a tile is stored once at (i, j) and, by the same
program, its transpose at (j, i), so that C is symmetric to the last bit.  Q may be any matrix: a symmetric one is
passed as its transpose, so that both operands stream along rows.

Legend: b matrix of the batch, n order, i row and j column of C, in tiles of BLOCK each way, p position along the
product, t number of a tile.
"""

import torch
import triton
import triton.language as tl

from fastfid.triton_kernels import check_choice, check_device, check_grid

# precision of the whole iteration: (stored dtype, products)
PRECISIONS = {
    "ieee": (torch.float32, "ieee"),
    "tf32x3": (torch.float32, "tf32x3"),
    "tf32": (torch.float32, "tf32"),
    "bf16": (torch.bfloat16, "ieee"),
}

# precision: (BLOCK, BLOCK_P, warps, stages), found by trial with compile_facts: no spill on sm_80, sm_90, sm_100.
CONFIGS = {
    "ieee": (64, 16, 8, 2),
    "tf32x3": (64, 32, 4, 3),
    "tf32": (128, 32, 8, 3),
    "bf16": (128, 64, 8, 3),
}


# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def lower_tile(t):
    """Row i and column j ≤ i of tile t of a lower triangle counted row by row: t = i(i + 1)/2 + j."""
    i = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > t, i - 1, i)  # a float32 root may be one off either way
    i = tl.where((i + 1) * (i + 2) // 2 <= t, i + 1, i)
    return i, t - i * (i + 1) // 2


@triton.jit
def store_mirrored(c, out, rows, columns, n, stride_m, stride_n):
    """Tile c at (rows, columns) of out [n, n], its transpose at (columns, rows); of a diagonal tile the lower half."""
    i, x = rows.to(tl.int64)[:, None], columns.to(tl.int64)[None, :]
    inside = (i < n) & (x <= i)
    tl.store(out + i * stride_m + x * stride_n, c, mask=inside)
    tl.store(out + i * stride_n + x * stride_m, c, mask=inside)


@triton.jit
def fused_product_kernel(
    p_matrix,  # [b, n, n] float32 or bfloat16
    q_matrix,  # [b, n, n]
    x_matrix,  # [b, n, n], read if HAS_X
    out,  # [b, n, n], another tensor than the three
    alpha,
    beta,
    gamma,
    n,
    side,  # tiles along a side
    stride_pb,
    stride_pm,
    stride_pn,
    stride_qb,
    stride_qm,
    stride_qn,
    stride_xb,
    stride_xm,
    stride_xn,
    stride_ob,
    stride_om,
    stride_on,
    HAS_X: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program b·tiles + t: tile t of C = αI + βX + γPQ for matrix b, stored with its mirror if C is SYMMETRIC."""
    program = tl.program_id(0)
    if SYMMETRIC:
        tiles = side * (side + 1) // 2
        tile_i, tile_j = lower_tile(program % tiles)
    else:
        tiles = side * side
        tile_i, tile_j = program % tiles // side, program % side
    b = (program // tiles).to(tl.int64)
    rows = tile_i * BLOCK + tl.arange(0, BLOCK)
    columns = tile_j * BLOCK + tl.arange(0, BLOCK)
    i, j = rows.to(tl.int64)[:, None], columns.to(tl.int64)[None, :]
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, n, BLOCK_P):
        at = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        left = p_matrix + b * stride_pb + i * stride_pm + at[None, :] * stride_pn
        right = q_matrix + b * stride_qb + at[:, None] * stride_qm + j * stride_qn
        a = tl.load(left, mask=(i < n) & (at < n)[None, :], other=0.0)
        c = tl.load(right, mask=(at < n)[:, None] & (j < n), other=0.0)
        product = tl.dot(a, c, product, input_precision=PRECISION)
    result = gamma * product + tl.where(i == j, alpha, 0.0)
    inside = (i < n) & (j < n)
    if HAS_X:
        x = tl.load(x_matrix + b * stride_xb + i * stride_xm + j * stride_xn, mask=inside, other=0.0)
        result += beta * x.to(tl.float32)
    result = result.to(out.dtype.element_ty)
    if SYMMETRIC:
        store_mirrored(result, out + b * stride_ob, rows, columns, n, stride_om, stride_on)
    else:
        tl.store(out + b * stride_ob + i * stride_om + j * stride_on, result, mask=inside)


# ----------------------------------------------------------------------------------------------------------- launchers


def fused_product(p, q, x=None, *, alpha=0.0, beta=1.0, gamma=1.0, symmetric=True, precision: str = "tf32x3", out=None):
    """C = αI + βX + γPQ [b, n, n] (equation 2), float32, or bfloat16 with "bf16".

    p, q, x     [b, n, n] of that dtype, any strides; x may be None; pass q.mT for a symmetric q, it is read faster
    symmetric   True computes the lower triangle of C only and mirrors it, whatever PQ and X are
    precision   "ieee" | "tf32x3" | "tf32" | "bf16"
    out         [b, n, n] to write to, none of the inputs' memory; a new tensor by default

    ValueError for other shapes, dtypes, precisions, or devices.
    """
    dtype, dots = _check_precision(precision)
    operands = {"p": p, "q": q} | ({} if x is None else {"x": x})
    out = torch.empty(p.shape, dtype=dtype, device=p.device) if out is None else out
    _check_operands(operands, out, dtype, precision)
    if p.numel() == 0:
        return out
    check_device(**operands, out=out)
    x = p if x is None else x
    batch, n = p.shape[:2]
    block, block_p, warps, stages = CONFIGS[precision]
    side = triton.cdiv(n, block)
    programs = batch * (triangle(side) if symmetric else side * side)
    check_grid(programs)
    strides = (*p.stride(), *q.stride(), *x.stride(), *out.stride())
    constants = ("x" in operands, bool(symmetric), block, block_p, dots)
    scalars = (float(alpha), float(beta), float(gamma), n, side)
    with torch.cuda.device_of(p):  # C = αI + βX + γPQ
        fused_product_kernel[(programs,)](
            p, q, x, out, *scalars, *strides, *constants, num_warps=warps, num_stages=stages
        )
    return out


def fused_product_ref(
    p, q, x=None, *, alpha=0.0, beta=1.0, gamma=1.0, symmetric=True, precision: str = "ieee", out=None
):
    """The same in float64 torch, the whole product; `symmetric`, `precision` and `out` are ignored."""
    product = gamma * (p.to(torch.float64) @ q.to(torch.float64))
    product = product + alpha * torch.eye(p.shape[-1], dtype=torch.float64, device=p.device)
    return product if x is None else product + beta * x.to(torch.float64)


def trace_sqrt(matrices, iterations: int, precision: str = "tf32x3", scale=None):
    """tr A^½ [b] float64 of symmetric positive semidefinite matrices [b, n, n] by `iterations` steps of equation 1.

    precision   "ieee" | "tf32x3" | "tf32" float32 storage, "bf16" bfloat16 storage; accumulators are float32
    scale       [b] upper bounds of λ_max, or None for the Frobenius norms: an eigenvalue λ needs about
                log(s/λ)/log(9/4) steps to grow, and five more to converge; what has not grown counts too little

    Steps after convergence are harmless as long as the format resolves A: in emulation at n = 256, float32 stays put at
    cond(A) = 1e6, tf32 at 1e4 but diverges at 1e6 after 16 steps, bf16 diverges at 1e4 after 12 (n = 40: holds 1e3).

    Memory: four [b, n, n] of the stored dtype; pass fewer matrices at a time where that is too much.  ValueError for
    another shape or dtype, iterations < 1, and tensors that are not on a CUDA device.
    """
    _check_precision(precision)
    _check_matrices(matrices, iterations, scale)
    if matrices.numel() == 0:
        return torch.zeros(len(matrices), dtype=torch.float64, device=matrices.device)
    check_device(matrices=matrices)
    return _trace_sqrt(matrices, iterations, precision, scale, fused_product, PRECISIONS[precision][0])


def trace_sqrt_ref(matrices, iterations: int, precision: str = "ieee", scale=None):
    """The same iteration in float64 torch on any device; `precision` is ignored."""
    _check_matrices(matrices, iterations, scale)
    return _trace_sqrt(matrices, iterations, "ieee", scale, fused_product_ref, torch.float64)


def triangle(tiles: int) -> int:
    """Tiles on and below the diagonal of `tiles` by `tiles`."""
    return tiles * (tiles + 1) // 2


def _trace_sqrt(matrices, iterations, precision, scale, product, dtype):
    """Equation 1 with the given product; Y, Z, E and one spare buffer."""
    if scale is None:
        scale = torch.linalg.vector_norm(matrices, dim=(1, 2), dtype=torch.float64)
    matrices = matrices if matrices.dtype == torch.float64 else matrices.to(torch.float32)
    scale = torch.where(scale > 0, scale, 1.0).to(matrices.dtype)  # A = 0: any scale gives 0
    y = (matrices / scale[:, None, None]).to(dtype)
    eye = torch.eye(y.shape[-1], dtype=dtype, device=y.device)
    z, e, spare = eye.expand_as(y).contiguous(), torch.empty_like(y), torch.empty_like(y)
    for _ in range(iterations - 1):
        e = product(z, y.mT, alpha=1.0, gamma=-1.0, symmetric=False, precision=precision, out=e)  # E = I − Z Y
        grown = product(y, e, y, gamma=0.5, precision=precision, out=spare)  # Y + ½ Y E
        inverse = product(e, z.mT, z, gamma=0.5, precision=precision, out=y)  # Z + ½ E Z
        y, z, spare = grown, inverse, z
    e = product(z, y.mT, alpha=1.0, gamma=-1.0, symmetric=False, precision=precision, out=e)
    trace = y.diagonal(dim1=1, dim2=2).sum(-1, dtype=torch.float64) + 0.5 * _inner(y, e)
    return trace * scale.to(torch.float64).sqrt()


def _inner(y, e):
    """Σ Y∘E [b] in float64, a matrix at a time, so that one float64 [n, n] is all the memory it takes."""
    return torch.stack([(a.to(torch.float64) * b).sum() for a, b in zip(y, e, strict=True)])


def _check_operands(operands: dict, out, dtype, precision: str) -> None:
    shape = operands["p"].shape
    for name, tensor in operands.items():
        if tensor.ndim != 3 or tensor.shape[1] != tensor.shape[2] or tensor.shape != shape:
            raise ValueError(
                f"{name} must be [b, n, n] as p, got {tuple(tensor.shape)}; batch square matrices of one size"
            )
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} for precision {precision}, got {tensor.dtype}; convert it first")
    overlaps = any(out.data_ptr() == tensor.data_ptr() for tensor in operands.values() if tensor.numel())
    if out.shape != shape or out.dtype != dtype or overlaps:
        raise ValueError(
            f"out must be {dtype} {list(shape)} apart from the inputs, got {out.dtype} {list(out.shape)}; "
            "other programs still read the inputs"
        )


def _check_precision(precision):
    check_choice("precision", precision, tuple(PRECISIONS))
    return PRECISIONS[precision]


def _check_matrices(matrices, iterations, scale) -> None:
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"matrices must be [b, n, n], got {tuple(matrices.shape)}; add a leading axis of 1 for one")
    if not matrices.is_floating_point():
        raise ValueError(f"matrices must be floating point, got {matrices.dtype}; convert them first")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}; 20 resolve eigenvalues down to 1e-5 of s")
    if scale is not None and scale.shape != matrices.shape[:1]:
        raise ValueError(f"scale must be [{len(matrices)}], one bound a matrix, got {tuple(scale.shape)}; or pass None")
