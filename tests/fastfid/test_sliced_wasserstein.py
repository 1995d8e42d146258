"""The sliced Wasserstein distance: closed forms, an oracle for unequal sides, and what it sees that moments do not."""

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, SlicedWasserstein, evaluate, frechet_distance, sliced_wasserstein
from fastfid.distances import sliced_wasserstein as module
from fastfid.distances.sliced_wasserstein import SortedReal, orthogonal_directions, sliced_jackknife

D = 5


def rows(n, seed, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, D)) + shift)


@pytest.mark.parametrize("directions", [D, 4 * D])
def test_a_shift_costs_three_times_its_square(directions):
    x, shift = rows(40, 1), torch.tensor([0.3, -1.0, 2.0, 0.0, 0.7], dtype=torch.float64)
    assert sliced_wasserstein(x, x + shift, directions) == pytest.approx(3 * float(shift @ shift), rel=1e-12)
    assert sliced_wasserstein(x + 1e6, x + 1e6 + shift, directions) == pytest.approx(3 * float(shift @ shift), rel=1e-6)


def test_a_scale_costs_its_square():
    """Along each direction s·u − u = (s − 1) u: 3d (s − 1)² times the mean square of the projections."""
    x = rows(40, 1)
    x -= x.mean(0)
    expected = 3 * (1.5 - 1) ** 2 * float(x.square().sum(1).mean())
    assert sliced_wasserstein(x, 1.5 * x, 2 * D) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (4, 6), (1, 6), (12, 5)])
def test_unequal_sides_are_those_of_repeated_rows(n, m):
    """Each row repeated until both sides have n·m rows: the same distributions, and plain sorting."""
    x, y = rows(n, 2), rows(m, 3, 0.4)
    directions = orthogonal_directions(7, D, 0).numpy()
    u, g = (np.sort(np.repeat(a.numpy() @ directions, times, axis=0), axis=0) for a, times in ((y, n), (x, m)))
    assert sliced_wasserstein(x, y, 7) == pytest.approx(3 * D * np.square(u - g).mean(), rel=1e-10)


def test_equal_moments_do_not_satisfy_it():
    """±1 against a normal sample of the same mean and covariance: no Fréchet distance, and a sliced one."""
    rng = np.random.default_rng(0)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], (4000, 2)))
    normal = torch.from_numpy(rng.normal(size=(4000, 2)))
    whiten = torch.linalg.cholesky(torch.linalg.inv(torch.cov(normal.T)))
    normal = (normal - normal.mean(0)) @ whiten @ torch.linalg.cholesky(torch.cov(signs.T)).T + signs.mean(0)
    moments = [FeatureMoments.from_features(x) for x in (signs, normal)]
    assert frechet_distance(*moments) < 1e-9
    assert sliced_wasserstein(signs, normal, 50) > 20 * sliced_wasserstein(normal[:2000], normal[2000:], 50) > 0


def test_laws():
    x, y = rows(30, 1), rows(20, 2, 0.3)
    found = sliced_wasserstein(x, y, 16)
    assert sliced_wasserstein(x, x, 16) == pytest.approx(0, abs=1e-13)
    assert sliced_wasserstein(x.flip(0), y.flip(0), 16) == pytest.approx(found, rel=1e-12)
    assert sliced_wasserstein(y, x, 16) == pytest.approx(found, rel=1e-12)
    assert sliced_wasserstein(x, y, 16, seed=1) != found
    assert sliced_wasserstein(x.float(), y.float(), 16) == pytest.approx(found, rel=1e-5)


def test_one_real_side_serves_many(monkeypatch):
    x, y = rows(30, 1), rows(20, 2, 0.3)
    expected, real = sliced_wasserstein(x, y), SortedReal(x)
    assert real.distance(y) == expected
    monkeypatch.setattr(module, "CHUNK", 60)  # two directions at a time
    assert real.distance(y) == pytest.approx(expected, rel=1e-12)


def test_groups_that_are_left_out():
    """Eight groups of two of 17 rows: each distance is that of the other 15."""
    x, y = rows(17, 1), rows(20, 2, 0.3)
    without_generated, without_real = sliced_jackknife(x, y, 8, seed=3)
    rng = torch.Generator().manual_seed(3)
    of_y, of_x = (module._groups(n, 8, rng) for n in (20, 17))
    assert torch.bincount(of_x + 1).tolist() == [1] + 8 * [2]
    directions = module.JACKKNIFE_DIRECTIONS
    for group in range(8):
        expected = sliced_wasserstein(x, y[of_y != group], directions, seed=3)
        assert without_generated[group].item() == pytest.approx(expected, rel=1e-10)
        expected = sliced_wasserstein(x[of_x != group], y, directions, seed=3)
        assert without_real[group].item() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match="17 rows do not make 18 groups"):
        sliced_jackknife(x, y, 18)


def test_metric_class_and_evaluation_give_the_same_number():
    x, y = rows(60, 1).float(), rows(50, 2, 0.3).float()
    metric = SlicedWasserstein(directions=1000)
    for part in x.split(17):
        metric.update(part, real=True)
    metric.update(y, real=False)
    assert metric.compute().item() == sliced_wasserstein(x, y)
    score = evaluate(y, x, metrics=["sliced_wasserstein"])["sliced_wasserstein"]
    assert score.value == pytest.approx(sliced_wasserstein(x, y, seed=2020), rel=1e-12)
    low, high = score.interval
    assert low < score.value < high and score.details == {"directions": 1000, "scale": 3 * D}


def test_the_interval_covers_other_draws():
    """A shift of half a deviation, 40 draws of both sides: the mean over the draws lies in most intervals."""
    scores = [
        evaluate(rows(100, 2 * i, 0.5), rows(100, 2 * i + 1), metrics=["sliced_wasserstein"])["sliced_wasserstein"]
        for i in range(40)
    ]
    mean = np.mean([score.value for score in scores])
    held = sum(score.interval[0] <= mean <= score.interval[1] for score in scores)
    spread = np.std([score.value for score in scores])
    assert held >= 32 and np.mean([score.standard_error for score in scores]) < 2 * spread


def test_bad_input():
    with pytest.raises(ValueError, match="directions is 0; a mean over directions needs at least 1"):
        sliced_wasserstein(rows(5, 1), rows(5, 2), 0)
    with pytest.raises(ValueError, match="directions is 0"):
        SlicedWasserstein(directions=0)
    with pytest.raises(ValueError, match="generated feature row 2 holds NaN"):
        sliced_wasserstein(rows(5, 1), rows(5, 2).index_fill(0, torch.tensor(2), float("nan")))
    with pytest.raises(ValueError, match="use one extractor for both"):
        sliced_wasserstein(rows(5, 1), rows(5, 2)[:, :3])
    few = evaluate(rows(15, 1), rows(30, 2), metrics=["sliced_wasserstein"])["sliced_wasserstein"]
    assert few.interval is None and "too few images for an interval" in few.method
