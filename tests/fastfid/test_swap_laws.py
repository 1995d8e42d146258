"""Laws that the distances of swapped sets obey."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastfid import SwapEngine
from fastfid.backend import cpp_obstacle
from tests.support import oracles
from tests.support.swap_sets import EXACT, allowance, engine_of, law, moments, shapes


@given(shapes)
@law
def test_rows_swapped_for_themselves_change_nothing(shape):
    engine, _, reference, removed, _ = engine_of(shape)
    change = engine.change(removed, reference[removed])
    scale = engine.distance + engine.real.trace + engine.prepared.trace
    assert abs(change).max() <= 1e-12 * scale
    # asked for by name, the unpivoted kernel meets the same unless the removal alone empties a direction
    if not cpp_obstacle(torch.device("cpu")) and shape[0] - 1 - shape[2] >= engine.real.rank:
        by_name = SwapEngine(engine.real, reference, backend="cpp", **EXACT).change(removed, reference[removed])
        assert abs(by_name).max() <= 1e-12 * scale


@given(shapes)
@law
def test_order_is_irrelevant(shape):
    engine, _, _, removed, added = engine_of(shape)
    change = engine.change(removed, added)
    limit = {"rtol": 1e-9, "atol": allowance(engine, removed.shape[1], added.shape[1])}
    torch.testing.assert_close(engine.change(removed[:, ::-1].copy(), added[:, ::-1].copy()), change, **limit)
    torch.testing.assert_close(engine.change(removed[::-1].copy(), added[::-1].copy()).flip(0), change, **limit)


@given(shapes)
@law
def test_a_swap_and_its_reverse_cancel(shape):
    N, d, m, _, seed = shape
    engine, _, reference, removed, added = engine_of((N, d, m, m, seed))
    change = engine.change(removed[:1], added[:1])
    limit = 2 * allowance(engine, m, m)
    before = engine.distance
    engine.replace(removed[0], added[0])
    assert engine.distance - before == pytest.approx(change.item(), abs=limit)
    back = engine.change(removed[:1], reference[removed[:1]])
    assert (change + back).item() == pytest.approx(0, abs=limit + allowance(engine, m, m))


@given(shapes, st.floats(0.01, 100))
@law
def test_scaling_features_scales_the_distance_by_its_square(shape, scale):
    engine, real, reference, removed, added = engine_of(shape)
    scaled = SwapEngine(moments(scale * real), scale * reference, **EXACT)
    change = engine.change(removed, added)
    limit = 2 * allowance(engine, removed.shape[1], added.shape[1])
    torch.testing.assert_close(scaled.change(removed, scale * added) / scale**2, change, rtol=1e-9, atol=limit)
    assert scaled.distance / scale**2 == pytest.approx(engine.distance, rel=1e-9)


@given(shapes)
@law
def test_rotation_leaves_the_distance(shape):
    engine, real, reference, removed, added = engine_of(shape)
    turn = np.linalg.qr(np.random.default_rng(shape[-1]).standard_normal((shape[1],) * 2))[0]
    turned = SwapEngine(moments(real @ turn), reference @ turn, **EXACT)
    change = engine.change(removed, added)
    limit = 2 * allowance(engine, removed.shape[1], added.shape[1])
    torch.testing.assert_close(turned.change(removed, added @ turn), change, rtol=1e-9, atol=limit)


@given(shapes)
@law
def test_a_set_is_at_no_distance_from_itself(shape):
    _, _, reference, _, _ = engine_of(shape)
    engine = SwapEngine(moments(reference), reference)
    # a singular set's covariance has directions of rounding, 1e-16 of the largest, whose roots are 1e-8 of the largest
    singular = len(reference) <= reference.shape[1]
    assert abs(engine.distance) <= (1e-7 if singular else 1e-12) * engine.real.trace


@given(shapes, st.integers(0, 5))
@law
def test_committing_two_swaps_is_committing_their_union(shape, first):
    N, d, m, _, seed = shape
    _, real, reference, removed, added = engine_of((N, d, m, m, seed))
    removed, added, first = removed[0], added[0], min(first, m)
    one_by_one = SwapEngine(moments(real), reference)
    one_by_one.replace(removed[:first], added[:first]).replace(removed[first:], added[first:])
    at_once = SwapEngine(moments(real), reference).replace(removed, added)
    torch.testing.assert_close(one_by_one.reference, at_once.reference, rtol=0, atol=0)
    assert one_by_one.distance == at_once.distance
    expected = oracles.distance_of_samples(real, oracles.swapped(reference, removed, added))
    assert at_once.distance == pytest.approx(expected, rel=1e-9)
