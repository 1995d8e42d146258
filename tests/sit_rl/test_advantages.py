"""Advantages are standardised rewards; selection takes the best over everything."""

import json
from types import SimpleNamespace

import pytest
import torch

from sit_rl.config_groups import RewardOptions
from sit_rl.reward.advantages import advantages, select
from sit_rl.reward.swap_reward import Scores
from sit_rl.training.loop import describe, fade


def test_batch_advantages_are_standard_scores():
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    a = advantages(rewards, torch.zeros(4, dtype=torch.long), "batch", 10.0)
    torch.testing.assert_close(a, (rewards - rewards.mean()) / rewards.std())


def test_class_advantages_ignore_the_level_of_a_class():
    torch.manual_seed(0)
    rewards, labels = torch.randn(60, dtype=torch.float64), torch.arange(60) % 3
    shifted = rewards + torch.tensor([0.0, 50.0, -7.0])[labels]
    torch.testing.assert_close(advantages(rewards, labels, "class", 9.0), advantages(shifted, labels, "class", 9.0))
    for c in range(3):
        part = advantages(shifted, labels, "class", 9.0)[labels == c]
        assert abs(float(part.mean())) < 1e-12 and float(part.std()) == pytest.approx(1)


def test_clip_and_lonely_class():
    rewards = torch.tensor([0.0] * 20 + [100.0, 3.0], dtype=torch.float64)
    labels = torch.tensor([0] * 21 + [1])
    a = advantages(rewards, labels, "class", 3.0)
    assert float(a.max()) == 3.0 and float(a[-1]) == 0.0


def test_useless_rewards_stop_the_run():
    with pytest.raises(ValueError, match="all 5 rewards equal 2"):
        advantages(torch.full((5,), 2.0), torch.zeros(5), "batch", 3.0)
    with pytest.raises(ValueError, match="2 of 3 rewards are NaN"):
        advantages(torch.tensor([1.0, float("nan"), float("inf")]), torch.zeros(3), "batch", 3.0)


def test_selection_is_global_and_stable():
    a = torch.tensor([0.1, 5.0, -1.0, 4.0, 4.0, 0.0, 4.0, -2.0])
    assert select(a, 0.25).tolist() == [1, 3]
    assert select(a, 0.5).tolist() == [1, 3, 4, 6]
    assert select(a, 1.0).tolist() == list(range(8))
    assert select(a, 0.01).tolist() == [1]


def test_advantages_fade_with_the_spread_of_rewards():
    state = SimpleNamespace(first_reward_std=None)
    # the first step sets the scale; a wider spread later does not push harder
    assert [fade(RewardOptions(), state, std) for std in (0.2, 0.1, 0.4)] == [1.0, 0.5, 1.0]
    assert fade(RewardOptions(fade=False), state, 0.1) == 1.0


def test_one_candidate_has_no_spread_and_its_line_stays_json():
    scores = Scores(torch.tensor([-0.9], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64))
    record = describe(1.0, scores, torch.tensor([1.0, -1.0]), torch.arange(2))
    assert record["subset_reward_std"] is None and json.loads(json.dumps(record, allow_nan=False)) == record
