"""The discriminator of the density-ratio reward against scikit-learn's logistic regression."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fastfid import DensityRatioReward
from fastfid.rewards import density_ratio
from fastfid.rewards.credit import change_each, swap_credit

N, REAL, D, K = 90, 140, 4, 3


def sets(seed=0):
    """real [REAL, D] with labels, set [N, D] with labels of other proportions."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(D, D))
    real = rng.normal(size=(REAL, D)) @ mixing + 3
    rows = 1.3 * rng.normal(size=(N, D)) @ mixing + 3.4
    of_real, of_set = rng.integers(0, K, REAL), rng.permutation(np.repeat(np.arange(K), [45, 30, 15]))
    rows[of_set == 1] += 0.5
    return real, of_real, rows, of_set


def standard(rows, real):
    """(rows − μ_r)/s with s² the mean variance of the real features."""
    return (rows - real.mean(0)) / np.sqrt(real.var(0, ddof=1).mean())


def both_sides(real, of_real, rows, of_set):
    """Features, labels, targets and weights of the regression: the real images of a class weigh as its set's do."""
    x, y = standard(np.concatenate([rows, real]), real), np.concatenate([of_set, of_real])
    of_class = np.bincount(of_set, minlength=K) / N / np.bincount(of_real, minlength=K)
    weights = np.concatenate([np.full(N, 1 / N), of_class[of_real]])
    return x, y, np.repeat([0, 1], [N, REAL]), weights


def fitted(x, target, weights, strength):
    model = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    return model.fit(x, target, sample_weight=weights)


@pytest.mark.parametrize("strength", [1.0, 0.1, 1e-3])
def test_without_labels_it_is_a_logistic_regression(strength):
    real, _, rows, _ = sets()
    prepared = DensityRatioReward(real, strength=strength).prepare(rows)
    x, target = standard(np.concatenate([rows, real]), real), np.repeat([0, 1], [N, REAL])
    model = fitted(x, target, np.repeat([1 / N, 1 / REAL], [N, REAL]), strength)
    logits = model.decision_function(x)
    np.testing.assert_allclose(prepared.scores, logits[:N], rtol=1e-6, atol=1e-7)
    assert prepared.distance == pytest.approx(logits[N:].mean() - logits[:N].mean(), rel=1e-6)


@pytest.mark.parametrize("strength", [1.0, 0.1, 1e-3])
def test_l2_is_a_logistic_regression_on_features_and_features_of_each_class(strength):
    real, of_real, rows, of_set = sets()
    prepared = DensityRatioReward(real, of_real, strength=strength).prepare(rows, of_set)
    x, y, target, weights = both_sides(real, of_real, rows, of_set)
    indicator = np.eye(K)[y]
    design = np.concatenate([x, indicator, (indicator[:, :, None] * x[:, None]).reshape(len(x), -1)], axis=1)
    logits = fitted(design, target, weights, strength).decision_function(design)
    np.testing.assert_allclose(prepared.scores, logits[:N], rtol=1e-6, atol=1e-7)
    assert prepared.distance == pytest.approx(weights[N:] @ logits[N:] - logits[:N].mean(), rel=1e-6)


@pytest.mark.parametrize("strength", [1.0, 0.1, 1e-3])
def test_r1_is_a_logistic_regression_in_each_class(strength):
    real, of_real, rows, of_set = sets()
    prepared = DensityRatioReward(real, of_real, penalty="r1", strength=strength).prepare(rows, of_set)
    x, y, target, weights = both_sides(real, of_real, rows, of_set)
    expected = np.empty(N)
    for c in range(K):
        of_class = y == c
        share = (of_set == c).mean()
        model = fitted(x[of_class], target[of_class], weights[of_class], strength * share)
        expected[of_set == c] = model.decision_function(x[:N][of_set == c])
    np.testing.assert_allclose(prepared.scores, expected, rtol=1e-6, atol=1e-7)


def test_the_ratio_of_two_gaussians():
    # equal unit covariances, means 0 and 0.5 e_1: log p/q = −0.5 x_1 + 0.125, and KL(p|q) + KL(q|p) = 0.25
    rng = np.random.default_rng(0)
    real, rows = rng.normal(size=(40_000, 2)), rng.normal(size=(40_000, 2)) + [0.5, 0]
    prepared = DensityRatioReward(real, strength=1e-6).prepare(rows)
    # standard errors at this size: of a weight about 2/√40,000 = 0.01
    np.testing.assert_allclose(prepared.scores, -0.5 * rows[:, 0] + 0.125, atol=0.2)
    assert prepared.distance == pytest.approx(0.25, abs=0.03)


def test_changes_and_credit_are_those_of_the_mean_logit():
    real, of_real, rows, of_set = sets()
    prepared = DensityRatioReward(real, of_real).prepare(rows, of_set)
    rng = np.random.default_rng(1)
    removed, added = rng.permutation(N)[:12].reshape(4, 3), rng.normal(size=(4, 3, D)) + 3
    labels = torch.from_numpy(rng.integers(0, K, (4, 3)))
    new = prepared.logits(torch.from_numpy(added).reshape(-1, D), labels.flatten()).view(4, 3).numpy()
    scores = prepared.scores.numpy()
    expected = [
        -np.concatenate([np.delete(scores, r), s]).mean() + scores.mean() for r, s in zip(removed, new, strict=True)
    ]
    np.testing.assert_allclose(prepared.change(removed, added, labels), expected, rtol=1e-9)
    left_out = np.array([scores.mean() - np.delete(scores, i).mean() for i in range(N)])
    np.testing.assert_allclose(prepared.leave_one_out(), left_out, rtol=1e-9, atol=1e-15)
    swapped = (scores[removed] - new) / N
    np.testing.assert_allclose(change_each(prepared, removed, added, labels), swapped, rtol=1e-9)
    np.testing.assert_allclose(swap_credit(prepared, removed, added, labels), left_out[removed] - swapped, rtol=1e-9)
    # by default a new row has the label of the row that it replaces
    of_removed = torch.from_numpy(of_set)[removed]
    assert torch.equal(prepared.change(removed, added), prepared.change(removed, added, of_removed))


@pytest.mark.parametrize("penalty", ["l2", "r1"])
def test_gradient_equals_finite_differences(penalty):
    real, of_real, rows, of_set = sets()
    prepared = DensityRatioReward(real, of_real, penalty=penalty).prepare(rows, of_set)
    for i, j in ((0, 0), (40, 2)):
        moved = rows[[i]].copy()
        moved[0, j] += 1e-3
        slope = prepared.change([[i]], moved[None]).item() / 1e-3
        assert prepared.gradient()[i, j].item() == pytest.approx(slope, rel=1e-7)


def test_it_is_fitted_anew_for_every_set():
    real, of_real, rows, of_set = sets()
    reward = DensityRatioReward(real, of_real)
    near = reward.prepare(rows, of_set).distance
    assert reward.prepare(rows + 1, of_set).distance > near > 0
    assert reward.prepare(rows, of_set).distance == near


def test_more_features_than_rows_and_constant_ones():
    rng = np.random.default_rng(0)
    real, rows = rng.normal(size=(12, 40)), rng.normal(size=(10, 40)) + 0.5
    real[:, :3], rows[:, :3] = 2.0, 2.0
    prepared = DensityRatioReward(real, strength=0.01).prepare(rows)
    x = standard(np.concatenate([rows, real]), real)
    model = fitted(x, np.repeat([0, 1], [10, 12]), np.repeat([1 / 10, 1 / 12], [10, 12]), 0.01)
    np.testing.assert_allclose(prepared.scores, model.decision_function(x)[:10], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("of_real", "of_set", "message"),
    [
        (None, np.zeros(N, int), "no labels of the real images, so it needs none of the set"),
        (np.zeros(REAL, int), None, "has labels of the real images, so it needs some of the set"),
        (np.zeros(REAL, int), np.repeat([0, 7], N // 2), r"no real images of 1 classes of the set, first \[7\]"),
        (np.zeros(REAL, int), np.zeros(N - 1, int), rf"labels must be \[{N}\]"),
        (np.zeros(REAL), np.zeros(N, int), "labels must be integers"),
    ],
)
def test_labels_that_do_not_fit(of_real, of_set, message):
    real, _, rows, _ = sets()
    with pytest.raises(ValueError, match=message):
        DensityRatioReward(real, of_real).prepare(rows, of_set)


def test_a_fit_that_does_not_end_is_told(monkeypatch):
    real, of_real, rows, of_set = sets()
    monkeypatch.setattr(density_ratio, "STEPS", 1)
    monkeypatch.setattr(density_ratio, "NEWTON_STEPS", 0)
    with pytest.raises(ValueError, match=r"density_ratio did not converge.*raise strength, now 0\.001"):
        DensityRatioReward(real, of_real, strength=0.001).prepare(rows, of_set)


def test_labels_of_new_rows_that_do_not_fit():
    real, of_real, rows, of_set = sets()
    prepared = DensityRatioReward(real, of_real).prepare(rows, of_set)
    with pytest.raises(ValueError, match="class 9, of which the set has no image"):
        prepared.change([[0]], np.zeros((1, 1, D)), [[9]])
    with pytest.raises(ValueError, match="2 rows are added for 1 removed ones; pass their labels"):
        prepared.change([[0]], np.zeros((1, 2, D)))
    with pytest.raises(ValueError, match=r"labels must be \[1, 1\]"):
        prepared.change([[0]], np.zeros((1, 1, D)), [[0, 1]])
