"""The equations of docs/mathematics.md, computed as they are written there, against direct computation in NumPy."""

import numpy as np
import pytest
import torch
from scipy.special import ellipj, ellipkm1

from fastfid import SwapEngine
from fastfid.linalg.quadrature import sqrt_nodes
from fastfid.linalg.weight_plan import weight_plan

D, N = 6, 40


def moments(rows):
    """Mean [d] and covariance [d, d] with ddof = 1."""
    return rows.mean(0), np.cov(rows.T)


def trace_of_root(matrix):
    """tr √M of a symmetric M by its eigenvalues."""
    return np.sqrt(np.linalg.eigvalsh(matrix).clip(min=0)).sum()


def frechet_distance(real, rows):
    """Section 2, with R = Lᵀ."""
    (mean, cov), (other_mean, other_cov) = real, moments(rows)
    r = np.linalg.cholesky(cov).T
    return (
        np.square(mean - other_mean).sum()
        + np.trace(cov)
        + np.trace(other_cov)
        - 2 * trace_of_root(r @ other_cov @ r.T)
    )


class Swap:
    """One candidate in the symbols of section 3: m_r rows removed, m_a added."""

    def __init__(self, m_r, m_a, seed=0):
        rng = np.random.default_rng(seed)
        mixing = rng.normal(size=(D, D))
        self.real = moments(rng.normal(size=(60, D)) @ mixing + 1)
        self.rows = rng.normal(size=(N, D)) @ mixing
        self.removed = rng.choice(N, m_r, replace=False)
        self.added = 2 * rng.normal(size=(m_a, D)) @ mixing + 0.5
        self.m_r, self.m_a, self.n1, self.final = m_r, m_a, N - m_r, N - m_r + m_a
        self.mean, self.cov = moments(self.rows)
        self.y_r, self.y_a = self.rows[self.removed] - self.mean, self.added - self.mean
        r = np.linalg.cholesky(self.real[1]).T
        self.spectrum, basis = np.linalg.eigh(r @ self.cov @ r.T)
        self.p = basis.T @ r
        self.c = (N - 1) / (self.final - 1)

    @property
    def changed(self):
        """The rows after the swap."""
        return np.concatenate([np.delete(self.rows, self.removed, axis=0), self.added])

    def spread(self):
        """z_r and z_a of equation 2."""
        mean_r = self.y_r.mean(0) if self.m_r else np.zeros(D)
        mean_a = self.y_a.mean(0) if self.m_a else np.zeros(D)
        keep = np.sqrt(self.n1 / self.final)
        z_r = self.y_r + (np.sqrt(N / self.n1) - 1) * mean_r
        return z_r, self.y_a + (keep - 1) * mean_a + keep * self.m_r / self.n1 * mean_r

    def w(self):
        """W [k, d], its first m_r rows those of W_r."""
        return np.concatenate(self.spread()) @ self.p.T / np.sqrt(N - 1)

    def signs(self):
        """The diagonal of J."""
        return np.array([-1.0] * self.m_r + [1.0] * self.m_a)

    def trace_change(self):
        """Δ of equation 3 by its left side."""
        w, j = self.w(), self.signs()
        return trace_of_root(np.diag(self.spectrum) + w.T @ np.diag(j) @ w) - np.sqrt(self.spectrum).sum()

    def grams(self, tau):
        """J + G(τ) of equation 3."""
        w = self.w()
        return np.diag(self.signs()) + w / (self.spectrum + tau**2) @ w.T

    def change(self):
        """Equation 4."""
        delta = (self.y_a.sum(0) - self.y_r.sum(0)) / self.final
        norms = np.square(self.y_a).sum() - np.square(self.y_r).sum()
        trace = ((N - 1) * np.trace(self.cov) + norms - self.final * delta @ delta) / (self.final - 1)
        roots = np.sqrt(self.c) * self.trace_change() + (np.sqrt(self.c) - 1) * np.sqrt(self.spectrum).sum()
        return delta @ delta - 2 * (self.real[0] - self.mean) @ delta + trace - np.trace(self.cov) - 2 * roots


SWAPS = [(3, 3), (1, 1), (4, 2), (2, 5), (1, 0), (0, 2)]


@pytest.fixture(params=SWAPS, ids=lambda sizes: "-".join(map(str, sizes)))
def swap(request):
    return Swap(*request.param)


def test_equation_1_is_the_distance():
    s = Swap(1, 1)
    found = np.square(s.real[0] - s.mean).sum() + np.trace(s.real[1]) + np.trace(s.cov) - 2 * np.sqrt(s.spectrum).sum()
    assert found == pytest.approx(frechet_distance(s.real, s.rows), rel=1e-12)


def test_equation_2_is_the_scatter_of_the_changed_set(swap):
    z_r, z_a = swap.spread()
    scatter = (N - 1) * swap.cov - z_r.T @ z_r + z_a.T @ z_a
    np.testing.assert_allclose(scatter, (swap.final - 1) * np.cov(swap.changed.T), rtol=1e-10, atol=1e-10)


def test_equation_3_is_an_integral_of_small_determinants(swap):
    tau, omega = sqrt_nodes(80, 1e-8 * swap.spectrum[0], 100 * swap.spectrum[-1])
    logdets = [np.linalg.slogdet(swap.grams(node)).logabsdet for node in tau]
    assert omega @ logdets / np.pi == pytest.approx(swap.trace_change(), rel=1e-9)


def test_pivots_of_equation_3_have_the_signs_of_j(swap):
    matrix = swap.grams(np.sqrt(swap.spectrum[0]))
    for size in range(1, len(matrix) + 1):  # pivot = ratio of leading minors
        minor = np.linalg.slogdet(matrix[:size, :size]).sign
        assert minor == np.prod(swap.signs()[:size])


def test_equation_4_is_the_change_of_the_distance_and_the_engines(swap):
    expected = frechet_distance(swap.real, swap.changed) - frechet_distance(swap.real, swap.rows)
    assert swap.change() == pytest.approx(expected, rel=1e-9)
    engine = SwapEngine(tuple(map(torch.from_numpy, swap.real)), torch.from_numpy(swap.rows), dtype=torch.float64)
    found = engine.change(torch.from_numpy(swap.removed)[None], torch.from_numpy(swap.added)[None])
    assert found.item() == pytest.approx(expected, rel=1e-7)


def test_equation_5_has_the_nodes_of_the_code_and_its_bound():
    lo, hi, count = 1e-6, 2.0, 16
    quarter = ellipkm1(lo / hi)
    sn, cn, dn, _ = ellipj((np.arange(count) + 0.5) * quarter / count, 1 - lo / hi)
    tau, omega = sqrt_nodes(count, lo, hi)
    np.testing.assert_allclose(np.sqrt(lo) * sn / cn, tau, rtol=1e-7)
    np.testing.assert_allclose(np.sqrt(lo) * dn / cn**2 * quarter / count, omega, rtol=1e-7)
    x, y = np.random.default_rng(1).uniform(lo, hi, (2, 50))
    found = np.log((x[:, None] + tau**2) / (y[:, None] + tau**2)) @ omega / np.pi
    bound = 2 * np.exp(-2 * np.pi**2 * count / (np.log(hi / lo) + 3)) * np.sqrt(hi)
    assert np.abs(found - (np.sqrt(x) - np.sqrt(y))).max() <= bound


def test_equation_6_restores_the_weights():
    spectrum, tol = np.sort(np.random.default_rng(2).uniform(1e-4, 1, 300)), 1e-4
    tau, _ = sqrt_nodes(16, 1e-5, 2.0)
    plan = weight_plan(spectrum, tau, tol, 64, 128, np.float64)
    found, function, mix, coefficient = np.zeros((len(tau), len(spectrum))), 0, 0, 0
    starts = [0, *plan.group_ends[:-1]]
    for start, end, terms in zip(starts, plan.group_ends, plan.group_terms, strict=True):
        coefficients = plan.coefficients[coefficient : coefficient + terms]
        coefficient += terms
        for part in range(start, end):
            first, last, n = plan.bounds[part], plan.bounds[part + 1], plan.terms[part]
            functions = plan.functions[function : function + n * (last - first)].reshape(n, -1)
            mixes = plan.mixes[mix : mix + n * terms].reshape(n, terms)
            function, mix = function + functions.size, mix + mixes.size
            found[:, first:last] = np.einsum("mq,nm,np->qp", coefficients, mixes, functions)
    weights = 1 / (spectrum + tau[:, None] ** 2)
    assert (np.abs(found - weights) <= 1.001 * tol * weights).all()
    assert len(plan.functions) < len(tau) * len(spectrum) / 2


def test_equation_7_is_the_determinant_of_a_single_swap():
    s = Swap(1, 1)
    for tau in (0.1, 1.0, 10.0):
        matrix = s.grams(tau)
        g_rr, g_aa, g_ra = 1 + matrix[0, 0], matrix[1, 1] - 1, matrix[0, 1]
        assert -np.linalg.det(matrix) == pytest.approx((1 + g_aa) * (1 - g_rr) + g_ra**2, rel=1e-12)


def test_equation_8_is_leaving_one_row_out():
    s = Swap(1, 0)
    y, kappa, c = s.y_r[0], N / (N - 1), (N - 1) / (N - 2)
    w = np.sqrt(kappa / (N - 1)) * s.p @ y
    tau, omega = sqrt_nodes(80, 1e-8 * s.spectrum[0], 100 * s.spectrum[-1])
    delta = omega @ [np.log1p(-(w**2 / (s.spectrum + node**2)).sum()) for node in tau] / np.pi
    found = y @ y / (N - 1) ** 2 + 2 * (s.real[0] - s.mean) @ y / (N - 1) + (np.trace(s.cov) - kappa * y @ y) / (N - 2)
    found -= 2 * (np.sqrt(c) * delta + (np.sqrt(c) - 1) * np.sqrt(s.spectrum).sum())
    assert found == pytest.approx(frechet_distance(s.real, s.changed) - frechet_distance(s.real, s.rows), rel=1e-8)


def test_projections_of_both_sides_have_the_same_spectrum():
    s = Swap(1, 0)
    p_a = (s.p @ s.cov) / np.sqrt(s.spectrum)[:, None]
    np.testing.assert_allclose(s.p @ s.cov @ s.p.T, np.diag(s.spectrum), atol=1e-9)
    np.testing.assert_allclose(p_a @ s.real[1] @ p_a.T, np.diag(s.spectrum), atol=1e-9)


@pytest.mark.parametrize("sizes", [(3, 3), (1, 1), (2, 4)])
def test_gradient_of_a_swap(sizes):
    s = Swap(*sizes)
    tau, omega = sqrt_nodes(80, 1e-8 * s.spectrum[0], 100 * s.spectrum[-1])
    slope = sum(
        weight * np.linalg.solve(s.grams(node), s.w() / (s.spectrum + node**2))
        for node, weight in zip(tau, omega, strict=True)
    )
    slope = 2 / np.pi * slope[s.m_r :]
    slope = slope + (np.sqrt(s.n1 / s.final) - 1) * slope.mean(0)
    delta = (s.y_a.sum(0) - s.y_r.sum(0)) / s.final
    found = 2 * s.y_a / (s.final - 1) - 2 / s.final * (delta / (s.final - 1) + s.real[0] - s.mean)
    found = found - 2 * np.sqrt(s.c / (N - 1)) * slope @ s.p
    step, expected = 1e-5, np.empty_like(found)
    for place in np.ndindex(found.shape):
        values = []
        for sign in (1, -1):
            moved = Swap(*sizes)
            moved.added[place] += sign * step
            values.append(frechet_distance(moved.real, moved.changed))
        expected[place] = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_influence_is_the_first_order_of_a_replacement():
    s = Swap(1, 1)

    def influence(x):
        y = x - s.mean
        return -2 * (s.real[0] - s.mean) @ y + y @ y - ((s.p @ y) ** 2 / np.sqrt(s.spectrum)).sum()

    old, step = s.rows[0], 1e-4 * np.ones(D)
    rows = s.rows.copy()
    changes = []
    for sign in (1, -1):
        rows[0] = old + sign * step
        changes.append(frechet_distance(s.real, rows))
    expected = (influence(old + step) - influence(old - step)) / N
    # the scatter divides by N − 1 and each move also shifts the mean: both are of order 1/N beside the first order
    assert changes[0] - changes[1] == pytest.approx(expected, rel=0.1)
