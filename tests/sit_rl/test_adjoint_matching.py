"""Adjoint matching against autograd through a tiny chain, and against a Gaussian problem whose optimum is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sit_rl.components.build import Components
from sit_rl.components.networks import NetworkSides
from sit_rl.components.real_side import RealSide
from sit_rl.config import resolve
from sit_rl.estimators.adjoint_matching import AdjointMatching, adjoint_targets
from sit_rl.estimators.base import Minibatch
from sit_rl.models.pixels import to_uint8
from sit_rl.presets import PRESETS
from sit_rl.rollout import Rollout
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.ode_and_sde_steps import ancestral_step, sample_path, sampler_step
from sit_rl.sampling.random_streams import Stream, sample_normal
from sit_rl.sampling.sampler_config import SamplerConfig, noise_draws, time_grid, trained_steps

MEMORYLESS = (SamplerConfig("sde", "ancestral", 8), SamplerConfig("sde", "euler", 8, diffusion="sbdm"))
MEAN, STD = 0.3, 0.5  # of the Gaussian data
SLOPE = torch.tensor([1.5, -0.5])  # gradient of the reward in the two dimensions of a sample


class Affine(nn.Module):
    """The exact velocity of Gaussian data, plus a trained constant for each step of the sampler."""

    predicts = "velocity"
    sample_shape, null_condition, decoder = (2, 1, 1), None, None

    def __init__(self, sampler):
        super().__init__()
        self.grid = torch.tensor(time_grid(sampler))
        self.push = nn.Parameter(torch.zeros(len(self.grid), 2, 1, 1))

    def forward(self, x, t, y):
        step = (self.grid[None] - t[:, None]).abs().argmin(1)
        t = t.view(-1, 1, 1, 1)
        variance, covariance = (t * STD) ** 2 + (1 - t) ** 2, t * STD**2 - (1 - t)
        return MEAN + covariance / variance * (x - t * MEAN) + self.push[step]


def paths(model, sampler, n, step):
    """The random paths of n samples."""
    noise = sample_normal(0, Stream.INITIAL, step, range(n), (2, 1, 1))
    draws = sample_normal(0, Stream.SDE, step, range(n), (noise_draws(sampler), 2, 1, 1))
    with torch.no_grad():
        velocity = bind(model, torch.zeros(n, dtype=torch.long), sampler)
        return torch.stack(sample_path(velocity, noise, sampler, lambda i: draws[:, i]).states, 1)


@pytest.mark.parametrize("sampler", MEMORYLESS, ids=str)
def test_the_adjoint_is_the_gradient_through_the_chain(sampler):
    """With a nonlinear velocity and reward: autograd through all later steps, the noise held."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).requires_grad_(False)

    def velocity(x, t):
        return t * net(x.flatten(1)).view_as(x) - x

    noise, draws = torch.randn(3, 2, 1, 1), torch.randn(3, sampler.steps, 2, 1, 1)
    path = sample_path(velocity, noise, sampler, lambda i: draws[:, i])
    end = path.states[-1].requires_grad_()
    (slope,) = torch.autograd.grad((end**3).sum(), end)
    targets = adjoint_targets(velocity, torch.stack(path.states, 1).detach(), sampler, slope)
    grid = time_grid(sampler)
    for i in trained_steps(sampler):
        x = path.states[i + 1].detach().requires_grad_()
        last = x
        for j in range(i + 1, sampler.steps):
            step = sampler_step(velocity(last, grid[j]), last, j, sampler)
            last = step.sample(draws[:, j]) if step.noisy else step.mean
        (expected,) = torch.autograd.grad((last**3).sum(), x)
        step = sampler_step(velocity(path.states[i].detach(), grid[i]), path.states[i].detach(), i, sampler)
        torch.testing.assert_close(targets[:, i], step.mean + step.std**2 * expected, rtol=1e-5, atol=1e-5)


def chain_variance(sampler):
    """Variance of the base chain's samples: its steps are affine, so it follows v ← a²v + σ²."""
    model, variance = Affine(sampler).requires_grad_(False), 1.0
    for i, t in enumerate(time_grid(sampler)[:-1]):
        ends = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1)
        step = sampler_step(model(ends, torch.full((2,), t), None), ends, i, sampler)
        variance = float(step.mean[1, 0] - step.mean[0, 0]) ** 2 * variance + step.std**2
    return variance


@pytest.mark.parametrize("sampler", MEMORYLESS, ids=str)
def test_a_linear_reward_shifts_gaussian_data_to_its_known_optimum(sampler):
    """N(m, s²)·exp(g·x) is N(m + s²·g, s²): the mean moves by the variance times the slope, the variance stays.

    A memoryless chain's first state is all noise, so that its samples are tilted exactly, with the chain's own s².
    Means of 2,000 samples from the same noise differ by 1e-4 of rounding and of what is left of the optimisation.
    """
    config = resolve(
        PRESETS["smoke"][1].changed(estimator="adjoint_matching", rollout_adjoint=sampler, adjoint_steps=7)
    )
    base, model = Affine(sampler).requires_grad_(False), Affine(sampler)
    estimator = AdjointMatching.__new__(AdjointMatching)
    estimator.config, estimator.components = config, SimpleNamespace(model=base)
    n, labels = 32, torch.zeros(32, dtype=torch.long)
    slope = SLOPE.view(1, 2, 1, 1).expand(n, 2, 1, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=25, line_search_fn="strong_wolfe")
    states = paths(model, sampler, n, 1)
    estimator.targets = adjoint_targets(bind(base, labels, sampler), states, sampler, slope)
    rollout = Rollout(range(n), labels, states[:, -1], None, None, states)

    def loss():
        optimizer.zero_grad()
        batch = Minibatch(torch.arange(n), list(range(n)), None, draw=0)
        total = sum(loss.mean() for loss, _ in estimator.losses(model, rollout, batch))
        total.backward()
        return total

    optimizer.step(loss)
    before, after = (paths(each, sampler, 2_000, 2)[:, -1].flatten(1) for each in (base, model))
    # the last step has no noise and is not trained; the push before it is carried on by its slope
    torch.testing.assert_close(after.mean(0) - before.mean(0), chain_variance(sampler) * SLOPE, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(after.std(0), before.std(0), rtol=1e-3, atol=1e-4)


def test_the_ancestral_step_keeps_the_path_and_forgets_the_first_noise():
    """For a known data point a step from the path's law at t ends in its law at s; from t = 0 nothing of x is left."""
    data, (t, s) = 0.7, (0.4, 0.55)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    step = ancestral_step((data - x) / (1 - t), x, t, s)
    slope = float(step.mean[1] - step.mean[0])
    assert float(step.mean[0]) + slope * t * data == pytest.approx(s * data)
    assert slope**2 * (1 - t) ** 2 + step.std**2 == pytest.approx((1 - s) ** 2)
    first = ancestral_step(data - x, x, 0.0, s)
    assert float(first.mean[1]) == pytest.approx(float(first.mean[0])) and first.std == pytest.approx(1 - s)


def test_every_noisy_step_is_trained_in_turn():
    config = resolve(PRESETS["smoke"][1].changed(rollout_adjoint=SamplerConfig("sde", "ancestral", 18)))
    estimator = AdjointMatching.__new__(AdjointMatching)
    estimator.config = config
    chosen = [estimator.chosen_steps(draw) for draw in range(20)]
    assert {len(some) for some in chosen} == {estimator.terms(0)} == {5}
    assert {i for some in chosen for i in some} == set(range(17))


def test_a_memoryless_sampler_is_asked_for():
    with pytest.raises(ValueError, match="--rollout-adjoint is SDE euler, 8 steps, whose samples depend on the noise"):
        resolve(PRESETS["smoke"][1].changed(rollout_adjoint=SamplerConfig("sde", "euler", 8))).check()


def test_a_network_without_gradient_is_named():
    class Rounded:
        """Resizes with something that leaves torch."""

        name, dim, preprocessing = "rounded", 1, "by NumPy"

        def with_gradient(self, pixels):
            raise ValueError("rounded passes no gradient on to its images; its input is: by NumPy")

    config = resolve(PRESETS["smoke"][1].changed(estimator="adjoint_matching"))
    model = Affine(config.rollout.adjoint_sampler)
    side = RealSide(None, None)
    sides = (NetworkSides(Rounded(), True, side, side),)
    parts = Components(model, to_uint8, sides, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="--estimator adjoint_matching: rounded passes no gradient"):
        AdjointMatching(config, parts)
