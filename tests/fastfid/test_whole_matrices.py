"""Whole-matrix methods and the change from scratch agree with the log-determinants."""

import math

import pytest
import torch

from fastfid import SwapEngine, swap_change_ref
from tests.support.swap_sets import CASES, EXACT, allowance, make, moments


@pytest.mark.parametrize("case", CASES)
def test_methods_and_references_agree(case):
    real, reference, removed, added = make(**CASES[case])
    engine = SwapEngine(moments(real), reference, **EXACT)
    change = engine.change(removed, added)
    limit = allowance(engine, removed.shape[1], added.shape[1])
    by_spectrum = SwapEngine(moments(real), reference, method="eigh", **EXACT)
    # roots of rounding errors, 1e-16 of λ_max, enter both full spectra for every direction
    roots = 2 * reference.shape[1] * 1.5e-8 * math.sqrt(engine.report()["lambda_max"])
    torch.testing.assert_close(by_spectrum.change(removed, added), change, rtol=1e-9, atol=limit + roots)
    torch.testing.assert_close(swap_change_ref(engine, removed, added), change, rtol=1e-9, atol=limit + roots)


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_products_alone_come_close(method):
    real, reference, removed, added = make("graded", N=400, d=24, batch=8)
    engine = SwapEngine(moments(real), reference, **EXACT)
    expected = engine.change(removed, added)
    # Measured against the spread (bench/results/newton_schulz_error.csv): float32 1e-3 once it has converged.
    for dtype, limit in ((torch.float32, 0.01), (torch.float64, 1e-4)):
        change = SwapEngine(moments(real), reference, method=method, dtype=dtype).change(removed, added)
        assert abs(change - expected).max() <= limit * expected.std()


def test_method_eigh_counts_what_it_clips():
    real, reference, removed, added = make(**CASES["N < d"])
    engine = SwapEngine(moments(real), reference, method="eigh", **EXACT)
    engine.change(removed, added)
    report = engine.report()
    assert report["changed_eigenvalues_clipped"] > 0 and report["recomputed"] == 0
