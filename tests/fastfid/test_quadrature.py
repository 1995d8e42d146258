"""The nodes integrate log-determinants to the bound they are chosen by."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfid.linalg.quadrature import MIN_NODES, error_bound, node_count, sqrt_nodes

# Logarithms of up to 37 are rounded at 4e-15; the weights that multiply their differences sum to 178 √hi at most here.
ROUNDING = 1e-12


def root_differences(nodes, lo, hi, points):
    """Largest error of the rule for √x − √y over pairs of `points`, in units of √hi."""
    tau, omega = sqrt_nodes(nodes, lo, hi)
    logs = np.log(tau**2 + points[:, None])
    estimate = (logs[:, None] - logs[None]) @ omega / math.pi
    roots = np.sqrt(points)
    return abs(estimate - (roots[:, None] - roots[None])).max() / math.sqrt(hi)


@pytest.mark.parametrize("decades", [0.1, 1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_error_stays_below_the_bound(decades):
    lo, hi = 10.0**-decades, 1.0
    points = np.geomspace(lo, hi, 41)
    for nodes in range(2, 61):
        assert root_differences(nodes, lo, hi, points) <= error_bound(nodes, lo, hi) + ROUNDING


@given(st.floats(-12, -0.05), st.floats(-9, -0.5), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_count_is_the_smallest_that_meets_the_tolerance(log_ratio, log_tol, log_hi):
    hi, tol = 10.0**log_hi, 10.0**log_tol
    lo = hi * 10.0**log_ratio
    nodes = node_count(tol, lo, hi)
    assert error_bound(nodes, lo, hi) <= tol * (1 + 1e-9)
    assert nodes == MIN_NODES or error_bound(nodes - 1, lo, hi) > tol
    assert root_differences(nodes, lo, hi, np.geomspace(lo, hi, 9)) <= tol + ROUNDING


@pytest.mark.parametrize("nodes", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("ratio", [1e-16, 1e-8, 0.5])
def test_nodes_match_elliptic_functions_in_many_digits(nodes, ratio):
    tau, omega = sqrt_nodes(nodes, ratio, 1.0)
    with mpmath.workdps(40):
        modulus = 1 - mpmath.mpf(ratio)
        quarter = mpmath.ellipk(modulus)
        for j in range(nodes):
            u = (j + mpmath.mpf(1) / 2) * quarter / nodes
            sn, cn, dn = (mpmath.ellipfun(name, u, m=modulus) for name in ("sn", "cn", "dn"))
            assert tau[j] == pytest.approx(float(mpmath.sqrt(ratio) * sn / cn), rel=1e-9)
            assert omega[j] == pytest.approx(float(mpmath.sqrt(ratio) * dn / cn**2 * quarter / nodes), rel=1e-9)


def test_scaling_the_range_scales_nodes_and_weights():
    tau, omega = sqrt_nodes(9, 1e-5, 1.0)
    tau_4, omega_4 = sqrt_nodes(9, 4e-5, 4.0)
    np.testing.assert_allclose(tau_4, 2 * tau, rtol=1e-14)
    np.testing.assert_allclose(omega_4, 2 * omega, rtol=1e-14)


@pytest.mark.parametrize("lo, hi", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_impossible_ranges_are_named(lo, hi):
    with pytest.raises(ValueError, match="0 < lo <= hi"):
        sqrt_nodes(4, lo, hi)
    with pytest.raises(ValueError, match="0 < lo <= hi"):
        node_count(1e-6, lo, hi)


@pytest.mark.parametrize("tol", [0.0, 1.0, -1e-3, math.nan])
def test_impossible_tolerances_are_named(tol):
    with pytest.raises(ValueError, match="tol must lie strictly between 0 and 1"):
        node_count(tol, 1e-6, 1.0)


def test_at_least_one_node():
    with pytest.raises(ValueError, match="nodes must be at least 1"):
        sqrt_nodes(0, 1e-6, 1.0)
