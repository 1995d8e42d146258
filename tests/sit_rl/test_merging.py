"""Merging finds the coefficients that a reward wants, by policy gradient and by the grid that is its control."""

from types import SimpleNamespace

import pytest
import torch

from sit_rl.config import Config, resolve
from sit_rl.estimators.base import update
from sit_rl.estimators.merging import Merging
from sit_rl.learner.learner import Learner
from sit_rl.models.merging import Members, MergePolicy, simplex_grid
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.rollout import Rollout

SHAPE = SiTConfig(image_size=4, patch_size=2, channels=1, width=16, depth=1, heads=2, num_classes=2, learn_sigma=False)
SUBSETS, SIZE = 24, 2
WANTED = torch.tensor([0.6, 0.3, 0.1])  # coefficients with the best reward


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    out = [SiT(SHAPE) for _ in WANTED]
    for model in out:
        for p in model.parameters():
            p.data = torch.randn_like(p)
    return out


def learner_of(models, search="policy", steps=10, **changes):
    config = resolve(
        Config.of(
            estimator="merging", merge=("a", "b", "c"), merge_search=search, steps=steps, candidates=SUBSETS,
            replace=SIZE, lr=0.03, ema=0.9, merge_std=0.5, **changes,
        )
    )  # fmt: skip
    grid = simplex_grid(len(models), steps * SUBSETS) if search == "grid" else None
    policy = MergePolicy(Members(models[0], models), config.update.merge_std, 0, grid)
    return Learner(models[0], config, policy), Merging(config, SimpleNamespace())


def run(learner, estimator, steps):
    """Reward every subset by how near its coefficients are to WANTED."""
    images = SUBSETS * SIZE
    rollout = Rollout(range(images), torch.zeros(images), torch.zeros(images, 1), None, None)
    for step in range(steps):
        estimator.pieces(learner, step)
        subset = -(torch.softmax(estimator.z, 1) - WANTED).square().sum(1).double()
        advantage = subset.repeat_interleave(SIZE) + 0.01 * torch.randn(images, dtype=torch.float64)
        credit = estimator.credit(learner, advantage, subset, step)
        record = update(estimator, learner, rollout, credit, torch.arange(images), step)
    return record | estimator.report(learner)


def test_the_policy_learns_the_coefficients_that_the_reward_wants(models):
    torch.manual_seed(0)
    learner, estimator = learner_of(models)
    first = estimator.report(learner)["coefficients"]
    assert first == pytest.approx([1 / 3] * 3, abs=1e-6)  # the plain mean of the members
    run(learner, estimator, 60)
    distance = (learner.averages[0].module.coefficients() - WANTED).norm()
    assert distance < 0.4 * (torch.full((3,), 1 / 3) - WANTED).norm()


def test_subsets_of_equal_rewards_get_nothing(models):
    """Their means differ by rounding, which would otherwise count as much as any difference."""
    learner, estimator = learner_of(models)
    for same in (torch.tensor([0.1, 0.2]), torch.tensor([1.3, -1.3]), torch.tensor([0.1, -0.1]) * 1e6):
        advantage = same.double().repeat(SUBSETS) * (1 + 1e-15 * torch.arange(2.0 * SUBSETS, dtype=torch.float64))
        assert advantage.view(-1, SIZE).mean(1).unique().numel() > 1
        assert not estimator.credit(learner, advantage, advantage.new_zeros(SUBSETS), 0).any()
    one_better = torch.tensor([1.3, -1.3]).double().repeat(SUBSETS)
    one_better[0] += 1e-6
    assert estimator.credit(learner, one_better, one_better.new_zeros(SUBSETS), 0)[0] > 1


def test_the_grid_takes_its_best_point(models):
    learner, estimator = learner_of(models, "grid", steps=3, reference="refresh", refresh_every=3)
    grid = torch.softmax(simplex_grid(3, 3 * SUBSETS), 1)
    assert len(grid) == 66 and torch.allclose(grid.sum(1), torch.ones(66))  # tenths: C(12, 2)
    before = [p.clone() for p in learner.parameters]
    record = run(learner, estimator, 3)
    assert record["coefficients"] == pytest.approx(WANTED.tolist(), abs=1e-5)
    assert torch.allclose(learner.averages[0].module.coefficients(), WANTED, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))


def test_merged_weights_are_the_weighted_mean(models):
    merged = Members(models[0], models).merged(WANTED)
    for name, p in merged.named_parameters():
        parts = [dict(model.named_parameters())[name] for model in models]
        expected = sum(c * part.double() for c, part in zip(WANTED.double(), parts, strict=True))
        torch.testing.assert_close(p, expected.float(), rtol=1e-6, atol=1e-6)
    assert not torch.equal(next(iter(models[0].parameters())), next(iter(merged.parameters())))


def test_a_batch_is_divided_at_the_subsets(models):
    learner, estimator = learner_of(models)
    pieces = list(estimator.pieces(learner, 0)(range(3, 8)))
    assert [part for part, _ in pieces] == [range(3, 4), range(4, 6), range(6, 8)]
    expected = learner.module.members.merged(torch.softmax(estimator.z[2], 0))
    assert all(torch.equal(a, b) for a, b in zip(pieces[1][1].parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge": ()}, "--estimator merging needs --merge with two checkpoints or more, and has 0"),
        ({"merge": ("a", "b"), "candidates": 1}, "--estimator merging compares subsets; --candidates is 1"),
        ({"merge": ("a", "b"), "lora": 4}, "so --lora has no effect"),
        ({"merge": ("a", "b"), "merge_search": "grid"}, "choose --reference refresh --refresh-every 24"),
        ({"estimator": "rejection", "merge": ("a",)}, "--merge has an effect with --estimator merging only"),
    ],
)
def test_settings_that_cannot_merge_are_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(Config.of(**{"estimator": "merging"} | changes)).check()
