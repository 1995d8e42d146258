"""The Inception Score is torch-fidelity's; its variance is the jackknife's, and its intervals hold."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments
from fastfid.distances import class_scores
from fastfid.distances.class_scores import ClassProbabilities
from fastfid.evaluation.inception_score import (
    _mean_and_deviation,
    _parts,
    classifier_score,
    inception_score,
    score_variance,
)
from fastfid.evaluation.intervals import normal_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.scores import compute
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import SideInNetwork
from fastfid.metrics.inception_score import InceptionScore
from fastfid.protocols import protocol_named
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
    assert score_variance(ClassProbabilities(logits)) == pytest.approx(expected, rel=1e-9)
    assert score_variance(ClassProbabilities(logits[:1])) is None
    sure = torch.full((5, 3), -1e30, dtype=torch.float64)
    sure[[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]] = 0.0  # p of 0 and 1
    assert score_variance(ClassProbabilities(sure)) > 0


def test_the_inception_score_is_made_block_by_block(monkeypatch):
    """No copy of all logits: the same numbers, to the rounding of a sum of 100 terms, from blocks of 7 rows."""
    logits, order = rows(100, np.random.default_rng(3), d=6), torch.randperm(100)
    whole = ClassProbabilities(logits, order)
    monkeypatch.setattr(class_scores, "ENTROPY_ROWS", 7)
    parts = ClassProbabilities(logits, order)
    assert max(len(block) for block in parts.blocks()) == 7
    expected = (whole.score(), score_variance(whole))
    assert (parts.score(), score_variance(parts)) == pytest.approx(expected, rel=1e-12)


def test_inception_score_intervals_hold():
    repeats, found = 200, []
    for i in range(repeats):
        probabilities = ClassProbabilities(2 * rows(300, np.random.default_rng([6, i]), d=5))
        found.append((probabilities.score(), math.sqrt(score_variance(probabilities))))
    values = np.array([value for value, _ in found])
    ratio = np.mean([error**2 for _, error in found]) / values.var(ddof=1)
    assert abs(ratio - 1) < 4 * math.sqrt(2 / repeats)
    assert held(values.mean(), [normal_interval(*pair) for pair in found]) > lower_limit(repeats)


def sorted_by_class(n=1000, classes=10):
    """Logits [n, classes] of images of one class after the other, most of them recognised."""
    labels = torch.arange(n) * classes // n
    noise = torch.randn(n, classes, generator=torch.Generator().manual_seed(0))
    return 6 * torch.nn.functional.one_hot(labels, classes) + noise


def test_images_sorted_by_class_are_said():
    logits = sorted_by_class()
    mixed = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))]
    shuffled = inception_score(logits, 4)[0]
    with pytest.warns(UserWarning, match="in the order of the images and .* in mixed order: the splits differ") as told:
        in_order = inception_score(logits, 4, None)[0]
    assert in_order < 0.6 * shuffled and f"is {in_order:.4g} in" in str(told[0].message)
    assert f"and {shuffled:.4g} in mixed" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(30):  # no order of chance is told
            order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
            inception_score(logits[order], 10, None)
        inception_score(mixed, 4, None), inception_score(logits, 1, None), inception_score(logits, 4)


def test_the_metric_says_that_images_are_sorted():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(8 * np.eye(10)[np.repeat(np.arange(10), 30)] + rng.normal(size=(300, 10)))
    metric = InceptionScore(None, seed=None)
    metric.update(logits)
    with pytest.warns(UserWarning, match="the score is .* in the order of the images and .* in mixed order"):
        metric.compute()
    mixed = InceptionScore(None, seed=None)
    mixed.update(logits[torch.from_numpy(rng.permutation(300))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed.compute()


def test_an_evaluation_says_that_images_are_sorted():
    logits = sorted_by_class()
    protocol = replace(protocol_named("adm"), network="given", is_split_size=250)
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    for order, said in ((torch.arange(1000), True), (torch.randperm(1000), False)):
        side = SideInNetwork("samples", "given", FeatureMoments.from_features(x), {}, features=x, logits=logits[order])
        found = []
        (score,), _ = compute(Pair(side, side, protocol, Settings(), ["is"]), ["is"], found)
        assert any("in mixed order: the splits differ" in warning for warning in found) == said
        assert ("mixed_order" in score.details) == said
    assert (
        "mixed_order" not in classifier_score(Pair(side, side, replace(protocol, is_shuffle=True), Settings())).details
    )
