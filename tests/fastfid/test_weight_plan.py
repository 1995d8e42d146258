"""A plan of few functions stands for the weights of every node, to its tolerance."""

import numpy as np
import pytest

from fastfid.linalg.quadrature import sqrt_nodes
from fastfid.linalg.weight_plan import weight_plan


def weights_of(plan, count):
    """Weights [Q, count] that a plan stands for."""
    parts, functions, mixes, coefficients, first = [], plan.functions, plan.mixes, plan.coefficients, 0
    for end, total in zip(plan.group_ends, plan.group_terms, strict=True):
        for s in range(first, end):
            terms, length = plan.terms[s], plan.bounds[s + 1] - plan.bounds[s]
            mixed = mixes[: terms * total].reshape(terms, total).T @ functions[: terms * length].reshape(terms, length)
            parts.append(coefficients[:total].T @ mixed)
            functions, mixes = functions[terms * length :], mixes[terms * total :]
        coefficients, first = coefficients[total:], end
    assert plan.bounds[-1] == count and not functions.size and not mixes.size and not coefficients.size
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("tol", [1e-4, 1e-8, 0.0])
@pytest.mark.parametrize(
    "spectrum", [np.geomspace(1e-6, 1, 700), np.sort(np.arange(1, 1301) ** -2.0), [0.3], [0, 0, 1.0]]
)
def test_a_weight_plan_keeps_its_tolerance(spectrum, tol):
    spectrum = np.asarray(spectrum)
    tau, _ = sqrt_nodes(12, 1e-7, 2.0)
    plan = weight_plan(spectrum, tau, tol, 256, 512, np.float64)
    exact = 1 / (spectrum + tau[:, None] ** 2)
    # evaluating the plan adds a rounding of each of its terms
    assert (abs(weights_of(plan, len(spectrum)) / exact - 1) <= tol + 1e-13).all()
    assert np.diff(plan.bounds).max() <= 256
    if tol and len(spectrum) > 100:
        assert (plan.terms * np.diff(plan.bounds)).sum() < 0.8 * 12 * len(spectrum)  # it saves something


def test_an_empty_spectrum_has_an_empty_plan():
    plan = weight_plan(np.zeros(0), np.ones(3), 1e-6, 256, 512)
    assert plan.bounds.tolist() == [0] and plan.terms.size == 0 and plan.coefficients.shape == (0, 3)
