"""The slope of an image's advantage, against differences of its exact credit."""

import pytest
import torch

from fastfid import FeatureMoments, FrechetReward, KernelReward
from fastfid.rewards.per_image import ScoreReward
from sit_rl.reward.components import Component
from sit_rl.reward.mix import Part
from sit_rl.reward.slopes import advantage_slopes

N, D = 60, 3
LABELS = torch.arange(N) % 2
STEP = 1e-3  # of a difference: the engine's error of 6e-9 of a credit, divided by it, stays below 1e-5


def rows(width):
    return torch.randn(N, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def components():
    real = torch.randn(200, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rewards = FrechetReward(FeatureMoments.from_features(real)), KernelReward(real, dtype=torch.float64)
    return [Component(str(i), 1.0, slice(i * D, (i + 1) * D), reward) for i, reward in enumerate(rewards)]


def credit(component, x):
    """What leaving each image out loses."""
    return component.reward.prepare(x[:, component.columns], LABELS).leave_one_out()


@pytest.mark.parametrize("how", ["batch", "class"])
def test_a_slope_is_the_derivative_of_the_images_own_advantage(how):
    """The group's standard deviation and the fade are held."""
    chosen, x = components(), rows(2 * D)
    parts = [Part("0", credit(chosen[0], x), 1.0, 0.5), Part("1", credit(chosen[1], x), 3.0, 1.0)]
    sets = [c.reward.prepare(x[:, c.columns], LABELS) for c in chosen]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    ordered = [Part(p.name, p.credit[order], p.weight, p.fade) for p in parts]
    slopes = advantage_slopes(chosen, sets, ordered, order, LABELS[order], how, 2 * D)
    assert slopes.shape == (N, 2 * D) and slopes.dtype == torch.float32
    place = 7
    image = int(order[place])
    group = torch.ones(N, dtype=torch.bool) if how == "batch" else LABELS == LABELS[image]
    for column in range(2 * D):
        ends = []
        for step in (STEP, -STEP):
            moved = x.clone()
            moved[image, column] += step
            ends.append(
                sum(
                    part.weight / 4 * part.fade * credit(c, moved)[image] / part.credit[group].std()
                    for c, part in zip(chosen, parts, strict=True)
                )
            )
        difference = float(ends[0] - ends[1]) / (2 * STEP)
        assert float(slopes[place, column]) == pytest.approx(difference, rel=1e-3, abs=3e-5)


def test_a_component_without_a_gradient_is_named():
    component = Component("python:f", 1.0, slice(0, 1), ScoreReward("python:f"))
    prepared = component.reward.prepare(rows(1), LABELS)
    with pytest.raises(ValueError, match="reward component python:f: it has no gradient"):
        advantage_slopes([component], [prepared], [Part("f", rows(1)[:, 0])], torch.arange(N), LABELS, "batch", 1)
