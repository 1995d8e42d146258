"""Nodes and weights for the trace of a matrix square root as an integral of log-determinants.

Since ∫₀^∞ log(1 + x/τ²) dτ = π √x, every eigenvalue x of a positive semidefinite matrix contributes its root, and

    tr √B − tr √A = (1/π) ∫₀^∞ log( det(B + τ²) / det(A + τ²) ) dτ.

As a function of complex τ the integrand has branch points at ±i√x only, where x is an eigenvalue of A or B.  Let all of
them lie in [lo, hi].  The substitution τ = √lo·sc(u | 1 − lo/hi), a Jacobi elliptic function, maps 0 < u < K to
0 < τ < ∞.  The integrand becomes analytic and periodic in a strip around this interval, so the midpoint rule converges
geometrically.  With u_q = (q + ½)K/Q,

    τ_q = √lo·sc(u_q),    ω_q = √lo·dn(u_q)/cn²(u_q)·K/Q,    √x − √y ≈ (1/π) Σ_q ω_q log((x + τ_q²)/(y + τ_q²)),  (5)
    error ~ exp(−2π² Q / (log(hi/lo) + 3))     Hale, Higham & Trefethen, SIAM J. Numer. Anal. 46 (2008), theorem 4.1

Legend: Q nodes, τ node, ω weight, K quarter period.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import ellipj, ellipkm1

# Factor of the error bound.  Measured 1.9 for x, y in [lo, hi], lo/hi from 0.1 to 1e-16, Q from 2 to 60;
# tests/fastfid/test_quadrature.py repeats the scan.
BOUND_CONSTANT = 2.0

# Fewest nodes: the asymptotic bound says little below, and the cost is negligible already.
MIN_NODES = 4


def error_bound(nodes: int, lo: float, hi: float) -> float:
    """Bound on the error of equation 5 for √x − √y with x and y in [lo, hi], in units of √hi."""
    return BOUND_CONSTANT * math.exp(-2 * math.pi**2 * nodes / (math.log(hi / lo) + 3))


def node_count(tol: float, lo: float, hi: float) -> int:
    """Smallest number of nodes whose `error_bound` is at most `tol`; ValueError unless 0 < tol < 1."""
    if not 0 < tol < 1:
        raise ValueError(f"tol must lie strictly between 0 and 1, got {tol}; 2e-6 is the default, 1e-10 suits float64")
    _check_range(lo, hi)
    needed = math.log(BOUND_CONSTANT / tol) * (math.log(hi / lo) + 3) / (2 * math.pi**2)
    return max(MIN_NODES, math.ceil(needed))


def sqrt_nodes(nodes: int, lo: float, hi: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nodes τ [Q] ascending and weights ω [Q] of equation 5, float64; ValueError unless 0 < lo ≤ hi < ∞.

    Elliptic functions with a modulus close to 1 lose their digits near u = K.  So only the lower half is evaluated, and
    the upper half follows from sc(K − u) = 1/(k′ sc(u)), that is τ ↦ √(lo·hi)/τ.
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


def _check_range(lo: float, hi: float) -> None:
    if not (0 < lo <= hi < math.inf):
        raise ValueError(f"lo and hi must satisfy 0 < lo <= hi < inf, got {lo} and {hi}; raise lo to a positive floor")
