"""Solvers against closed forms: for Gaussian data the velocity field is known, so every distribution is too."""

import math

import pytest
import torch

from sit_rl.interpolant import interpolate, predicted_data, score, target_velocity
from sit_rl.noise import Stream, sample_normal
from sit_rl.samplers import (
    LAST_STEP,
    SamplerConfig,
    Transition,
    diffusion_coefficient,
    sample,
    sample_sde,
    time_grid,
    transition,
)

MEAN, STD = 0.3, 0.5  # of the Gaussian data


def gaussian_velocity(x, t):
    """E[x₁ − ε | x_t = x] for x₁ ~ N(MEAN, STD²): linear regression of u on x_t."""
    variance = (t * STD) ** 2 + (1 - t) ** 2
    covariance = t * STD**2 - (1 - t)
    return MEAN + covariance / variance * (x - t * MEAN)


def noise(n=20_000, dims=1):
    return torch.from_numpy(sample_normal(0, Stream.INITIAL, 0, [0], (n, dims, 1, 1)).numpy()[0])


def step_noise(like):
    return lambda i: sample_normal(0, Stream.SDE, i, [1], tuple(like.shape))[0]


def final_moments(config, n=20_000):
    x = noise(n)
    out = sample(gaussian_velocity, x, config, step_noise(x))
    return float(out.mean()), float(out.std())


# 20,000 samples: the standard errors of mean and std are 0.0035 and 0.0025; four of each.
@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig("ode", "heun", 20),
        SamplerConfig("ode", "euler", 200),
        SamplerConfig("ode", "dopri5"),
        SamplerConfig("ode", "adams", 20, power=1.5),
        SamplerConfig("sde", "adams", 40, power=1.5),
        SamplerConfig("sde", "euler", 250),
        SamplerConfig("sde", "euler", 400, diffusion="flow_grpo"),
    ],
    ids=str,
)
def test_every_sampler_ends_at_the_data_distribution(config):
    mean, std = final_moments(config)
    assert abs(mean - MEAN) < 0.014
    # A last interval of 0.04 replaces the sample by its mean there, which shrinks the spread a little.
    slack = 0.01 if time_grid(config)[-2] != pytest.approx(1 - LAST_STEP) else 0.02
    assert abs(std - STD) < slack


def test_sde_states_have_the_marginals_of_the_path():
    """For a known data point (v = (x₁ − x)/(1 − t)) the state at t is t·x₁ + (1−t)·ε in law."""
    data, n = 0.7, 50_000
    x = noise(n)
    config = SamplerConfig("sde", "euler", 400)
    path, grid = sample_sde(lambda x, t: (data - x) / (1 - t), x, config, step_noise(x)), time_grid(config)
    for i in (100, 200, 300):
        t, state = grid[i], path.states[i]
        # four standard errors, plus Euler's own first-order error, which 400 steps bring below 1%
        assert abs(float(state.mean()) - t * data) < 4 * (1 - t) / math.sqrt(n) + 0.01
        assert abs(float(state.std()) / (1 - t) - 1) < 4 / math.sqrt(2 * n) + 0.01


def spread_error(kind, method, steps, power=1.0):
    """|std − that of a 20 times finer Adams grid| at the end, from 200,000 samples."""
    fine = SamplerConfig(kind, "adams", 20 * steps, power)
    return abs(final_moments(SamplerConfig(kind, method, steps, power), 200_000)[1] - final_moments(fine, 200_000)[1])


def test_adams_beats_euler_at_equal_evaluations():
    for kind, steps in (("ode", 16), ("sde", 32)):
        assert spread_error(kind, "adams", steps, 1.5) < spread_error(kind, "euler", steps, 1.5) / 2


def test_adams_ode_is_of_second_order():
    """Halving the step quarters the error; a first-order scheme would halve it."""
    x, fine = noise(1000), SamplerConfig("ode", "adams", 1281)
    truth = sample(gaussian_velocity, x, fine)
    error = [(sample(gaussian_velocity, x, SamplerConfig("ode", "adams", n + 1)) - truth).abs().max() for n in (40, 80)]
    assert 3 < error[0] / error[1] < 5


def test_adams_on_a_known_data_point_ends_there():
    """v = (x₁ − x)/(1 − t) is constant along a path: any number of steps is exact."""
    out = sample(lambda x, t: (0.7 - x) / (1 - t), noise(100), SamplerConfig("ode", "adams", 3, power=2.0))
    torch.testing.assert_close(out, torch.full_like(out, 0.7))


def test_warped_grid_shortens_the_steps_near_the_data():
    grid = time_grid(SamplerConfig("sde", "adams", 12, power=2.0))
    steps = [b - a for a, b in zip(grid[:-2], grid[1:-1], strict=True)]
    assert len(grid) == 13 and all(b < a for a, b in zip(steps[:-1], steps[1:], strict=True))
    assert grid[-2] == pytest.approx(1 - LAST_STEP)


def test_euler_step_is_the_published_formula():
    config = SamplerConfig("sde", "euler", 50, diffusion="flow_grpo")
    grid = time_grid(config)
    x, v, i = torch.tensor([[0.2]]), torch.tensor([[1.3]]), 20
    t, h = grid[i], grid[i + 1] - grid[i]
    w = 0.7**2 * (1 - t) / (2 * t)
    step = transition(v, x, i, config)
    torch.testing.assert_close(step.mean, x + h * (v + w * (t * v - x) / (1 - t)))
    assert step.std == pytest.approx(math.sqrt(2 * w * h))


def test_grids_begin_at_noise_and_end_at_data():
    assert time_grid(SamplerConfig("ode", "heun", 4)) == [0, 0.25, 0.5, 0.75, 1]
    grid = time_grid(SamplerConfig("sde", "euler", 250))
    assert len(grid) == 251 and grid[249] == pytest.approx(1 - LAST_STEP) and grid[-1] == 1


def test_flow_grpo_diffusion_is_finite_at_the_start():
    config = SamplerConfig("sde", "euler", 10, diffusion="flow_grpo")
    grid = time_grid(config)
    assert diffusion_coefficient(0.0, grid, config) == diffusion_coefficient(grid[1], grid, config)


def test_log_prob_is_the_mean_over_dimensions_of_a_normal_density():
    torch.manual_seed(0)
    mean, x = torch.randn(5, 2, 3, 3), torch.randn(5, 2, 3, 3)
    expected = torch.distributions.Normal(mean.double(), 0.3).log_prob(x.double()).flatten(1).mean(1)
    got = Transition(mean, 0.3).log_prob(x)
    # float32 squares of numbers up to ~10, averaged over 18 terms
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == torch.float32


def test_path_log_prob_matches_its_transitions():
    x = noise(64)
    config = SamplerConfig("sde", "euler", 5)
    path = sample_sde(gaussian_velocity, x, config, step_noise(x))
    assert len(path.log_prob) == 4 and len(path.states) == 6
    grid = time_grid(config)
    for i, logp in enumerate(path.log_prob):
        again = transition(gaussian_velocity(path.states[i], grid[i]), path.states[i], i, config)
        torch.testing.assert_close(again.log_prob(path.states[i + 1]), logp, rtol=0, atol=0)


def test_last_step_has_no_log_probability():
    with pytest.raises(ValueError, match="noiseless step"):
        Transition(torch.zeros(1, 1), 0.0).log_prob(torch.zeros(1, 1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(kind="pde"), "choose 'ode' or 'sde'"),
        (dict(kind="ode", method="rk4"), "choose one of euler, heun, dopri5, adams"),
        (dict(kind="sde", method="dopri5"), "choose one of euler, adams"),
        (dict(kind="sde", method="adams", diffusion="flow_grpo"), "use 'euler'"),
        (dict(power=0.5), "power is 0.5"),
        (dict(kind="sde", method="euler", diffusion="linear"), "choose one of sigma, flow_grpo"),
        (dict(steps=0), "at least 1"),
    ],
)
def test_impossible_samplers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**arguments)


def test_sde_needs_noise():
    with pytest.raises(ValueError, match="step_noise"):
        sample(gaussian_velocity, noise(4), SamplerConfig("sde", "euler", 4))


def test_interpolant_identities():
    torch.manual_seed(0)
    data, eps, t = torch.randn(7, 2, 2), torch.randn(7, 2, 2), torch.rand(7) * 0.9
    x, v, s = interpolate(data, eps, t), target_velocity(data, eps), t.view(-1, 1, 1)
    torch.testing.assert_close(predicted_data(x, v, s), data, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(score(x, v, s), -eps / (1 - s), atol=1e-4, rtol=1e-4)
    # the sigma SDE's drift v + (1 − t)·score collapses to (1 + t)v − x
    torch.testing.assert_close(v + (1 - s) * score(x, v, s), (1 + s) * v - x, atol=1e-5, rtol=1e-5)
