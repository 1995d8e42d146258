"""Precision, recall, density and coverage against prdc, torch-fidelity and exact integer arithmetic."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from torch_fidelity.metric_prc import prc_features_to_metric

import fastfid.neighbours
from fastfid import prdc, precision_recall

# Every score is a count over n, m or k·m, so two implementations that agree on each pair agree to the last bits of one
# division; prdc's mean of booleans and its product with 1/k round differently.
COUNTS = dict(rel=1e-14, abs=0)


def features(n, d, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def prdc_reference(real, generated, k):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its counts
        return compute_prdc(real.numpy(), generated.numpy(), k)


def fidelity_precision_recall(real, generated, k):
    scores = prc_features_to_metric(generated, real, prc_neighborhood=k, verbose=False)
    return {name: scores[name] for name in ("precision", "recall")}


def scores_of_integers(real, generated, k, closer):
    """All four scores from int64 distances: no rounding anywhere, ties and all."""

    def squared(a, b):
        return ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)

    real, generated = real.numpy().astype(np.int64), generated.numpy().astype(np.int64)
    radii_real = np.sort(squared(real, real), axis=1)[:, k]
    radii_generated = np.sort(squared(generated, generated), axis=1)[:, k]
    between = squared(real, generated)
    in_real, in_generated = closer(between, radii_real[:, None]), closer(between, radii_generated[None, :])
    return {
        "precision": in_real.any(axis=0).mean(),
        "recall": in_generated.any(axis=1).mean(),
        "density": in_real.sum() / (k * len(generated)),
        "coverage": in_real.any(axis=1).mean(),
    }


@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(200, 200, 8, 5), (41, 127, 3, 1), (127, 41, 64, 7), (7, 7, 2, 5), (1271, 600, 41, 5)]
)
def test_equal_to_prdc_and_torch_fidelity(n, m, d, k):
    real, generated = features(n, d, 1), features(m, d, 2, shift=0.2)
    assert prdc(real, generated, k) == pytest.approx(prdc_reference(real, generated, k), **COUNTS)
    # torch-fidelity averages float32 flags: counts up to 1271 of them are good to 1e-7
    expected = fidelity_precision_recall(real, generated, k)
    assert precision_recall(real, generated, k) == pytest.approx(expected, rel=1e-6)


def test_defaults_are_those_of_the_papers():
    real, generated = features(100, 4, 1), features(100, 4, 2)
    assert prdc(real, generated) == prdc(real, generated, nearest_k=5)
    assert precision_recall(real, generated) == precision_recall(real, generated, nearest_k=3)


@given(seed=st.integers(0, 10_000), levels=st.integers(1, 4), d=st.integers(1, 5), k=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_ties_are_exact(seed, levels, d, k):
    """Few integer levels: most points coincide or tie, and `<` and `<=` give different scores."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(0, levels, (30, d), generator=generator).float()
    generated = torch.randint(0, levels, (17, d), generator=generator).float()
    strict, loose = (scores_of_integers(real, generated, k, closer) for closer in (np.less, np.less_equal))
    assert prdc(real, generated, k) == pytest.approx(strict, **COUNTS)
    loose = {name: loose[name] for name in ("precision", "recall")}
    assert precision_recall(real, generated, k) == pytest.approx(loose, **COUNTS)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_set_against_itself(offset):
    """Rows lie inside balls by the very distances that made the radii, so the density is exact."""
    x = features(100, 16, shift=offset)
    # |x_i − x_j| < r_k(x_i) for j = i and the k − 1 nearest: k rows a ball, so the density is 1.
    for generated in (x, x.flip(0)):
        assert prdc(x, generated) == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}
        assert precision_recall(x, generated) == {"precision": 1.0, "recall": 1.0}


def test_collapsed_and_constant_generators():
    real = features(50, 8)
    collapsed = real[:1].expand(40, -1)  # all on one real point: that ball holds all, its neighbours' perhaps
    scores = prdc(real, collapsed)
    assert scores["precision"] == 1.0 and scores["recall"] == 0.0 and scores["density"] >= 1 / 5
    assert precision_recall(real, collapsed)["recall"] == 1 / 50  # `<=` with radius 0 reaches the point itself
    constant = torch.ones(20, 3)
    assert prdc(constant, constant) == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}
    assert precision_recall(constant, constant) == {"precision": 1.0, "recall": 1.0}


def test_far_sets_share_nothing():
    assert set(prdc(features(30, 4), features(30, 4, 1, shift=100)).values()) == {0.0}


def test_blocks_change_nothing(monkeypatch):
    real, generated = features(100, 5, 1), features(61, 5, 2)
    whole = prdc(real, generated), precision_recall(real, real.flip(0))
    for name, size in (("BLOCK_ROWS", 7), ("BLOCK_COLUMNS", 11), ("PAIR_ELEMENTS", 16)):
        monkeypatch.setattr(fastfid.neighbours, name, size)
    assert (prdc(real, generated), precision_recall(real, real.flip(0))) == whole


def test_numpy_and_float32_are_accepted():
    real, generated = features(60, 5, 1).float(), features(60, 5, 2).float()
    assert prdc(real.numpy(), generated.numpy()) == prdc(real, generated) == prdc(real.double(), generated.double())


OK = torch.zeros(9, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prdc(OK, OK[:5]), "5 generated rows have no neighbour number 5; pass nearest_k=4 or less"),
        (lambda: precision_recall(OK[:2], OK), "2 real rows have no neighbour number 3"),
        (lambda: prdc(OK, OK, nearest_k=0), "nearest_k is 0"),
        (lambda: prdc(OK, OK[:, :2]), "real has d = 3, generated has d = 2"),
        (lambda: prdc(OK[0], OK), r"real features must be \[n, d\].*\(3,\)"),
        (lambda: prdc(OK, torch.full((9, 3), torch.inf)), "generated feature row 0 holds NaN or infinity"),
        (lambda: prdc(OK, OK.to("meta")), "real is on cpu, generated on meta"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
