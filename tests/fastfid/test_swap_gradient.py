"""Gradients of changes: finite differences, the fused route against autograd, rare features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfid import SwapEngine
from tests.support import oracles
from tests.support.swap_sets import BACKENDS, EXACT, make, moments, rare


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_where_a_rare_feature_is_lost(backend):
    # one candidate of three loses it; the others' gradients are those of a batch without it
    real, reference, out, added = rare(5, 5)
    out[1:] += 5 * (out[1:] < 5)
    out[1:, :5] = np.arange(900, 905)
    engine = SwapEngine(moments(real), reference, backend=backend, **EXACT)
    rows = torch.from_numpy(added).requires_grad_()
    engine.change(out, rows).sum().backward()
    assert engine.report()["recomputed"] == 1
    others = torch.from_numpy(added[1:]).requires_grad_()
    engine.change(out[1:], others).sum().backward()
    torch.testing.assert_close(rows.grad[1:], others.grad, rtol=1e-12, atol=1e-14)
    step = 1e-5
    # the lost feature itself has no derivative: adding any of it gains at an infinite rate
    for place in ((0, 0, 0), (0, 7, 5)):
        moved = [added.copy(), added.copy()]
        moved[0][place] -= step
        moved[1][place] += step
        low, high = (oracles.changes(real, reference, out[:1], x[:1])[0] for x in moved)
        assert rows.grad[place].item() == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_fused_gradient_equals_autograd(dtype, limit):
    real, reference, removed, added = make(d=30, N=200, m_r=6, m_a=7, batch=3)
    gradients = []
    for backend in ("cpp", "torch"):
        rows = torch.from_numpy(added).to(dtype).requires_grad_()
        engine = SwapEngine(moments(real), reference, dtype=dtype, backend=backend)
        (engine.change(removed, rows) * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        gradients.append(rows.grad.double())
    # two routes in the same dtype: each loses the condition of J + G times its rounding
    assert abs(gradients[0] - gradients[1]).max() <= limit * abs(gradients[1]).max()


@given(st.integers(0, 4), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_gradient_equals_finite_differences(m_r, m_a, seed):
    real, reference, removed, added = make(N=30, d=4, m_r=m_r, m_a=m_a, batch=2, seed=seed)
    engine = SwapEngine(moments(real), reference, **EXACT)
    added = torch.from_numpy(added).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: engine.change(torch.from_numpy(removed), a), (added,), atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_belongs_to_the_reference_it_was_computed_with(backend):
    real, reference, removed, added = make(m_a=4)
    gradients = []
    for replaced in (False, True):
        engine = SwapEngine(moments(real), reference, backend=backend, **EXACT)
        rows = torch.from_numpy(added).requires_grad_()
        change = engine.change(removed, rows)
        if replaced:
            engine.replace(removed[0], added[0, :2])
        change.sum().backward()
        gradients.append(rows.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_where_no_eigenvalue_can_change(backend):
    real, reference, removed, added = make()
    reference[:] = added[:] = 0.5
    engine = SwapEngine(moments(real), reference, backend=backend, **EXACT)
    rows = torch.from_numpy(added).requires_grad_()
    change = engine.change(removed, rows)
    change.sum().backward()
    assert abs(change).max() <= 1e-15
    # y and δ are 0: what is left is −2(μ_r − μ_g)/n'
    expected = -2 * (engine.real.mean - 0.5) / len(reference)
    torch.testing.assert_close(rows.grad, expected.expand_as(rows), rtol=1e-12, atol=1e-15)
