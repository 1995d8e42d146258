"""What a step promised and did, on Gaussian sets whose distance along a step is a known parabola."""

import pytest
import torch

from fastfid import DensityRatioReward, FeatureMoments, FrechetReward, KernelReward
from sit_rl.reward.components import Component, RewardSide
from sit_rl.reward.mix import Part
from sit_rl.reward.step_control import LEAST_PACE, Agreement, StepControl, compare, not_comparable
from sit_rl.reward.swap_reward import prepared_sets

D, N = 4, 400
LABELS = torch.arange(N) // (N // 10)


def side(*rewards):
    columns = [slice(i * D, (i + 1) * D) for i in range(len(rewards))]
    return RewardSide(
        tuple(Component(str(i), 1.0, c, r) for i, (c, r) in enumerate(zip(columns, rewards, strict=True)))
    )


def frechet():
    return FrechetReward(FeatureMoments(1_000, torch.zeros(D), torch.eye(D)))


def compared(rewards, spreads, before, after):
    """The agreement of two steps with these rows."""
    both = side(*rewards)
    sets = [prepared_sets(both.components, rows, LABELS) for rows in (before, after)]
    return compare(both.components, parts(*spreads), *sets, after, LABELS)


def images(shift, seed):
    """N images with the mean `shift` in the first feature and the covariance I, both exact."""
    rows = torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows -= rows.mean(0)
    root = torch.linalg.cholesky(torch.cov(rows.T))
    rows = torch.linalg.solve_triangular(root, rows.T, upper=False).T
    rows[:, 0] += shift
    return rows.float()


def parts(*stds):
    spread = torch.linspace(-1, 1, N, dtype=torch.float64)
    return [Part(str(i), std * spread / spread.std() / N) for i, std in enumerate(stds)]


@pytest.mark.parametrize("length", [0.5, 1.0, 2.0, 3.0])
def test_the_ratio_tells_the_length_of_a_step(length):
    """FD is |shift|² here: a step to shift·(1 − s) has R/P = 1 − s/2; with the same noise in both sets exactly so."""
    before, after = images(0.5, 0), images(0.5 * (1 - length), 0)
    found = compared([frechet()], [1.0], before, after)
    assert found.change / found.promised == pytest.approx(1 - length / 2, abs=0.02)  # P also has 1/N of the curvature
    assert found.realised / found.predicted == pytest.approx(found.change / found.promised)


@pytest.mark.parametrize("kind", ["fd", "kid"])
def test_the_noise_of_samples_is_no_disagreement(kind):
    """Independent samples of one distribution: P and R share most of their noise, which R − P does not have."""
    reward = frechet() if kind == "fd" else KernelReward(images(0.5, 99))
    found = []
    for seed in range(12):
        rows = torch.randn(2, N, D, generator=torch.Generator().manual_seed(seed)) + 0.5
        found.append(compared([reward], [1.0], *rows))
    gaps = torch.tensor([each.change - each.promised for each in found])
    changes = torch.tensor([each.change for each in found])
    assert gaps.abs().mean() < 0.4 * changes.abs().mean()


def test_components_count_by_weight_in_units_of_their_credits():
    """Twice the spread of a component's credits halves its say."""
    before, after = (torch.cat([images(m, 1), images(m, 2)], 1) for m in (2.0, 1.0))
    one = compared([frechet(), frechet()], [1.0, 1.0], before, after)
    other = compared([frechet(), frechet()], [1.0, 2.0], before, after)
    assert other.predicted == pytest.approx(0.75 * one.predicted, rel=0.05)


def step(control, shift, seed=0):
    """One step whose images have the given mean."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))  # images come in any order
    return control.after_step(side(frechet()), parts(1.0), images(shift, 0)[order], LABELS[order])


def test_a_step_too_far_halves_the_pace_and_good_ones_restore_it():
    control = StepControl()
    assert step(control, 2.0) is None and control.pace == 1.0  # nothing to compare with
    assert not step(control, 1.0, 1).failed and control.pace == 1.0
    far = step(control, -1.5, 2)  # beyond twice the way to the minimum at 0
    assert far.failed and far.change > 0 > far.promised and control.pace == 0.5
    assert not step(control, -1.2, 3).failed and control.pace == 0.625
    assert step(control, -1.9, 4).failed and control.pace == 0.3125  # away from the minimum: predicted, but no gain
    for i in range(6):
        step(control, -1.5 + 0.2 * i, 5 + i)
    assert control.pace == 1.0
    for i in range(12):
        step(control, 2.0 * (-1.3) ** i, i)
    assert control.pace == LEAST_PACE


@pytest.mark.parametrize(
    ("predicted", "realised", "failed"),
    [(-1.0, -0.5, False), (-1.0, -0.25, True), (-1.0, 0.5, True), (0.5, 0.5, True), (-0.05, 0.05, False),
     (0.05, 0.09, False)],
)  # fmt: skip
def test_less_than_two_fifths_of_the_promise_or_a_rise_is_a_failure_beyond_the_noise(predicted, realised, failed):
    assert Agreement(predicted, realised, 0.1, 0.0, 0.0).failed is failed


@pytest.mark.parametrize(
    ("predicted", "realised", "short"), [(-1.0, -0.7, True), (-1.0, -0.5, False), (0.5, -0.5, False), (0.0, 0.0, False)]
)
def test_only_a_step_that_stopped_before_the_minimum_is_short(predicted, realised, short):
    assert Agreement(predicted, realised, 0.1, 0.0, 0.0).short is short


def test_steps_that_cannot_be_compared_are_explained():
    assert not_comparable(side(frechet()), 2 * D) is None
    assert "7 images a step are fewer than twice the 4 features of 0" in not_comparable(side(frechet()), 7)
    ratio = DensityRatioReward(images(0.0, 0))
    assert "fitted to every set anew" in not_comparable(side(ratio), N)
    assert not_comparable(side(ratio, frechet()), N) is None
