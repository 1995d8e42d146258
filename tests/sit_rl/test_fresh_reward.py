"""The leave-one-out reward against distances computed from scratch, and runs on it."""

import json

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, FrechetReward, KernelReward
from sit_rl.config import Config
from sit_rl.models.conditions import Conditions
from sit_rl.reward.components import Component, RewardSide
from sit_rl.reward.fresh_reward import FreshReward
from sit_rl.runs.forecast import step_evaluations
from sit_rl.train import main
from tests.support import oracles
from tests.support.tiny_runs import STEPS, completed, final, lines

D, B, M, CLASSES = 6, 5, 8, 3


def setup(step=4, **changes):
    rng = np.random.default_rng(0)
    real, new = rng.standard_normal((400, D)) * np.arange(1, D + 1), 2 * rng.standard_normal((B, M, D)) + 0.3
    config = Config.of(preset="smoke", replace=M, candidates=B, minibatch=10, reference="fresh").changed(**changes)
    moments = FeatureMoments.from_features(torch.from_numpy(real))
    side = RewardSide((
        Component("fd", 1.0, slice(None), FrechetReward(moments, dtype=torch.float64)),
        Component("kid", 1.0, slice(1, 4), KernelReward(real[:, 1:4])),
    ))  # fmt: skip
    reward = FreshReward(config.reward, config.seed, side, step, Conditions.numbered(CLASSES))
    return reward, real, torch.from_numpy(new)


def test_an_image_is_worth_what_the_distance_gains_without_it():
    reward, real, new = setup()
    rows = reward.propose(4)
    scores = reward.score(rows, new)
    images = new.flatten(0, 1).numpy()
    before = oracles.distance_of_samples(real, images)
    assert reward.reference_fd == pytest.approx(before, rel=1e-9)
    expected = [oracles.distance_of_samples(real, np.delete(images, i, 0)) - before for i in range(B * M)]
    np.testing.assert_allclose(scores.image, expected, rtol=1e-6, atol=1e-8)
    # the second component reads its own columns
    kid = KernelReward(real[:, 1:4]).prepare(images[:, 1:4])
    np.testing.assert_allclose(scores.credits[1].image, kid.leave_one_out(), rtol=1e-9)


def test_a_subset_is_worth_what_the_distance_gains_without_it():
    reward, real, new = setup(credit="subset")
    scores = reward.score(reward.propose(4), new)
    images, before = new.numpy(), oracles.distance_of_samples(real, new.flatten(0, 1).numpy())
    without = [oracles.distance_of_samples(real, np.delete(images, b, 0).reshape(-1, D)) for b in range(B)]
    np.testing.assert_allclose(scores.subset + before, np.array(without) - before, rtol=1e-6, atol=1e-7)
    assert torch.equal(scores.image.view(B, M), scores.subset[:, None].expand(B, M))


def test_influence_is_the_first_order_of_leaving_out():
    (exact, _, new), (first, _, _) = (setup(credit=credit) for credit in ("image", "influence"))
    first.side = RewardSide(first.side.components[:1])  # the first order is known for FD only
    a, b = (reward.score(reward.propose(4), new).image for reward in (exact, first))
    assert np.corrcoef(a, b)[0, 1] > 0.9


def test_labels_cycle_through_the_classes_over_the_steps():
    count = torch.zeros(CLASSES, dtype=torch.long)
    for step in range(CLASSES):
        reward = setup(step)[0]
        rows = reward.propose(step)
        assert sorted(rows.flatten().tolist()) == list(range(B * M))
        count += torch.bincount(reward.labels_of(rows, step), minlength=CLASSES)
    assert count.tolist() == [B * M] * CLASSES
    assert not torch.equal(setup(0)[0].propose(0), setup(0)[0].propose(1))


def test_it_needs_more_than_one_subset():
    with pytest.raises(ValueError, match="--candidates 1 × --replace 8 leave fewer than 2 of them"):
        Config.of(reference="fresh", candidates=1, replace=8).check()
    Config.of(reference="fresh", reference_size=1, candidates=2, replace=50, normalise="batch").check()


def test_no_reference_set_is_generated():
    config = Config.of(reference="fresh", updates=1, minibatch=10, keep="all")
    assert [step_evaluations(config, step)["refresh"] for step in range(3)] == [0, 0, 0]


# --- runs ------------------------------------------------------------------------------------------------------------

FLAGS = ("--reference", "fresh", "--reward", "fd", "kid", "density_ratio")


@pytest.fixture(scope="module")
def whole(forked, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = completed(forked, command(folder, *FLAGS))
    assert "of 20 images each left out" in result["out"]
    return folder


def test_it_makes_the_images_of_its_steps_only(whole):
    assert json.loads((whole / "summary.json").read_text())["images_generated"] == STEPS * 20
    assert not any(name.startswith("reference.") for name in final(whole)[0])
    assert all(record["reference_fd"] > 0 for record in lines(whole))


def test_killed_it_ends_bit_for_bit_the_same(forked, command, whole, tmp_path):
    third = str(tmp_path / "run" / "checkpoints" / "step-000003")
    (result,) = forked.run({"argv": command(tmp_path / "run", *FLAGS), "when": third, "signal": "KILL"})
    assert result["code"] == -9
    result = completed(forked, command(tmp_path / "run", *FLAGS))
    a, b = final(tmp_path / "run")[0], final(whole)[0]
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert lines(tmp_path / "run") == lines(whole)


def test_two_ranks_have_the_rewards_of_one(forked, command, whole, tmp_path):
    for result in forked.ranks(2, command(tmp_path / "run", *FLAGS)):
        assert result["code"] == 0, result["out"]
    for key in ("components", "correlations", "subset_rewards", "reference_fd"):
        assert lines(tmp_path / "run")[0][key] == lines(whole)[0][key]


def test_with_a_path_and_subset_credit(command, tmp_path, capsys):
    flags = ("--estimator", "sde_policy_gradient", "--credit", "subset", "--normalise", "batch", "--steps", 2)
    main(command(tmp_path / "run", "--reference", "fresh", *flags, "--evaluate-every", 0))
    assert len(lines(tmp_path / "run")) == 2
