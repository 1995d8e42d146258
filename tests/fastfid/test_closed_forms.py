"""Fréchet distances that are known on paper, far from the origin, of few rows and of constant features."""

import math

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, evaluate, frechet_distance
from fastfid.statistics.statistics import Statistics

EPS = np.finfo(np.float64).eps


def distance(x, y):
    return frechet_distance(FeatureMoments.from_features(x), FeatureMoments.from_features(y))


def rotation(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s], [s, c]])


def gaussian(mean, cov):
    return torch.tensor(mean, dtype=torch.float64), torch.as_tensor(cov, dtype=torch.float64)


# --- Gaussians given by their moments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m1", "s1", "m2", "s2"), [(0, 1, 3, 2), (1e4, 0.1, 1e4 + 1, 0.3), (-5, 1e3, 5, 1e-3), (0, 0, 2, 3)]
)
def test_one_dimension(m1, s1, m2, s2):
    """(μ₁ − μ₂)² + (σ₁ − σ₂)²."""
    found = frechet_distance(gaussian([m1], [[s1**2]]), gaussian([m2], [[s2**2]]))
    assert found == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2, rel=1e-12)


@pytest.mark.parametrize("angle", [0, 1, 30, 90, 137])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_two_dimensions_that_do_not_commute(angle, scale):
    """tr √(AB) = √(tr AB + 2√(det A det B)) for 2 × 2: Cayley–Hamilton of the root."""
    a = scale * np.diag([9.0, 1.0])
    b = scale * rotation(angle) @ np.diag([4.0, 0.25]) @ rotation(angle).T
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = 25 * scale + np.trace(a) + np.trace(b) - 2 * root
    found = frechet_distance(gaussian([0.0, 0.0], a), gaussian([3 * scale**0.5, 4 * scale**0.5], b))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [3, 64])
def test_scaled_copies_of_a_covariance(d):
    """B = s²A: (s − 1)² tr A, whatever A."""
    rng = np.random.default_rng(d)
    factor = rng.normal(size=(d, 2 * d))
    a, mean = factor @ factor.T, rng.normal(size=d)
    for s in (0.5, 1.0, 3.0):
        found = frechet_distance(gaussian(mean, a), gaussian(mean, s**2 * a))
        # A difference of traces of 10 tr A: 100 roundings of it.
        assert found == pytest.approx((s - 1) ** 2 * np.trace(a), rel=1e-9, abs=1000 * EPS * np.trace(a))


def test_against_a_point():
    """Σ₂ = 0: |μ₁ − μ₂|² + tr Σ₁."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 5))
    found = frechet_distance(gaussian(np.ones(5), factor @ factor.T), gaussian(np.zeros(5), np.zeros((5, 5))))
    assert found == pytest.approx(5 + np.trace(factor @ factor.T), rel=1e-13)


# --- few rows, far away ------------------------------------------------------------------------------------------


def pair_distance(x, y):
    """Two rows a side: covariances uuᵀ/2 and vvᵀ/2 of rank one, whose root has the trace |u·v|/2."""
    u, v = x[0] - x[1], y[0] - y[1]
    shift = x.mean(axis=0) - y.mean(axis=0)
    return shift @ shift + (u @ u + v @ v) / 2 - abs(u @ v)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("d", [1, 2, 7, 300])
def test_two_rows_a_side(d, offset):
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(2, d)), rng.normal(size=(2, d)) + 0.5
    found = distance(torch.from_numpy(x + offset), torch.from_numpy(y + offset))
    # Adding 1e4 rounds every coordinate by 1e4·ε = 2e-12, a distance of d such differences by 4e-12 of √(FD·d) and d.
    assert found == pytest.approx(pair_distance(x, y), rel=1e-9, abs=1e-11 * d * max(1, offset / 1e4))


def test_two_equal_rows_a_side_are_points():
    x, y = torch.full((2, 3), 1e4), torch.full((2, 3), 1e4 + 2)
    assert distance(x, y) == pytest.approx(12, rel=1e-12) and distance(x, x) == 0


@pytest.mark.parametrize(("n", "d"), [(2, 40), (5, 40), (40, 40), (41, 40), (400, 40)])
def test_an_offset_of_1e4_changes_nothing(n, d):
    rng = np.random.default_rng(n)
    x, y = (torch.from_numpy(rng.normal(size=(n, d))) for _ in range(2))
    near, far = distance(x, y + 1), distance(x + 1e4, y + 1 + 1e4)
    # The rows move by 1e4·ε = 2e-12 each, which a root of a singular product takes to its square root: 1.5e-6·√ε.
    assert far == pytest.approx(near, rel=1e-8)


def test_float32_features_far_away_are_computed_in_float64():
    """Rows exactly representable in float32 at 1e4: quarters of integers."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-8, 9, size=(50, 4)) / 4 for _ in range(2))
    exact = distance(torch.from_numpy(x), torch.from_numpy(y))
    far = distance(torch.from_numpy(x + 1e4).float(), torch.from_numpy(y + 1e4).float())
    assert far == pytest.approx(exact, rel=1e-9)


# --- constant and duplicate features -----------------------------------------------------------------------------


def test_constant_columns_add_their_means_alone():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(70, 3)) + 1
    widened = [np.concatenate([z, np.full((len(z), 2), value)], axis=1) for z, value in ((x, 5.0), (y, 1e4))]
    expected = distance(*map(torch.from_numpy, (x, y))) + 2 * (1e4 - 5) ** 2
    assert distance(*map(torch.from_numpy, widened)) == pytest.approx(expected, rel=1e-12)


def test_a_doubled_column_doubles_its_part():
    """Features (z, z) are √2·z in one direction: the distance of one-dimensional sets doubles."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 1)), 2 * rng.normal(size=(30, 1)) + 3
    single = distance(torch.from_numpy(x), torch.from_numpy(y))
    doubled = distance(torch.from_numpy(np.repeat(x, 2, axis=1)), torch.from_numpy(np.repeat(y, 2, axis=1)))
    assert doubled == pytest.approx(2 * single, rel=1e-9)


def test_evaluate_takes_two_rows_and_constant_features():
    """Through the whole path: a number, or the reason why there is none; never NaN."""
    rng = np.random.default_rng(0)
    cases = [
        (torch.from_numpy(rng.normal(size=(2, 4))), torch.from_numpy(rng.normal(size=(2, 4)))),
        (torch.full((30, 4), 3.0), torch.full((30, 4), 3.0)),
        (torch.full((30, 4), 3.0), torch.from_numpy(rng.normal(size=(30, 4)))),
    ]
    for samples, reference in cases:
        result = evaluate(samples, reference)
        assert all(math.isfinite(score.value) for score in result.scores)
        assert result["fd"].value == pytest.approx(distance(samples, reference), rel=1e-12)
        assert all(left.reason for left in result.left_out)


def test_saved_moments_keep_every_digit(tmp_path):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 5)) + 1e4)
    Statistics.from_features(x).save(tmp_path / "x.npz")
    read = Statistics.load(tmp_path / "x.npz").moments
    assert frechet_distance(read, FeatureMoments.from_features(x + 1)) == distance(x, x + 1)
