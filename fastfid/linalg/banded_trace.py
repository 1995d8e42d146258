"""tr √M of a large positive definite matrix without its eigenvalues: a band by reflections, then log-determinants.

1.  Block reflections make M [d, d] a matrix B of the same eigenvalues with b diagonals beside the main one (Bischof,
    Lang & Sun, ACM Trans. Math. Softw. 26 (2000)).  A panel of b columns is factored, A₂₁ = Q R, and what is right of
    it becomes QᵀA₂₂Q.  With Q = I − V T Vᵀ (compact WY form; Schreiber & Van Loan 1989) that is

        A₂₂ − X Vᵀ − V Xᵀ,    X = W − ½ V Tᵀ(VᵀW),    W = A₂₂ V T,    T⁻¹ = striu(VᵀV) + diag(1/τ),

    4d³/3 flops like the reduction to three diagonals that eigenvalues begin with, but all of them in matrix products,
    where that one reads all of A₂₂ again for every column.
2.  tr √B = d √lo + (1/π) Σ_q ω_q log det((B + τ_q²)/(lo + τ_q²)) by the nodes of linalg/quadrature.py, eigenvalues in
    [lo, hi].  A determinant is d b² flops, nothing beside d³ (csrc/cpu/band_kernel.h).

hi is the Frobenius norm, hardly above the largest eigenvalue where a spectrum falls; lo the largest of PROBES multiples
of it that leave B − lo positive definite.

Speed, two threads, best of some runs: 0.40 s beside 0.61 by torch's eigenvalues at d = 2048, 0.079 beside 0.113 at
1,024, 1.14 beside 2.19 at 3,072.  Of the 0.40, 0.09 go to panels and 0.02 to determinants.

Accuracy, d = 1,024 and 2,048: 4e-14 of the trace beside the eigenvalues' with κ(M) = 8e7, 8e-13 with 3e12, where either
way errs by ε·hi in every eigenvalue.

Legend: d dimension, b diagonals beside the main one, Q nodes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastfid import backend
from fastfid.linalg.quadrature import node_count, sqrt_nodes

# b.  Measured from d = 512 to 3,072: 32, 48 and 96 take 1.2, 1.05 and 1.1 of the time of 64.
WIDTH = 64

# Rows of A₂₂ multiplied at a time: of a square on the diagonal half is made in vain, narrower products are slower.
STRIPE = 256

# Least d that takes this way.  Measured, in ms beside the eigenvalues: 21 and 19 at d = 512, 31 and 34 at 640, 40 and
# 49 at 768.
SMALLEST = 768

# Error of the quadrature allowed in a root, in √hi: d of them stay below 2e-13 at d = 2048.
TOL = 1e-16

# Multiples of hi tried for lo, two vectors of the widest lanes: a factor of 8 apart, which costs a tenth more nodes.
PROBES = 16


class Band(NamedTuple):
    """B, once as the upper triangle of a dense matrix [d, d] and once as its diagonals.

    dense      [d, d], eigenvalues those of M
    diagonals  [d, b + 1], row i from B_{i,i−b} to B_ii
    """

    dense: Tensor
    diagonals: np.ndarray


def suits(matrix: Tensor) -> bool:
    """Whether this way is there for `matrix` [d, d] and faster than its eigenvalues."""
    return backend.cpu_kernels(matrix.device) is not None and len(matrix) >= SMALLEST


def reduce_to_band(upper: Tensor, width: int = WIDTH) -> Band:
    """B of the symmetric matrix whose upper triangle `upper` [d, d] float64 holds, which is overwritten."""
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
    """tr √B, or None where B − resolution·hi is not positive definite: some eigenvalue may be noise, or negative."""
    hi = _frobenius_norm(band.diagonals)
    lo = _lower_bound(band.diagonals, hi, resolution) if hi else None
    if lo is None:
        return None
    tau, omega = sqrt_nodes(node_count(TOL, lo, hi), lo, hi)
    return len(band.diagonals) * math.sqrt(lo) + float(omega @ _logdets(band.diagonals, tau**2, lo)) / math.pi


# --- the reduction -----------------------------------------------------------------------------------------------


def _make_squares_whole(upper: Tensor) -> None:
    """Squares of STRIPE along the diagonal get their lower triangles, so that products may take them as they are."""
    for start in range(0, len(upper), STRIPE):
        square = upper[start : start + STRIPE, start : start + STRIPE]
        square.copy_(square.triu() + square.triu(1).T)


def _reflections(panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V [n, k], T⁻¹ [k, k] and R [k, b] of panel [n, b] = (I − V T Vᵀ) R, k = min(n, b)."""
    factored, tau = torch.geqrf(panel)
    vectors = factored[:, : len(tau)].tril(-1)
    vectors.diagonal().fill_(1)
    vectors *= tau != 0  # where nothing is reflected, as in the last row
    inverse = (vectors.T @ vectors).triu(1) + torch.diag(1 / torch.where(tau == 0, 1, tau))
    return vectors.contiguous(), inverse, factored[: len(tau)].triu()


def _reflect(upper: Tensor, vectors: Tensor, inverse: Tensor, first: int) -> None:
    """Upper triangle of A [n, n] ← QᵀAQ by stripes of rows, `first` rows up to where the next square begins."""
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


def _diagonals(upper: Tensor, width: int) -> np.ndarray:
    dim = len(upper)
    diagonals = torch.zeros(dim, width + 1, dtype=torch.float64)
    for offset in range(min(width + 1, dim)):
        diagonals[offset:, width - offset] = upper.diagonal(offset)
    return diagonals.numpy()


# --- the range ---------------------------------------------------------------------------------------------------


def _frobenius_norm(diagonals: np.ndarray) -> float:
    scale = np.abs(diagonals).max()
    if not scale:
        return 0.0
    squares = np.square(diagonals / scale).sum(axis=0)  # which overflow at no scale
    return scale * math.sqrt(2 * squares[:-1].sum() + squares[-1])


def _lower_bound(diagonals: np.ndarray, hi: float, resolution: float) -> float | None:
    """A lower bound of B's eigenvalues, the largest of PROBES from resolution·hi on; None if that is none."""
    probes = hi * np.geomspace(resolution, 1, PROBES, endpoint=False)
    definite = np.isfinite(_logdets(diagonals, -probes, 2 * hi))
    return float(probes[definite][-1]) if definite[0] else None


def _logdets(diagonals: np.ndarray, shifts: np.ndarray, origin: float) -> np.ndarray:
    """log det((B + s)/(origin + s)) at every shift s [n], NaN where B + s is not positive definite."""
    return backend.extension().band_logdets(diagonals, shifts, origin, torch.get_num_threads())
