"""Advantages are standardised rewards; selection takes the best over everything."""

import json
from types import SimpleNamespace

import pytest
import torch

from fastfid import DensityRatioReward, FeatureMoments, FrechetReward, KernelReward, SlicedWassersteinReward
from fastfid.rewards.per_image import ScoreReward
from sit_rl.options.reward import RewardOptions
from sit_rl.reward.advantages import advantages, group_spreads, select
from sit_rl.reward.components import Component
from sit_rl.reward.mix import Part, mix
from sit_rl.reward.swap_reward import Credits, Scores
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


@pytest.mark.parametrize("size", [2, 3, 7, 1000])
@pytest.mark.parametrize("level", [0.1, -0.3, 1e-310, 1e-200, 1e200, 1e308])
def test_a_class_of_equal_rewards_gets_exactly_nothing(size, level):
    """The mean of equal numbers is rounded, and so differs from them: 0.1 three times, for example."""
    spread = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)
    labels = torch.tensor([0] * size + [1] * 3)
    rewards = torch.cat([torch.full((size,), level, dtype=torch.float64), spread])
    a = advantages(rewards, labels, "class", 3.0)
    assert torch.equal(a[:size], torch.zeros(size, dtype=torch.float64))
    torch.testing.assert_close(a[size:], torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    for dtype in (torch.float64, torch.float32):  # equal up to the last digit, as sums in another order are
        near = torch.full((size,), 0.1, dtype=dtype)
        near[0] = torch.nextafter(near[0], torch.tensor(1.0, dtype=dtype))
        a = advantages(torch.cat([near, spread.to(dtype)]), labels, "class", 3.0)
        assert torch.equal(a[:size], torch.zeros(size, dtype=torch.float64)) and a[-1] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["polynomial", "gaussian"])
def test_equal_images_get_nothing_however_their_credits_were_rounded(kind, scale):
    """float32 kernel values of equal rows differ by their place in a product; a class of one image repeated."""
    rng = torch.Generator().manual_seed(0)
    real, rows = (torch.randn(n, 16, generator=rng) * scale for n in (400, 120))
    rows[:40] = rows[0]
    one = KernelReward(real, kind, dtype=torch.float32).prepare(rows)
    credit, labels = -one.leave_one_out(), torch.arange(120) // 40
    if scale > 1e-2:  # below, all kernel values are 1 up to rounding
        assert 0 < one.rounding < 0.02 * float(credit.std())
        assert torch.equal(advantages(credit, labels, "class", 3.0, one.rounding)[:40], torch.zeros(40).double())
        mixed = mix([Part("kernel", credit, rounding=one.rounding)], labels, "class", 3.0)
        assert not mixed.advantage[:40].any() and mixed.advantage[40:].abs().min() > 0
        assert group_spreads(credit, labels, "class", one.rounding)[:40].isinf().all()


def test_scores_that_were_float32_are_rounded_as_such():
    """A user's function returns 0.3 or its neighbour for a class of equal images."""
    scores = torch.cat([torch.full((40,), 0.3), torch.linspace(0, 1, 80)])
    scores[:20] = torch.nextafter(scores[:20], torch.tensor(1.0))
    one = ScoreReward("score").prepare(scores[:, None])
    a = advantages(one.leave_one_out(), torch.arange(120) // 40, "class", 3.0, one.rounding)
    assert not a[:40].any() and a[40:].abs().max() > 1


@pytest.mark.parametrize("kind", [FrechetReward, KernelReward, SlicedWassersteinReward, DensityRatioReward])
def test_a_class_of_one_image_gets_nothing_from_any_reward(kind):
    rng = torch.Generator().manual_seed(1)
    real, rows = (torch.randn(n, 6, generator=rng) + 50 for n in (300, 90))
    rows[60:] = rows[60]
    reward = kind(FeatureMoments.from_features(real)) if kind is FrechetReward else kind(real)
    one = reward.prepare(rows)
    a = advantages(-one.leave_one_out(), torch.arange(90) // 30, "class", 3.0, getattr(one, "rounding", 0.0))
    assert not a[60:].any() and a[:60].abs().min() > 0


def test_rewards_of_one_class_may_be_far_smaller_than_anothers():
    rewards = torch.tensor([1e9, 2e9, 3e9, 1.0, 2.0, 3.0], dtype=torch.float64)
    a = advantages(rewards, torch.tensor([0, 0, 0, 1, 1, 1]), "class", 3.0)
    assert a.tolist() == pytest.approx([-1, 0, 1] * 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bfloat16, torch.float16])
def test_rewards_of_any_number_type(dtype):
    a = advantages(torch.tensor([1, 2, 3], dtype=dtype), torch.zeros(3, dtype=torch.long), "class", 3.0)
    assert a.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("magnitude", [2.0**-1000, 2.0**-60, 2.0**60, 2.0**1000])
def test_advantages_do_not_depend_on_the_unit_of_the_rewards(magnitude):
    """Also where squares of the rewards underflow or overflow."""
    rewards, labels = torch.randn(40, dtype=torch.float64, generator=torch.manual_seed(0)), torch.arange(40) % 2
    for how in ("batch", "class"):
        assert torch.equal(advantages(rewards * magnitude, labels, how, 3.0), advantages(rewards, labels, how, 3.0))


def test_useless_rewards_stop_the_run():
    with pytest.raises(ValueError, match="all 5 rewards equal 2"):
        advantages(torch.full((5,), 2.0), torch.zeros(5), "batch", 3.0)
    for rewards in (torch.full((3,), 0.1, dtype=torch.float64), torch.full((3,), 1e200, dtype=torch.float64)):
        with pytest.raises(ValueError, match="all 3 rewards equal"):
            advantages(rewards, torch.zeros(3), "batch", 3.0)
    with pytest.raises(ValueError, match="2 of 3 rewards are NaN"):
        advantages(torch.tensor([1.0, float("nan"), float("inf")]), torch.zeros(3), "batch", 3.0)


def test_selection_is_global_and_stable():
    a = torch.tensor([0.1, 5.0, -1.0, 4.0, 4.0, 0.0, 4.0, -2.0])
    assert select(a, 0.25).tolist() == [1, 3]
    assert select(a, 0.5).tolist() == [1, 3, 4, 6]
    assert select(a, 1.0).tolist() == list(range(8))
    assert select(a, 0.01).tolist() == [1]


def test_advantages_fade_with_the_spread_of_rewards():
    state = SimpleNamespace(first_credit_std={})
    # the first step sets the scale of each component; a wider spread later does not push harder
    assert [fade(RewardOptions(), state, spread("fd", std)) for std in (0.2, 0.1, 0.4)] == [1.0, 0.5, 1.0]
    assert [fade(RewardOptions(), state, spread("kid", std)) for std in (8.0, 2.0)] == [1.0, 0.25]
    assert fade(RewardOptions(fade=False), state, spread("fd", 0.1)) == 1.0


def spread(name, std):
    """Credits of a component whose standard deviation is `std`, a power of two times that of the others."""
    return Credits(Component(name, 1.0, slice(None), None), 1.0, std * torch.tensor([0.0, 1.0, 2.0]).double())


def test_one_candidate_has_no_spread_and_its_line_stays_json():
    credits = Credits(Component("fd", 1.0, slice(None), None), 1.0, torch.tensor([0.1, 0.2], dtype=torch.float64))
    scores = Scores(torch.tensor([-0.9], dtype=torch.float64), (credits,))
    record = describe(1.0, scores, torch.tensor([1.0, -1.0]), torch.arange(2))
    assert record["subset_reward_std"] is None and json.loads(json.dumps(record, allow_nan=False)) == record
