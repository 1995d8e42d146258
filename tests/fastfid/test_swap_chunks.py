"""Chunks and threads leave the changes as they are; candidates that lose a rare direction are computed again."""

import numpy as np
import pytest
import torch

from fastfid import SwapEngine
from fastfid.swap import chunks
from tests.support import oracles
from tests.support.swap_sets import BACKENDS, EXACT, make, moments, rare

RARE = [(1, 1, 1.0), (5, 5, 0.1), (5, 4, 1.0), (40, 40, 1.0), (39, 38, 0.1)]


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("active, removed, amplitude", RARE)
def test_a_removal_that_takes_a_rare_feature(active, removed, amplitude, backend, dead):
    real, reference, out, added = rare(active, removed, amplitude, dead)
    expected = oracles.changes(real, reference, out, added)
    each = oracles.changes(real, reference, out[:, :1], added[:, :1])
    for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 2e-6)):
        # of the change: a lost direction is known to 3e-8 of its root, by the last pivot's rounding to 20 times that
        engine = SwapEngine(moments(real), reference, backend=backend, dtype=dtype)
        rows = torch.from_numpy(added).requires_grad_()
        change = engine.change(out, rows)
        np.testing.assert_allclose(change.detach(), expected, rtol=0, atol=limit * abs(expected).max())
        if removed == active and not dead:
            assert engine.report()["recomputed"] == 3
        change.sum().backward()
        assert rows.grad.isfinite().all()
        single = engine.change_each(out[:, 0], added[:, 0])
        np.testing.assert_allclose(single, each, rtol=0, atol=limit * abs(each).max())


def test_threads_change_no_bit():
    real, reference, removed, added = make(d=40, N=300, m_r=9, m_a=8, batch=7)
    engine, before = SwapEngine(moments(real), reference, **EXACT), torch.get_num_threads()
    scores = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            scores.append(engine.score(removed, added))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(scores[0], scores[3])  # repeatable for a fixed count
    # the projection is torch's, whose order of summation may follow the threads
    for score in scores[1:3]:
        torch.testing.assert_close(score, scores[0], rtol=1e-12, atol=0)


def test_chunks_and_threads_leave_the_result():
    real, reference, removed, added = make(batch=9)
    whole = SwapEngine(moments(real), reference, **EXACT).change(removed, added)
    chunked = SwapEngine(moments(real), reference, workspace=1, **EXACT).change(removed, added)
    torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-12)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        twice = SwapEngine(moments(real), reference, **EXACT).change(removed, added)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(twice, whole, rtol=1e-12, atol=1e-14)


def test_memory_is_bounded_by_the_workspace(monkeypatch):
    rng = np.random.default_rng(0)
    real, reference = rng.standard_normal((400, 16)), rng.standard_normal((60_000, 16)).astype(np.float32)
    engine = SwapEngine(moments(real), reference, workspace=1 << 20)
    sizes = []
    change_once = chunks._change_once

    def counted(candidates, *rest):
        sizes.append(len(candidates))
        return change_once(candidates, *rest)

    monkeypatch.setattr(chunks, "_change_once", counted)
    assert engine.leave_one_out().shape == (60_000,)
    # indices, sums, products and log-determinants of a row alone: 0.3 kB measured at d = 2048, 3 kB allowed
    assert sum(sizes) == 60_000 and max(sizes) * 3 << 10 <= 1 << 20
