"""Square roots of matrices by coupled polynomial iterations. Additions are fused into the products.

For a symmetric positive semidefinite A with λ_max(A) ≤ 1, the iteration of fastfid/linalg/iterative_roots.py

    Y₀ = A,  Z₀ = I,    T = Z Y,    W = aI + bT + cT²,    Y ← Y W,   Z ← W Z

converges to Y = A^½, Z = A^−½.  With (3/2, −1/2, 0) in every step it is the Newton–Schulz iteration (Higham, Functions
of Matrices, 2008, eq. 6.35).  The kernel uses the residual E = I − T.  With p₀ = a + b + c, p₁ = −(b + 2c) and p₂ = c

    E = I − Z Y,    W = p₀I + p₁E + p₂E²,    Y ← Y W = p₀Y + p₁Y E  and  Z ← W Z = p₀Z + p₁E Z  where c = 0.   (1)

Close to convergence W is the identity plus a small term.  E keeps the digits of this term; a stored T rounds them away
(emulated tf32, n = 40: the trace loses 2e-4 with T and 6e-5 with E).

Which matrices may be symmetrised.  Y, Z and E are polynomials in A, so every product of (1) is symmetric in exact
arithmetic, but its rounding errors are not.  Let Y and Z have small symmetric errors F and G.  In A's eigenbasis, entry
(i, j) of the error δE is −(y_j G_ij + F_ij/y_i).  It is not symmetric.  Y δE is symmetric: −(y_i y_j G_ij + F_ij).
Therefore both updates may be symmetrised, and the kernel does so: the last Newton–Schulz steps map (F, G) to
½(F − y_i y_j G), ½(G − F/(y_i y_j)).  This map is a projection, so no error grows.  E must not be symmetrised:
½(δE + δEᵀ) turns the projection into a map with the eigenvalue 1 − (2 + ρ + 1/ρ)/4, ρ = y_i/y_j, which is below −1 if
cond(A) > 34.  In a trial in float32 with n = 40 and cond(A) = 1e3, a symmetrised E multiplied the error of the trace by
about four per step from step 14 on, and the iteration overflowed before step 25.  With a full E the error stays at
1e-7.  The same holds for W, because δW_ij is δE_ij times a symmetric function of t_i and t_j.  So E and W cost n³
multiplications each, and an update costs n³/2.

One kernel.  All three products have the form

    C = α I + β X + γ P Q                                                                                       (2)

with (α, X, β, γ) = (1, none, 0, −1) for E, (p₀, E, p₁, p₂) for W, and (0, Y, p₀, p₁), (0, Z, p₀, p₁) for the updates.
The polynomial is applied in registers.  For a symmetric C the grid covers only tiles on and below the diagonal.  A
program stores its tile at (i, j) and the transpose at (j, i), so C is symmetric to the last bit.  Q may be any matrix.
Pass a symmetric Q as its transpose: then the kernel reads both operands along rows.

Legend: b matrix of the batch, n order, i row and j column of C, in tiles of BLOCK each way, p position along the
product, t number of a tile.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

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

# precision: (BLOCK, BLOCK_P, warps, stages), found by trial with bench/compile_facts.py: triton 3.6 to 3.9 spill no
# register on sm_80, sm_90 and sm_100.  With 4 warps, triton 3.8 spills 16 bytes of "tf32x3" on sm_80.
CONFIGS = {
    "ieee": (64, 16, 8, 2),
    "tf32x3": (64, 32, 8, 3),
    "tf32": (128, 32, 8, 3),
    "bf16": (128, 64, 8, 3),
}

# coefficients (a, b, c) of one step
Polynomial: TypeAlias = tuple[float, float, float]

# after one step: Y and Z [b, n, n], and the residual [b] before it
Step: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def lower_tile(t):  # type: ignore[no-untyped-def]
    """Row i and column j ≤ i of tile t of a lower triangle, counted row by row: t = i(i + 1)/2 + j."""
    i = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > t, i - 1, i)  # a float32 root may differ by one in either direction
    i = tl.where((i + 1) * (i + 2) // 2 <= t, i + 1, i)
    return i, t - i * (i + 1) // 2


@triton.jit
def store_mirrored(c, out, rows, columns, n, stride_m, stride_n):  # type: ignore[no-untyped-def]
    """Stores tile c at (rows, columns) of out [n, n] and its transpose at (columns, rows).

    Of a tile on the diagonal, only the lower half is used.
    """
    i, x = rows.to(tl.int64)[:, None], columns.to(tl.int64)[None, :]
    inside = (i < n) & (x <= i)
    tl.store(out + i * stride_m + x * stride_n, c, mask=inside)
    tl.store(out + i * stride_n + x * stride_m, c, mask=inside)


@triton.jit
def fused_product_kernel(  # type: ignore[no-untyped-def]
    p_matrix,  # [b, n, n] float32 or bfloat16
    q_matrix,  # [b, n, n]
    x_matrix,  # [b, n, n], read if HAS_X
    out,  # [b, n, n]
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
    """Program b·tiles + t computes tile t of C = αI + βX + γPQ for matrix b; SYMMETRIC also stores its transpose."""
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


def fused_product(
    p: torch.Tensor,
    q: torch.Tensor,
    x: torch.Tensor | None = None,
    *,
    alpha: float = 0.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    symmetric: bool = True,
    precision: str = "tf32x3",
) -> torch.Tensor:
    """C = αI + βX + γPQ [b, n, n] (equation 2), float32, or bfloat16 for "bf16".

    p, q, x     [b, n, n] of that dtype, any strides; x may be None; pass a symmetric q as q.mT, which is faster to read
    symmetric   True computes only the lower triangle of C and mirrors it, for any PQ and X
    precision   "ieee" | "tf32x3" | "tf32" | "bf16"

    ValueError for other shapes, dtypes, precisions, or devices.
    """
    dtype, dots = _check_precision(precision)
    operands = {"p": p, "q": q} | ({} if x is None else {"x": x})
    _check_operands(operands, dtype, precision)
    out = torch.empty(p.shape, dtype=dtype, device=p.device)
    if p.numel() == 0:
        return out
    check_device(**operands)
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
    p: torch.Tensor,
    q: torch.Tensor,
    x: torch.Tensor | None = None,
    *,
    alpha: float = 0.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    symmetric: bool = True,
    precision: str = "ieee",
) -> torch.Tensor:
    """The same in float64 with torch, as a full product; `symmetric` and `precision` are ignored."""
    product = gamma * (p.to(torch.float64) @ q.to(torch.float64))
    product = product + alpha * torch.eye(p.shape[-1], dtype=torch.float64, device=p.device)
    return product if x is None else product + beta * x.to(torch.float64)


def iterates(matrix: torch.Tensor, polynomials: Iterable[Polynomial], precision: str = "tf32x3") -> Iterator[Step]:
    """Y, Z [b, n, n] after each step (a, b, c) of `polynomials`, and ‖I − Z Y‖_F/√n [b] before it (equation 1).

    matrix     A [b, n, n] float32, or bfloat16 for "bf16"; symmetric with eigenvalues between 0 and 1
    precision  "ieee" | "tf32x3" | "tf32" float32 storage, "bf16" bfloat16 storage; accumulators are float32

    Steps after convergence do no harm while the format resolves A.  In emulation with n = 256, float32 stays converged
    at cond(A) = 1e6.  tf32 stays converged at 1e4 and diverges at 1e6 after 16 steps.  bf16 diverges at 1e4 after 12
    steps (n = 40: it stays converged at 1e3).

    Memory: six [b, n, n] of the stored dtype.  ValueError for another shape or dtype, and if the matrix is not on a
    CUDA device.
    """
    dtype, _ = _check_precision(precision)
    _check_operands({"matrix": matrix}, dtype, precision)
    check_device(matrix=matrix)
    yield from _iterates(matrix, polynomials, partial(fused_product, precision=precision))


def iterates_ref(matrix: torch.Tensor, polynomials: Iterable[Polynomial], precision: str = "ieee") -> Iterator[Step]:
    """The same in float64 with torch, on any device; `precision` is ignored."""
    yield from _iterates(matrix.to(torch.float64), polynomials, fused_product_ref)


def triangle(tiles: int) -> int:
    """Number of tiles on and below the diagonal of a square of `tiles` by `tiles`."""
    return tiles * (tiles + 1) // 2


def _iterates(
    matrix: torch.Tensor, polynomials: Iterable[Polynomial], product: Callable[..., torch.Tensor]
) -> Iterator[Step]:
    """Equation 1 with `fused_product` or `fused_product_ref` as `product`; Z₀ = I is never stored."""
    y, z = matrix, None
    for a, b, c in polynomials:
        p0, p1, p2 = a + b + c, -b - 2 * c, c
        e = _plus_identity(-y, 1.0) if z is None else product(z, y.mT, alpha=1.0, gamma=-1.0, symmetric=False)
        residual = torch.linalg.vector_norm(e, dim=(1, 2), dtype=torch.float64) / max(1, e.shape[-1]) ** 0.5
        if c:
            w = product(e, e.mT if z is None else e, e, alpha=p0, beta=p1, gamma=p2, symmetric=z is None)
            y, z = product(y, w), w if z is None else product(w, z.mT)
        else:
            grown = product(y, e, y, beta=p0, gamma=p1)
            z = _plus_identity(p1 * e, p0) if z is None else product(e, z.mT, z, beta=p0, gamma=p1)
            y = grown
        yield y, z, residual


def _plus_identity(matrix: torch.Tensor, factor: float) -> torch.Tensor:
    matrix.diagonal(dim1=-2, dim2=-1).add_(factor)
    return matrix


def _check_operands(operands: dict[str, torch.Tensor], dtype: torch.dtype, precision: str) -> None:
    first, shape = next((name, tuple(tensor.shape)) for name, tensor in operands.items())
    for name, tensor in operands.items():
        if tensor.ndim != 3 or tensor.shape[1] != tensor.shape[2] or tensor.shape != shape:
            as_first = "" if name == first else f" as {first}"
            raise ValueError(
                f"{name} must be [b, n, n]{as_first}, got {tuple(tensor.shape)}; batch square matrices of one size"
            )
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} for precision {precision}, got {tensor.dtype}; convert it first")


def _check_precision(precision: str) -> tuple[torch.dtype, str]:
    check_choice("precision", precision, tuple(PRECISIONS))
    return PRECISIONS[precision]
