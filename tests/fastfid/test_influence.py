"""Influence is the derivative of the distance."""

import numpy as np
import pytest

from fastfid import SwapEngine
from tests.support import oracles
from tests.support.swap_sets import EXACT, make, moments


def test_influence_is_the_derivative_of_the_distance():
    """Mixing a share ε of a point at x into the reference changes FD by ε(I(x) − E[I]), E over the covariance used."""
    real, reference, _, added = make()
    engine = SwapEngine(moments(real), reference, **EXACT)
    (mean_r, cov_r), (mean, cov) = ([t.numpy() for t in moments(s)] for s in (real, reference))
    influence = engine.influence(added[0]).numpy()
    step = 1e-5
    for x, value in zip(added[0], influence, strict=True):
        y = x - mean
        mixed = [
            oracles.distance_of_moments(mean_r, cov_r, mean + e * y, cov + e * (np.outer(y, y) - cov))
            for e in (-step, step)
        ]
        roots = np.linalg.eigvals(cov_r @ cov).real.clip(0) ** 0.5
        expected = (mixed[1] - mixed[0]) / (2 * step) + np.trace(cov) - roots.sum()
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)  # central differences: step² and 1e-14/step


def test_influence_predicts_small_changes_of_large_sets():
    real, reference, _, added = make(N=4000, d=6, m_a=50, batch=1)
    engine = SwapEngine(moments(real), reference, **EXACT)
    rows = np.arange(50)
    predicted = (engine.influence(added[0]) - engine.influence(reference[rows])).numpy() / 4000
    exact = engine.change_each(rows, added[0]).numpy()
    # second order: one more factor of leverage, some d·|y|²/N of it
    np.testing.assert_allclose(predicted, exact, atol=0.05 * abs(exact).max())
