"""Each estimator moves probability the right way, and refuses to learn from a policy it does not share."""

import math

import pytest
import torch

from sit_rl.components.build import Components
from sit_rl.components.image_sets import ImageSet
from sit_rl.components.networks import NetworkSides
from sit_rl.components.real_side import RealSide
from sit_rl.config import Config, resolve
from sit_rl.estimators import ESTIMATORS, build_estimator
from sit_rl.estimators.base import Minibatch, accumulate, update
from sit_rl.estimators.matching import matching_points
from sit_rl.estimators.sde_policy_gradient import RATIO_TOLERANCE
from sit_rl.learner.learner import Learner
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.rollout import generate
from sit_rl.sampling.random_streams import Stream
from sit_rl.sampling.sampler_config import SamplerConfig

SHAPE = SiTConfig(image_size=4, patch_size=2, channels=1, width=16, depth=1, heads=2, num_classes=2, learn_sigma=False)
LABELS = torch.arange(40) % 2


class Brightness:
    """A two-number feature: mean and spread of an image."""

    name, dim = "brightness", 2

    def __call__(self, images):
        x = images.float().flatten(1) / 127.5 - 1
        return torch.stack([x.mean(1), x.std(1)], dim=1)


@pytest.fixture
def components():
    torch.manual_seed(0)
    model = SiT(SHAPE)
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.3 * torch.randn_like(p)
    side = RealSide(None, None)
    real = ImageSet(torch.full((64, 1, 4, 4), 255, dtype=torch.uint8), torch.arange(64) % 2)
    to_images = lambda x: (127.5 * x + 128).clamp(0, 255).to(torch.uint8)  # noqa: E731
    net = Brightness()
    model.requires_grad_(False)
    return Components(model, to_images, (NetworkSides(net, True, side, side),), real, torch.device("cpu"))


def small(estimator, **changes):
    base = PRESETS["smoke"][1].changed(estimator=estimator, minibatch=20, updates=4, lr=3e-3, anchor=0.1)
    return resolve(base.changed(**changes))


def roll(components, model, estimator, step=0):
    (made,) = generate(
        components, model, LABELS, [estimator.sampler(step)], seed=0, step=step, batch=20,
        keep_path=estimator.keeps_path,
    )  # fmt: skip
    return made


def train(components, estimator, steps=12):
    """Reward brightness; returns mean brightness before and after, with one fixed noise."""
    learner, levels = Learner(components.model, estimator.config), []
    for step in range(steps + 1):
        (evaluation,) = generate(
            components,
            learner.sampler(),
            LABELS,
            [SamplerConfig("ode", "heun", 4)],
            seed=9,
            step=0,
            batch=20,
            initial=Stream.EVALUATE,
        )
        levels.append(float(evaluation.samples.mean()))
        rollout = roll(components, learner.sampler(), estimator, step) if estimator.rolls_out else None
        reward = torch.zeros(40) if rollout is None else rollout.samples.flatten(1).mean(1).double()
        advantage = (reward - reward.mean()) / reward.std().clamp(min=1e-6)
        kept = torch.arange(40) if estimator.config.reward.kept_fraction == 1 else advantage.argsort()[-10:]
        update(estimator, learner, rollout, advantage.clamp(-3, 3), kept, step)
    return levels[0], levels[-1]


# adjoint_matching and merging have toy problems of their own
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"adjoint_matching", "merging"}))
def test_reward_goes_up(components, name):
    """The control sees only white images, so it too must get brighter."""
    config = small(name, keep=0.25 if name == "rejection" else None)
    before, after = train(components, build_estimator(config, components))
    assert after > before + 0.05


def test_ratio_is_one_before_the_first_update(components):
    estimator = build_estimator(small("sde_policy_gradient"), components)
    rollout = roll(components, components.model, estimator)
    batch = Minibatch(torch.arange(40), list(range(40)), torch.ones(40), draw=0)
    terms = list(estimator.losses(components.model, rollout, batch))
    assert len(terms) == estimator.terms(0) == estimator.sampler(0).steps - 1
    for _, statistics in terms:
        ratio = statistics["ratio"] * len(terms)
        assert float((ratio - 1).abs().max()) < RATIO_TOLERANCE["float32"]
        assert not statistics["clipped"].any()


def test_another_policy_stops_the_first_update(components):
    estimator = build_estimator(small("sde_policy_gradient"), components)
    rollout = roll(components, components.model, estimator)
    other = SiT(SHAPE).requires_grad_(False)
    batch = Minibatch(torch.arange(40), list(range(40)), torch.ones(40), draw=0)
    with pytest.raises(FloatingPointError, match="ratio departs from 1"):
        list(estimator.losses(other, rollout, batch))


def test_clip_acts_and_depends_on_the_dimension(components):
    estimator = build_estimator(small("sde_policy_gradient", clip_range=1e-4), components)
    assert estimator.clip == pytest.approx(1e-4 * math.sqrt(4096 / 16))
    rollout = roll(components, components.model, estimator)
    moved = SiT(SHAPE)
    moved.load_state_dict(components.model.state_dict())
    with torch.no_grad():
        for p in moved.final_layer.parameters():
            p.add_(0.05)
    batch = Minibatch(torch.arange(40), list(range(40)), torch.ones(40), draw=1)
    clipped = sum(float(s["clipped"].mean()) for _, s in estimator.losses(moved, rollout, batch))
    assert clipped > 0.5


def test_matching_points_belong_to_samples(components):
    samples = torch.randn(6, 1, 4, 4)
    t, x, u = matching_points(samples, [5, 9, 2, 7, 1, 0], seed=3, draw=4)
    t2, x2, u2 = matching_points(samples[[2, 0]], [2, 5], seed=3, draw=4)
    assert torch.equal(t[[2, 0]], t2) and torch.equal(x[[2, 0]], x2) and torch.equal(u[[2, 0]], u2)
    # successive draws of one sample cover [0, 1) evenly: no gap above the golden sequence's bound 2/n
    times = sorted(float(matching_points(samples[:1], [5], 3, d)[0]) for d in range(20))
    gaps = [b - a for a, b in zip(times[:-1], times[1:], strict=True)]
    assert max(gaps) < 2 / 20


@pytest.mark.parametrize("name", ["advantage_matching", "rejection", "sde_policy_gradient"])
def test_a_rank_without_samples_yields_the_same_terms(components, name):
    """Ranks sum their statistics; one that stayed silent would leave the others waiting."""
    estimator = build_estimator(small(name), components)
    model = SiT(SHAPE)
    rollout = roll(components, components.model, estimator)
    some = Minibatch(torch.arange(4), list(range(4)), torch.ones(4), draw=1)
    none = Minibatch(torch.arange(0), [], torch.ones(0), draw=1)
    terms = list(estimator.losses(model, rollout, some)), list(estimator.losses(model, rollout, none))
    assert [list(s) for _, s in terms[0]] == [list(s) for _, s in terms[1]]
    for loss, _ in terms[1]:
        loss.sum().backward()


def test_anchor_keeps_the_velocity_near_the_base(components):
    drifts = []
    for anchor in (0.0, 10.0):
        estimator = build_estimator(small("advantage_matching", anchor=anchor), components)
        learner = Learner(components.model, estimator.config)
        for step in range(6):
            rollout = roll(components, learner.sampler(), estimator, step)
            advantage = torch.linspace(-2, 2, 40, dtype=torch.float64)
            record = update(estimator, learner, rollout, advantage, torch.arange(40), step)
        drifts.append(record["drift"])
    assert drifts[1] < drifts[0] / 2


def test_nan_gradient_leaves_the_weights_alone(components):
    estimator = build_estimator(small("advantage_matching"), components)
    learner = Learner(components.model, estimator.config)
    rollout = roll(components, learner.sampler(), estimator)
    rollout.samples[3] = float("nan")
    advantage = torch.ones(40, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="gradient's norm is nan, first in .*, in update 0 of step 0"):
        update(estimator, learner, rollout, advantage, torch.tensor([3]), 0)
    for a, b in zip(learner.module.parameters(), components.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_labels_out_of_range_are_named(components):
    with pytest.raises(ValueError, match="label 2 is out of range: the model's classes are numbered 0 to 1"):
        generate(components, components.model, torch.tensor([0, 2]), [SamplerConfig()], seed=0, step=0, batch=2)


def test_micro_batches_give_the_gradient_of_the_whole(components):
    """Sums of 20 images in another order, each rounded to 6e-8 of its size; with cancellation 1e-5 of the largest."""
    gradients = []
    for size in (0, 7):
        for name in ("advantage_matching", "sde_policy_gradient", "pretraining"):
            estimator = build_estimator(small(name, micro_batch=size), components)
            learner = Learner(components.model, estimator.config)
            rollout = roll(components, learner.sampler(), estimator) if estimator.rolls_out else None
            advantage = torch.linspace(-2, 2, 40, dtype=torch.float64)
            indices = next(iter(estimator.minibatches(torch.arange(40), 0)))
            record = accumulate(estimator, learner, rollout, advantage, indices, draw=0)
            gradients.append((record["loss"], torch.cat([p.grad.flatten() for p in learner.parameters])))
    for (loss, whole), (loss_in_parts, parts) in zip(gradients[:3], gradients[3:], strict=True):
        assert loss_in_parts == pytest.approx(loss, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def test_a_window_slides_with_the_steps_and_trains_its_own_terms(components):
    sampler = SamplerConfig("sde", "euler", 6, window=2)
    estimator = build_estimator(small("sde_policy_gradient", rollout_sde=sampler, lr=1e-5), components)
    assert (estimator.sampler(0).window_start, estimator.sampler(25).window_start, estimator.terms(25)) == (0, 1, 2)
    learner = Learner(components.model, estimator.config)
    rollout = roll(components, learner.sampler(), estimator, step=25)
    advantage = torch.linspace(-2, 2, 40, dtype=torch.float64)
    record = update(estimator, learner, rollout, advantage, torch.arange(40), 25)
    assert record["ratio"] == pytest.approx(1, abs=0.1) and record["kl"] > 0


def test_control_spends_the_same_evaluations(components):
    config = resolve(Config.of(estimator="pretraining"))
    updates = build_estimator(config, components).updates
    spent = (
        config.reward.images_per_step * config.rollout.sampler.evaluations()
        + config.update.updates * config.update.minibatch * 4
    )
    assert updates * 3 * config.update.minibatch == pytest.approx(spent, rel=0.02)


def test_control_with_fewer_real_images_than_a_minibatch_takes_them_all(components):
    estimator = build_estimator(small("pretraining", minibatch=100), components)
    for rows in estimator.minibatches(torch.arange(0), 0):
        assert sorted(rows) == list(range(len(components.real_images)))
