"""The Inception Score is torch-fidelity's; its variance is the jackknife's, and its intervals hold."""

import math

import numpy as np
import pytest
import torch

from fastfid.evaluation import inception_score as inception_score_module
from fastfid.evaluation.inception_score import ClassProbabilities, _mean_and_deviation, _parts, inception_score
from fastfid.evaluation.intervals import (
    normal_interval,
)
from tests.support.repeated_draws import held, lower_limit, rows
from tests.support.small_network import features


def test_inception_score_is_torch_fidelitys():
    metric = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    logits = 3 * features(237, 5, d=11)
    found = metric(logits, splits=10, shuffle=True, rng_seed=2020)
    expected = (found["inception_score_mean"], found["inception_score_std"])
    assert inception_score(logits) == pytest.approx(expected, rel=1e-12)
    ordered = metric(logits, splits=3, shuffle=False)["inception_score_mean"]
    assert inception_score(logits, 3, None)[0] == pytest.approx(ordered, rel=1e-12)
    assert inception_score(torch.zeros(20, 4)) == pytest.approx((1.0, 0.0))
    parts = [metric(part, splits=1, shuffle=False)["inception_score_mean"] for part in logits.split(100)]
    ours = _mean_and_deviation(_parts(logits, [0, 100, 200, 237], None))[0]
    assert ours == pytest.approx(np.mean(parts), rel=1e-12)
    sure = 1000 * torch.eye(4).repeat(5, 1)
    assert inception_score(sure, 1)[0] == pytest.approx(4.0)
    with pytest.raises(ValueError, match="splits is 30 for 20 rows"):
        inception_score(torch.zeros(20, 4), 30)


def test_inception_score_variance_is_the_jackknife_by_brute_force():
    logits = 2 * rows(40, np.random.default_rng(3), d=6).double()
    without = [inception_score(torch.cat([logits[:i], logits[i + 1 :]]), 1, None)[0] for i in range(40)]
    expected = 39 / 40 * np.square(np.array(without) - np.mean(without)).sum()
    assert ClassProbabilities(logits).variance() == pytest.approx(expected, rel=1e-9)
    assert ClassProbabilities(logits[:1]).variance() is None
    sure = torch.full((5, 3), -1e30, dtype=torch.float64)
    sure[[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]] = 0.0  # p of 0 and 1
    assert ClassProbabilities(sure).variance() > 0


def test_the_inception_score_is_made_block_by_block(monkeypatch):
    """No copy of all logits: the same numbers, to the rounding of a sum of 100 terms, from blocks of 7 rows."""
    logits, order = rows(100, np.random.default_rng(3), d=6), torch.randperm(100)
    whole = ClassProbabilities(logits, order)
    monkeypatch.setattr(inception_score_module, "ENTROPY_ROWS", 7)
    parts = ClassProbabilities(logits, order)
    assert max(len(block) for block in parts.blocks()) == 7
    assert (parts.score(), parts.variance()) == pytest.approx((whole.score(), whole.variance()), rel=1e-12)


def test_inception_score_intervals_hold():
    repeats, found = 200, []
    for i in range(repeats):
        probabilities = ClassProbabilities(2 * rows(300, np.random.default_rng([6, i]), d=5))
        found.append((probabilities.score(), math.sqrt(probabilities.variance())))
    values = np.array([value for value, _ in found])
    ratio = np.mean([error**2 for _, error in found]) / values.var(ddof=1)
    assert abs(ratio - 1) < 4 * math.sqrt(2 / repeats)
    assert held(values.mean(), [normal_interval(*pair) for pair in found]) > lower_limit(repeats)
