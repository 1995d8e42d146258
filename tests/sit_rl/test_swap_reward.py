"""The subset-replace reward against distances computed from scratch with NumPy."""

import threading

import numpy as np
import pytest
import torch

from bench import roofline
from fastfid import FrechetReward, SwapEngine
from fastfid.swap import nodes
from sit_rl.config import Config
from sit_rl.models.conditions import Conditions
from sit_rl.reward.components import Component, RewardSide
from sit_rl.reward.rolling_reference import ReferenceSet
from sit_rl.reward.solver_trial import SolverTrial
from sit_rl.reward.swap_reward import SwapReward
from tests.support.kernel_stand_ins import stand_ins
from tests.support.pretend_cuda import Account, pretended

N, D, B, M = 120, 6, 5, 8


class Moments:
    """What the reward reads of the real side."""

    def __init__(self, x):
        self.count, self.mean, self.cov = len(x), torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T))


def distance(x, y):
    """FD from scratch: eigenvalues of the product of the covariances."""
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root


def setup(**changes):
    rng = np.random.default_rng(0)
    real, reference = rng.standard_normal((400, D)) * np.arange(1, D + 1), rng.standard_normal((N, D)) * 3 + 0.5
    new = rng.standard_normal((B, M, D)) * 2
    base = Config.of(preset="smoke", reference_size=N, replace=M, candidates=B, minibatch=10)
    config = base.changed(**changes)
    conditions = Conditions.numbered(10)
    side = RewardSide((Component("fd", 1.0, slice(None), FrechetReward(Moments(real))),))
    whole = ReferenceSet(torch.from_numpy(reference), conditions.balanced(N))
    reward = SwapReward(config.reward, config.seed, side, whole, conditions)
    return reward, real, reference, torch.from_numpy(new)


@pytest.mark.parametrize("reference_kind", ["rolling", "refresh"])
def test_subset_reward_is_minus_the_distance_of_the_changed_set(reference_kind):
    reward, real, reference, new = setup(reference=reference_kind)
    removed = reward.propose(step=3)
    scores = reward.score(removed, new)
    for b in range(B):
        changed = reference.copy()
        changed[removed[b].numpy()] = new[b].numpy()
        # the engine works to tol = 1e-6 of its root term in float32 products
        assert -float(scores.subset[b]) == pytest.approx(distance(real, changed), abs=1e-4)
    assert reward.distance == pytest.approx(distance(real, reference), rel=1e-9)


def test_image_credit_is_the_swap_less_the_departure():
    reward, real, reference, new = setup(credit="image")
    removed = reward.propose(step=0)
    scores = reward.score(removed, new)
    for b, j in ((0, 0), (2, 5), (4, 7)):
        row = int(removed[b, j])
        swapped, without = reference.copy(), np.delete(reference, row, 0)
        swapped[row] = new[b, j].numpy()
        expected = -(distance(real, swapped) - distance(real, without))
        assert float(scores.image.view(B, M)[b, j]) == pytest.approx(expected, abs=1e-5)


def test_image_credit_does_not_depend_on_the_replaced_image_to_first_order():
    """Its spread is the new images': swapping which rows are replaced hardly moves the credit of an image."""
    reward, _, _, new = setup(credit="image")
    one = reward.score(reward.propose(0), new).image
    other = reward.score(reward.propose(1), new).image
    assert np.corrcoef(one, other)[0, 1] > 0.99


def test_credits_agree_in_sign_and_order():
    credits = {}
    for credit in ("image", "influence"):
        reward, _, _, new = setup(credit=credit)
        credits[credit] = reward.score(reward.propose(0), new).image
    assert np.corrcoef(credits["image"], credits["influence"])[0, 1] > 0.9
    reward, _, _, new = setup(credit="subset")
    scores = reward.score(reward.propose(0), new)
    assert torch.equal(scores.image.view(B, M), scores.subset[:, None].expand(B, M))


def test_rolling_candidates_are_the_oldest_rows_and_are_carried_out():
    reward, real, reference, new = setup(reference="rolling")
    seen = []
    for step in range(3):
        removed = reward.propose(step)
        assert sorted(removed.flatten().tolist()) == [(step * B * M + i) % N for i in range(B * M)]
        seen += removed.flatten().tolist()
        reward.roll(removed, new + step, reward.labels_of(removed, step))
    assert sorted(seen) == list(range(N))
    assert torch.equal(torch.bincount(reward.reference.labels), torch.full((10,), N // 10))
    assert reward.distance == pytest.approx(distance(real, reward.reference.features.numpy()), rel=1e-9)


def test_on_the_cpu_beside_the_device_it_is_prepared_meanwhile_and_says_the_same(monkeypatch):
    """`roll` returns before the eigendecomposition, which here waits for the test; numbers are those of the engine."""
    rewards = {device: setup(reward_device=device)[0] for device in ("auto", "cpu")}
    new, go, threads = setup()[3], threading.Event(), []

    def slow(*arguments, **options):
        threads.append(threading.current_thread())
        assert go.wait(60)
        return SwapEngine(*arguments, **options)

    for device, reward in rewards.items():
        removed = reward.propose(0)
        if device == "cpu":
            assert reward.prepared  # the first reference set's engine is ready, so only the next one is slow
            monkeypatch.setattr("fastfid.rewards.frechet.SwapEngine", slow)
        reward.roll(removed, new, reward.labels_of(removed, 0))
    assert rewards["cpu"].propose(1).shape == (B, M)  # labels and rows need no engine
    go.set()
    scores = [reward.score(reward.propose(1), new + 1) for reward in rewards.values()]
    assert torch.equal(scores[0].image, scores[1].image) and torch.equal(scores[0].subset, scores[1].subset)
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_on_a_gpu_it_is_prepared_beside_the_update_and_says_the_same(monkeypatch):
    """`roll` returns before the eigendecomposition, which waits here for the test in a thread with its own stream."""
    host, real, reference, new = setup()
    go, threads = threading.Event(), []

    def slow(*arguments, **options):
        threads.append(threading.current_thread())
        assert go.wait(60)
        return SwapEngine(*arguments, **options)

    with pretended() as cuda:
        moments = torch.from_numpy(real.mean(0)).to(cuda), torch.from_numpy(np.cov(real.T)).to(cuda)
        side = RewardSide((Component("fd", 1.0, slice(None), FrechetReward(moments)),))
        labels = host.reference.labels
        whole = ReferenceSet(torch.from_numpy(reference).to(cuda), labels)
        reward = SwapReward(host.options, host.seed, side, whole, host.conditions)
        removed = reward.propose(0)
        assert reward.prepared
        monkeypatch.setattr("fastfid.rewards.frechet.SwapEngine", slow)
        reward.roll(removed, new.to(cuda), reward.labels_of(removed, 0))
        assert reward.propose(1).shape == (B, M)
        go.set()
        found = reward.score(reward.propose(1), new.to(cuda) + 1).image.cpu()
    host.roll(removed, new, host.labels_of(removed, 0))
    torch.testing.assert_close(found, host.score(host.propose(1), new + 1).image, rtol=0, atol=1e-4)
    assert threads[0] is not threading.main_thread()


class Run:
    """Rolling steps of a reward on the pretended device, whose solvers take given seconds of a clock of their own."""

    def __init__(self, cuda, monkeypatch, seconds, **changes):
        host, real, rows, new = setup(**changes)
        self.new, self.solvers, self.said, self.now = new.to(cuda), [], [], 0.0

        def engine(*arguments, eigensolver):
            self.solvers.append(eigensolver)
            self.now += seconds[eigensolver]
            return SwapEngine(*arguments, eigensolver=eigensolver)

        monkeypatch.setattr("fastfid.rewards.frechet.SwapEngine", engine)
        moments = torch.from_numpy(real.mean(0)).to(cuda), torch.from_numpy(np.cov(real.T)).to(cuda)
        side = RewardSide((Component("fd", 1.0, slice(None), FrechetReward(moments)),))
        reference = ReferenceSet(torch.from_numpy(rows).to(cuda), host.reference.labels)
        trial = SolverTrial(clock=lambda: self.now)
        self.reward = SwapReward(host.options, 0, side, reference, host.conditions, trial, self.said.append)

    def steps(self, first, last):
        """Credits of the steps first … last − 1."""
        found = []
        for i in range(first, last):
            removed = self.reward.propose(i)
            found.append(self.reward.score(removed, self.new + i).image.cpu())
            self.reward.roll(removed, self.new + i, self.reward.labels_of(removed, i))
        assert self.reward.prepared  # the last preparation is done, too
        return found


def test_the_solver_beside_which_steps_are_faster_goes_on(monkeypatch):
    """They take turns, the log tells the choice once, and the numbers are those of either."""
    seconds = {"device": 3.0, "host": 1.0}
    with pretended() as cuda:
        run = Run(cuda, monkeypatch, seconds)
        found = run.steps(0, 9)
        told = list(run.said)
        asked = Run(cuda, monkeypatch, seconds, eigensolver="device")
        expected = asked.steps(0, 3)
    assert run.solvers[:10] == [*["device", "host"] * 4, "host", "host"] and set(asked.solvers[-3:]) == {"device"}
    assert len(told) == 1 and "--eigensolver host " in told[0] and "take 1 s, and 3 s" in told[0] and not asked.said
    for a, b in zip(found, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_what_is_prepared_beside_the_update_is_all_that_scores_need(monkeypatch):
    """The weight plans, of subsets and of single images, too; kernels that compute nothing stand for Triton's.

    A step's scores launch as little as the roofline says, and the host waits once for each of the three calls.
    """
    account, threads, plan = Account(), [], nodes.weight_plan

    def watched(*arguments):
        threads.append(threading.current_thread())
        return plan(*arguments)

    monkeypatch.setattr(nodes, "weight_plan", watched)
    with pretended(account) as cuda, stand_ins():
        run = Run(cuda, monkeypatch, {"device": 1.0, "host": 1.0})
        run.new = run.new.float()
        run.steps(0, 1)
        removed = run.reward.propose(1).to(cuda)
        account.waits.clear()
        account.launches = 0
        run.reward.score(removed, run.new)
        found, waits = account.launches, list(account.waits)
    assert waits == ["tolist"] * 3 and 60 < found <= roofline.STEP_LAUNCHES
    assert len(threads) == 2 * 2 and threading.main_thread() not in threads


def test_an_engine_that_fails_in_its_thread_fails_the_step():
    reward, _, _, new = setup(reward_device="cpu")
    removed = reward.propose(0)
    reward.roll(removed, torch.full_like(new, float("nan")), reward.labels_of(removed, 0))
    with pytest.raises(ValueError, match="reference_features"):
        reward.score(reward.propose(1), new)


def test_refresh_candidates_are_random_subsets():
    reward, *_ = setup(reference="refresh")
    removed = reward.propose(0)
    assert removed.shape == (B, M) and all(len(set(row)) == M for row in removed.tolist())
    assert not torch.equal(removed, reward.propose(1)) and torch.equal(removed, reward.propose(0))
