"""tr √M of a large positive definite matrix without its eigenvalues: a band by reflections, then log-determinants.

1.  Block reflections turn M [d, d] into a matrix B with the same eigenvalues and b diagonals beside the main one
    (Bischof, Lang & Sun, ACM Trans. Math. Softw. 26 (2000)).  A panel of b columns is factored, A₂₁ = Q R, and the
    block to its right becomes QᵀA₂₂Q.  With Q = I − V T Vᵀ (compact WY form; Schreiber & Van Loan 1989) that is

        A₂₂ − X Vᵀ − V Xᵀ,    X = W − ½ V Tᵀ(VᵀW),    W = A₂₂ V T,    T⁻¹ = striu(VᵀV) + diag(1/τ).

    This takes 4d³/3 flops, like the reduction to three diagonals with which an eigensolver begins.  Here all of them
    are in matrix products; the eigensolver reads all of A₂₂ for every column.
2.  tr √B = d √lo + (1/π) Σ_q ω_q log det((B + τ_q²)/(lo + τ_q²)) with the nodes of linalg/quadrature.py for eigenvalues
    in [lo, hi].  A determinant takes d b² flops, negligible beside d³ (csrc/cpu/band_kernel.h).

hi is the Frobenius norm, which is hardly above the largest eigenvalue of a falling spectrum.  lo is the largest of
PROBES multiples of hi for which B − lo is positive definite.

Measured with two threads: 0.40 s instead of 0.61 s by torch's eigenvalues at d = 2048, 0.079 instead of 0.113 at 1,024,
1.14 instead of 2.19 at 3,072.  The traces differ by 4e-14 of themselves with κ(M) = 8e7 and by 8e-13 with 3e12; there
both methods err by ε·hi in every eigenvalue.

Legend: d dimension, b diagonals beside the main one, Q nodes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid import backend
from fastfid.linalg.quadrature import node_count, sqrt_nodes

Array = npt.NDArray[np.float64]

# b.  Measured at d = 512 to 3,072: widths 32, 48 and 96 take 1.2, 1.05 and 1.1 times as long as 64.
WIDTH = 64

# Rows of A₂₂ in one product.  Half of each square on the diagonal is computed in vain; narrower products are slower.
STRIPE = 256

# Least d for this method.  Measured in ms, and for the eigenvalues: 21 and 19 at d = 512, 31 and 34 at 640, 40 and 49
# at 768.
SMALLEST = 768

# Error of the quadrature in each root, in units of √hi: d of them add up to less than 2e-13 at d = 2048.
TOL = 1e-16

# Multiples of hi tried for lo: 16 fill two vectors of the widest lanes.  They are a factor of 8 apart, which costs at
# most a tenth more nodes.
PROBES = 16


class Band(NamedTuple):
    """B in two forms, float64.

    dense      [d, d] whose upper triangle holds B
    diagonals  [d, b + 1], row i from B_{i,i−b} to B_ii
    """

    dense: Tensor
    diagonals: Array


def suits(matrix: Tensor) -> bool:
    """Whether this method can take `matrix` [d, d] and is faster than its eigenvalues."""
    return backend.cpu_kernels(matrix.device) is not None and len(matrix) >= SMALLEST


def reduce_to_band(upper: Tensor, width: int = WIDTH) -> Band:
    """B of the symmetric matrix in the upper triangle of `upper` [d, d] float64, which is overwritten."""
    dim = len(upper)
    _make_squares_whole(upper)
    for start in range(0, dim - width, width):
        stop = start + width
        panel, rest = upper[start:stop, stop:], upper[stop:, stop:]
        vectors, inverse, triangle = _reflections(panel.T)
        panel.zero_()[:, : len(triangle)] = triangle.T
        _reflect(rest, vectors, inverse, -stop % STRIPE)
    return Band(upper, _diagonals(upper, width))


def trace_of_root(band: Band, resolution: float) -> float | None:
    """tr √B, or None if B − resolution·hi is not positive definite: an eigenvalue may be noise, or negative."""
    hi = _frobenius_norm(band.diagonals)
    lo = _lower_bound(band.diagonals, hi, resolution) if hi else None
    if lo is None:
        return None
    tau, omega = sqrt_nodes(node_count(TOL, lo, hi), lo, hi)
    return len(band.diagonals) * math.sqrt(lo) + float(omega @ _logdets(band.diagonals, tau**2, lo)) / math.pi


# --- the reduction -----------------------------------------------------------------------------------------------


def _make_squares_whole(upper: Tensor) -> None:
    """Fill the lower triangles of the STRIPE-wide squares on the diagonal, so that products can use whole squares."""
    for start in range(0, len(upper), STRIPE):
        square = upper[start : start + STRIPE, start : start + STRIPE]
        square.copy_(square.triu() + square.triu(1).T)


def _reflections(panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V [n, k], T⁻¹ [k, k] and R [k, b] of panel [n, b] = (I − V T Vᵀ) R, k = min(n, b)."""
    factored, tau = torch.geqrf(panel)
    vectors = factored[:, : len(tau)].tril(-1)
    vectors.diagonal().fill_(1)
    vectors *= tau != 0  # no reflection, as in the last row
    inverse = (vectors.T @ vectors).triu(1) + torch.diag(1 / torch.where(tau == 0, 1, tau))
    return vectors.contiguous(), inverse, factored[: len(tau)].triu()


def _reflect(upper: Tensor, vectors: Tensor, inverse: Tensor, first: int) -> None:
    """Upper triangle of A [n, n] ← QᵀAQ by stripes of rows, the first of them up to the next square."""
    edges = [0, *range(first or STRIPE, len(upper), STRIPE), len(upper)]
    stripes = list(zip(edges, edges[1:], strict=False))
    product = torch.zeros_like(vectors)  # A V
    for start, stop in stripes:
        product[start:stop].addmm_(upper[start:stop, start:], vectors[start:])
        product[stop:].addmm_(upper[start:stop, stop:].T, vectors[start:stop])
    reflected = torch.linalg.solve_triangular(inverse, product, upper=True, left=False)  # W
    overlap = torch.linalg.solve_triangular(inverse.T, vectors.T @ reflected, upper=False)
    change = reflected.addmm_(vectors, overlap, alpha=-0.5)  # X
    left, right = torch.cat([change, vectors], dim=1), torch.cat([vectors, change], dim=1)
    for start, stop in stripes:
        upper[start:stop, start:].addmm_(left[start:stop], right[start:].T, alpha=-1)


def _diagonals(upper: Tensor, width: int) -> Array:
    """`Band.diagonals` of the matrix in `upper` [d, d]."""
    dim = len(upper)
    diagonals = torch.zeros(dim, width + 1, dtype=torch.float64)
    for offset in range(min(width + 1, dim)):
        diagonals[offset:, width - offset] = upper.diagonal(offset)
    return diagonals.numpy()


# --- the range ---------------------------------------------------------------------------------------------------


def _frobenius_norm(diagonals: Array) -> float:
    """Frobenius norm of the symmetric B with these diagonals."""
    scale = np.abs(diagonals).max()
    if not scale:
        return 0.0
    squares = np.square(diagonals / scale).sum(axis=0)  # scaled, so that none overflows
    return float(scale * math.sqrt(2 * squares[:-1].sum() + squares[-1]))


def _lower_bound(diagonals: Array, hi: float, resolution: float) -> float | None:
    """The largest of PROBES multiples of hi, from resolution·hi on, below all eigenvalues of B; None if none is."""
    probes = hi * np.geomspace(resolution, 1, PROBES, endpoint=False)
    definite = np.isfinite(_logdets(diagonals, -probes, 2 * hi))
    return float(probes[definite][-1]) if definite[0] else None


def _logdets(diagonals: Array, shifts: Array, origin: float) -> Array:
    """log det((B + s)/(origin + s)) at every shift s [n], NaN where B + s is not positive definite."""
    logdets: Array = backend.extension().band_logdets(diagonals, shifts, origin, torch.get_num_threads())
    return logdets
