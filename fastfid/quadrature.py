"""Nodes and weights for the trace of a matrix square root as an integral of log-determinants.

From  ∫₀^∞ log(1 + x/τ²) dτ = π √x  every eigenvalue x of a positive semidefinite matrix contributes its root, so

    tr √B − tr √A = (1/π) ∫₀^∞ log( det(B + τ²) / det(A + τ²) ) dτ.

As a function of complex τ the integrand has branch points at ±i√x only, for x an eigenvalue of A or B.  With all of
them in [lo, hi], the map τ = √lo·sc(u | 1 − lo/hi) carries the plane slit along those segments onto a strip about
0 < u < K, where the integrand is analytic and periodic, and the midpoint rule converges geometrically:

    error ~ exp(−2π² Q / (log(hi/lo) + 3))     Hale, Higham & Trefethen, SIAM J. Numer. Anal. 46 (2008), theorem 4.1

Weight plan.  Every determinant needs 1/(λ + τ_q²) at each of r eigenvalues λ and Q nodes.  Sorted eigenvalues that are
neighbours differ little, so within a slice of them these Q functions of λ are, to a relative error ε, combinations of a
few: about log(1/ε)·log(16 λ_last/λ_first)/π², from the decay of the singular values of the Cauchy kernel (Beckermann &
Townsend, SIAM J. Matrix Anal. Appl. 38 (2017), theorem 2.1), which is 4 or 5 for a ratio of 2 and ε = 1e-6.  A Gram
matrix for each of these functions replaces one for each node.

Legend: Q nodes, τ node, ω weight, K quarter period, r eigenvalues λ, S slices.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ellipj, ellipkm1

# The bound's constant.  Measured for all pairs x, y in [lo, hi], lo/hi from 0.1 to 1e-16, Q from 2 to 60: the error of
# √x − √y stays below 1.9·exp(−2π²Q/(log(hi/lo)+3))·√hi.  tests/test_quadrature.py repeats the scan.
BOUND_CONSTANT = 2.0

# Below this many nodes the asymptotic bound says little, and the cost is already negligible.
MIN_NODES = 4

# A slice of a weight plan is not halved below this: half a register tile's inner loop would be its beginning and end.
SHORTEST_SLICE = 48


def error_bound(nodes: int, lo: float, hi: float) -> float:
    """Bound on the rule's error for √x − √y, x and y in [lo, hi], in units of √hi (HHT 2008, theorem 4.1)."""
    return BOUND_CONSTANT * math.exp(-2 * math.pi**2 * nodes / (math.log(hi / lo) + 3))


def node_count(tol: float, lo: float, hi: float) -> int:
    """Smallest number of nodes whose `error_bound` is at most `tol`; ValueError unless 0 < tol < 1."""
    if not 0 < tol < 1:
        raise ValueError(f"tol must lie strictly between 0 and 1, got {tol}; 1e-6 is the default, 1e-10 suits float64")
    _check_range(lo, hi)
    needed = math.log(BOUND_CONSTANT / tol) * (math.log(hi / lo) + 3) / (2 * math.pi**2)
    return max(MIN_NODES, math.ceil(needed))


def sqrt_nodes(nodes: int, lo: float, hi: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes τ [Q] ascending and weights ω [Q], float64: Σ ω_j log((x + τ_j²)/(y + τ_j²)) ≈ π(√x − √y) in [lo, hi].

    Only the lower half is evaluated; the rest follows from sc(K − u) = 1/(k′ sc(u)), that is τ ↦ √(lo·hi)/τ, which
    also keeps elliptic functions away from u = K, where those of a modulus close to 1 lose their digits.
    """
    if nodes < 1:
        raise ValueError(f"nodes must be at least 1, got {nodes}")
    _check_range(lo, hi)
    lower = (nodes + 1) // 2
    quarter = ellipkm1(lo / hi)
    sn, cn, dn, _ = ellipj((np.arange(lower) + 0.5) * quarter / nodes, 1 - lo / hi)
    tau = math.sqrt(lo) * sn / cn
    omega = math.sqrt(lo) * dn / cn**2 * quarter / nodes  # |dτ/du| · K/Q
    geometric = math.sqrt(lo) * math.sqrt(hi)
    mirrored = slice(None, nodes // 2)  # an odd rule's middle node is its own mirror image
    tau_upper = geometric / tau[mirrored]
    omega_upper = geometric / tau[mirrored] ** 2 * omega[mirrored]
    return np.concatenate([tau, tau_upper[::-1]]), np.concatenate([omega, omega_upper[::-1]])


class WeightPlan(NamedTuple):
    """1/(λ_p + τ_q²) ≈ Σ_n coefficients[n, q]·function_n[p], n over the functions of p's slice; S slices.

    bounds        [S + 1] int64, first eigenvalue of each slice, r at the end
    terms         [S] int64, functions of each slice
    functions     slice after slice, [terms, length] each, flat
    coefficients  [Σ terms, Q]
    """

    bounds: np.ndarray
    terms: np.ndarray
    functions: np.ndarray
    coefficients: np.ndarray


def weight_plan(spectrum: np.ndarray, tau: np.ndarray, tol: float, longest: int, dtype=np.float32) -> WeightPlan:
    """Plan for eigenvalues λ [r] and nodes τ [Q], every weight to a relative error of `tol`, slices ≤ `longest`."""
    slices = []
    for start in range(0, len(spectrum), longest):
        weights = 1 / (spectrum[start : start + longest] + tau[:, None] ** 2)
        slices += _cheapest_slices(weights, tol)[0]
    lengths = [shapes.shape[1] for _, shapes in slices]
    functions = [shapes.ravel() for _, shapes in slices] or [np.zeros(0)]
    mixes = [mix.T for mix, _ in slices] or [np.zeros((0, len(tau)))]
    return WeightPlan(
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array([len(shapes) for _, shapes in slices], np.int64),
        np.ascontiguousarray(np.concatenate(functions), dtype=dtype),
        np.ascontiguousarray(np.concatenate(mixes), dtype=dtype),
    )


def _cheapest_slices(weights: np.ndarray, tol: float) -> tuple[list, float]:
    """(compressed slices of weights [Q, p], their cost), halved as long as that is cheaper.

    The cost of n functions is n·p products and, for each of Q nodes, n additions and about 2 for loading and storing.
    """
    mix, shapes = _compress(weights, tol)
    nodes, places = weights.shape
    cost = len(shapes) * places + nodes * (len(shapes) + 2)
    if places <= SHORTEST_SLICE:
        return [(mix, shapes)], cost
    half = places // 2
    first, second = _cheapest_slices(weights[:, :half], tol), None
    if first[1] < cost:
        second = _cheapest_slices(weights[:, half:], tol)
        if first[1] + second[1] < cost:
            return first[0] + second[0], first[1] + second[1]
    return [(mix, shapes)], cost


def _compress(weights: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """(mix [Q, n], shapes [n, p]) with mix @ shapes = weights [Q, p] to a relative error of `tol` in every entry.

    Scaled by rows and columns first, so that the singular value decomposition sees entries of order one; the weights
    themselves, without error, where it saves nothing.
    """
    nodes, places = weights.shape
    row = np.exp(np.log(weights).mean(1, keepdims=True))
    column = (weights / row).mean(0)
    scaled = weights / row / column
    u, values, vt = np.linalg.svd(scaled, full_matrices=False)
    for n in range(1, min(nodes, places)):
        left, right = u[:, :n] * values[:n], vt[:n]
        if np.all(np.abs(left @ right - scaled) <= tol * scaled):
            return row * left, right * column
    return (np.eye(nodes), weights) if nodes <= places else (weights, np.eye(places))


def _check_range(lo: float, hi: float) -> None:
    if not (0 < lo <= hi < math.inf):
        raise ValueError(f"lo and hi must satisfy 0 < lo <= hi < inf, got {lo} and {hi}; raise lo to a positive floor")
