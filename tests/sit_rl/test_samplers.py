"""Solvers against closed forms: for Gaussian data the velocity field is known, so every distribution is too."""

import math

import pytest
import torch

from sit_rl.sampling.interpolant import interpolate, predicted_data, score, target_velocity
from sit_rl.sampling.ode_and_sde_steps import sample, sample_path, sampler_step
from sit_rl.sampling.random_streams import Stream, sample_normal
from sit_rl.sampling.sampler_config import (
    DIFFUSIONS,
    LAST_STEP,
    OFFICIAL,
    SamplerConfig,
    diffusion_coefficient,
    noise_draws,
    noisy_steps,
    slide_window,
    time_grid,
)
from sit_rl.sampling.step_distribution import GaussianStep

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
        SamplerConfig("sde", "ancestral", 250),
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
    path, grid = sample_path(lambda x, t: (data - x) / (1 - t), x, config, step_noise(x)), time_grid(config)
    for i in (100, 200, 300):
        t, state = grid[i], path.states[i]
        # four standard errors, plus Euler's own first-order error, which 400 steps bring below 1%
        assert abs(float(state.mean()) - t * data) < 4 * (1 - t) / math.sqrt(n) + 0.01
        assert abs(float(state.std()) / (1 - t) - 1) < 4 / math.sqrt(2 * n) + 0.01


def chain_moments(config):
    """(t, mean, variance) of every state of an Euler SDE on the Gaussian data, without sampling error.

    Its steps are affine, x' = ax + b + σξ, so that the moments follow the recursion (am + b, a²v + σ²).
    """
    grid, mean, variance = time_grid(config), 0.0, 1.0
    out = [(0.0, mean, variance)]
    for i in range(config.steps):
        ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        step = sampler_step(gaussian_velocity(ends, grid[i]), ends, i, config)
        offset, slope = float(step.mean[0]), float(step.mean[1] - step.mean[0])
        mean, variance = slope * mean + offset, slope**2 * variance + step.std**2
        out.append((grid[i + 1], mean, variance))
    return out


def marginal_error(steps, **options):
    """Largest departure of an Euler SDE's moments from the path's t·MEAN and (t·STD)² + (1−t)², up to its last step."""
    states = chain_moments(SamplerConfig("sde", "euler", steps + 1, **options))[:-1]
    return max(max(abs(m - t * MEAN), abs(v - (t * STD) ** 2 - (1 - t) ** 2)) for t, m, v in states)


@pytest.mark.parametrize("norm", [0.5, 1.0])
@pytest.mark.parametrize("form", sorted(set(DIFFUSIONS) - {"sbdm", "flow_grpo"}))
def test_every_diffusion_form_has_the_marginals_of_the_path(form, norm):
    """At every grid point, to first order in the step: halving it halves what is left."""
    error = [marginal_error(n, diffusion=form, diffusion_norm=norm) for n in (200, 400)]
    assert error[1] < 4e-3 and 1.9 < error[0] / error[1] < 2.1


@pytest.mark.parametrize("form, norm, bound", [("sbdm", 1.0, 1e-6), ("sbdm", 0.5, 1e-4), ("flow_grpo", 1.0, 2e-3)])
def test_forms_that_are_infinite_at_the_start_forget_their_first_step(form, norm, bound):
    """The first step's w is finite by decree, so its noise is not the SDE's; with ∫w dt = c log t it fades as t^−2c.

    c is the norm, and a²/2 = 0.245 for flow_grpo, whose error therefore falls as √h only.
    """
    config = SamplerConfig("sde", "euler", 800, diffusion=form, diffusion_norm=norm, last_step="none")
    t, mean, variance = chain_moments(config)[-1]
    assert t == 1 and abs(mean - MEAN) < 1e-9 and abs(variance - STD**2) < bound


@pytest.mark.parametrize("form", DIFFUSIONS)
@pytest.mark.parametrize("last_step", ["mean", "none"])
def test_samples_have_the_moments_of_their_chain(form, last_step):
    """20 steps, far from the limit: four standard errors of 20,000 samples, s/√n of the mean and s²√(2/n) of s²."""
    n, config = 20_000, SamplerConfig("sde", "euler", 20, diffusion=form, last_step=last_step)
    _, mean, variance = chain_moments(config)[-1]
    got_mean, got_std = final_moments(config, n)
    assert abs(got_mean - mean) < 4 * math.sqrt(variance / n)
    assert abs(got_std**2 - variance) < 4 * variance * math.sqrt(2 / n)


def test_last_steps_are_the_published_formulas():
    """From t = 0.96: Mean x + h(v + w·score), Euler x + hv, Tweedie E[x₁|x], in closed form for the Gaussian data."""
    t, h = 1 - LAST_STEP, LAST_STEP
    x = torch.linspace(-1, 2, 7, dtype=torch.float64)[:, None]
    variance = (t * STD) ** 2 + h**2
    velocity, true_score = gaussian_velocity(x, t), -(x - t * MEAN) / variance
    posterior_mean = MEAN + t * STD**2 / variance * (x - t * MEAN)
    expected = {
        "mean": x + h * (velocity + 2.5 * true_score),
        "euler": x + h * velocity,
        "tweedie": posterior_mean,
    }
    for name, value in expected.items():
        config = SamplerConfig("sde", "euler", 10, diffusion="constant", diffusion_norm=2.5, last_step=name)
        step = sampler_step(velocity, x, 9, config)
        torch.testing.assert_close(step.mean, value, rtol=1e-12, atol=1e-12)
        assert not step.noisy and noisy_steps(config) == list(range(9)) and noise_draws(config) == 9
    torch.testing.assert_close(expected["euler"], expected["tweedie"])  # the same on this path
    noisy = SamplerConfig("sde", "euler", 10, last_step="none")
    assert noisy_steps(noisy) == list(range(10)) and noise_draws(noisy) == 10
    assert time_grid(noisy) == pytest.approx([i / 10 for i in range(11)])


def test_official_sde_is_the_published_loop():
    """SiT's loop restated: 249 Euler–Maruyama steps on linspace(0, 0.96, 250), then 0.04 along the SDE's drift."""
    config, x = OFFICIAL["sit-sde"], noise(50).double()
    xi = torch.from_numpy(sample_normal(0, Stream.SDE, 0, range(50), (249, 1, 1, 1)).numpy()).double()
    got = sample(gaussian_velocity, x, config, lambda i: xi[:, i])
    times = torch.linspace(0, 0.96, 250, dtype=torch.float64)
    dt = float(times[1])

    def drift(x, t):
        v, sigma = gaussian_velocity(x, t), 1 - t
        score_of_v = (t * v - x) / (sigma**2 + t * sigma)
        return v + sigma * score_of_v

    for i, t in enumerate(times[:-1].tolist()):
        x = x + drift(x, t) * dt + math.sqrt(2 * (1 - t)) * xi[:, i] * math.sqrt(dt)
    x = x + drift(x, 0.96) * 0.04
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)
    assert config.evaluations() == 250 and len(noisy_steps(config)) == 249


def test_published_diffusion_forms():
    grid, t = [0.0, 0.1, 1.0], 0.3
    expected = {
        "sigma": 2 * 0.7,
        "linear": 2 * 0.7,
        "constant": 2,
        "sbdm": 2 * (0.7**2 / 0.3 + 0.7),
        "decreasing": (2 * math.cos(0.3 * math.pi) + 1) ** 2 / 4,
        "increasing-decreasing": 2 * math.sin(0.3 * math.pi) ** 2,
        "flow_grpo": 2 * 0.49 * 0.7 / 0.6,
    }
    for form, value in expected.items():
        config = SamplerConfig("sde", "euler", 2, diffusion=form, diffusion_norm=2.0)
        assert diffusion_coefficient(t, grid, config) == pytest.approx(value)
    assert set(expected) == set(DIFFUSIONS)


def test_no_log_probability_where_a_form_vanishes():
    """sin² πt is 0 at t = 0: that step is noiseless, and paths and loss must agree on which steps count."""
    config = SamplerConfig("sde", "euler", 6, diffusion="increasing-decreasing")
    x = noise(8)
    path = sample_path(gaussian_velocity, x, config, step_noise(x))
    assert noisy_steps(config) == [1, 2, 3, 4] and len(path.log_prob) == 4


def test_window_is_stochastic_inside_and_the_ode_outside():
    config = SamplerConfig("sde", "euler", 10, window_start=3, window=4)
    x = noise(16)
    path, grid = sample_path(gaussian_velocity, x, config, step_noise(x)), time_grid(config)
    assert noisy_steps(config) == [3, 4, 5, 6] and len(path.log_prob) == 4 and noise_draws(config) == 7
    plain = SamplerConfig("sde", "euler", 10)
    for i in range(10):
        v = gaussian_velocity(path.states[i], grid[i])
        if 3 <= i < 7:
            expected = sampler_step(v, path.states[i], i, plain).sample(step_noise(x)(i))
        else:
            expected = path.states[i] + (grid[i + 1] - grid[i]) * v
        torch.testing.assert_close(path.states[i + 1], expected, rtol=0, atol=0)
    whole = SamplerConfig("sde", "euler", 10, window_start=0, window=10)
    assert torch.equal(
        sample(gaussian_velocity, x, whole, step_noise(x)), sample(gaussian_velocity, x, plain, step_noise(x))
    )


def test_window_keeps_the_marginals():
    config = SamplerConfig("sde", "euler", 401, diffusion="flow_grpo", window_start=100, window=50)
    for t, mean, variance in chain_moments(config)[:-1]:
        assert abs(mean - t * MEAN) < 5e-3 and abs(variance - (t * STD) ** 2 - (1 - t) ** 2) < 5e-3


def test_window_slides_by_one_every_25_iterations_and_stays_inside():
    config = SamplerConfig("sde", "euler", 25, window=4)
    starts = [slide_window(config, i).window_start for i in (0, 24, 25, 50, 499, 500, 10_000)]
    assert starts == [0, 0, 1, 2, 19, 20, 20]
    assert noisy_steps(slide_window(config, 10_000)) == [20, 21, 22, 23]
    assert slide_window(SamplerConfig("sde", "euler", 25), 100) == SamplerConfig("sde", "euler", 25)


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
    step = sampler_step(v, x, i, config)
    torch.testing.assert_close(step.mean, x + h * (v + w * (t * v - x) / (1 - t)))
    assert step.std == pytest.approx(math.sqrt(2 * w * h))


def test_grids_begin_at_noise_and_end_at_data():
    assert time_grid(SamplerConfig("ode", "heun", 4)) == [0, 0.25, 0.5, 0.75, 1]
    grid = time_grid(SamplerConfig("sde", "euler", 250))
    assert len(grid) == 251 and grid[249] == pytest.approx(1 - LAST_STEP) and grid[-1] == 1


@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_flow_grpo_steps_are_those_of_its_code(steps):
    """Its σ = 1 − t and its velocity −v. Only the denominator is replaced at σ = 1, by that of the next σ.

    std² = a²σ/(1 − σ), and x' = x(1 − std²h/2σ) − v'h(1 + std²(1 − σ)/2σ) + std √h ξ with v' towards the noise.
    """
    config = SamplerConfig("sde", "euler", steps, diffusion="flow_grpo", last_step="none")
    sigmas = [1 - i / steps for i in range(steps + 1)]
    x, v = torch.randn(2, 5, 1, 1, 1, dtype=torch.float64, generator=torch.manual_seed(0))
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        h = sigma - following
        std = 0.7 * math.sqrt(sigma / (1 - (sigmas[1] if sigma == 1 else sigma)))
        mean = x * (1 - std**2 * h / (2 * sigma)) + v * h * (1 + std**2 * (1 - sigma) / (2 * sigma))
        step = sampler_step(v, x, i, config)
        assert step.std == pytest.approx(std * math.sqrt(h), rel=1e-13)
        torch.testing.assert_close(step.mean, mean, rtol=1e-13, atol=1e-13)


def test_sbdm_takes_its_value_at_the_next_point_where_it_is_infinite():
    """SiT's code divides by zero there: this value is the project's own."""
    config = SamplerConfig("sde", "euler", 10, diffusion="sbdm")
    grid = time_grid(config)
    assert diffusion_coefficient(0.0, grid, config) == diffusion_coefficient(grid[1], grid, config)


def test_log_prob_is_the_mean_over_dimensions_of_a_normal_density():
    torch.manual_seed(0)
    mean, x = torch.randn(5, 2, 3, 3), torch.randn(5, 2, 3, 3)
    expected = torch.distributions.Normal(mean.double(), 0.3).log_prob(x.double()).flatten(1).mean(1)
    got = GaussianStep(mean, 0.3).log_prob(x)
    # float32 squares of numbers up to ~10, averaged over 18 terms
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == torch.float32


def test_log_prob_with_a_spread_of_its_own_for_every_dimension():
    torch.manual_seed(0)
    mean, x, std = torch.randn(5, 2, 3), torch.randn(5, 2, 3), torch.rand(5, 2, 3) + 0.1
    std.requires_grad_()
    expected = torch.distributions.Normal(mean.double(), std.double()).log_prob(x.double()).flatten(1).mean(1)
    got = GaussianStep(mean, std).log_prob(x)
    # z up to 40 here: float32 squares of 1600 averaged over 6 terms
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), std)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_path_log_prob_matches_its_transitions():
    x = noise(64)
    config = SamplerConfig("sde", "euler", 5)
    path = sample_path(gaussian_velocity, x, config, step_noise(x))
    assert len(path.log_prob) == 4 and len(path.states) == 6
    grid = time_grid(config)
    for i, logp in enumerate(path.log_prob):
        again = sampler_step(gaussian_velocity(path.states[i], grid[i]), path.states[i], i, config)
        torch.testing.assert_close(again.log_prob(path.states[i + 1]), logp, rtol=0, atol=0)


def test_last_step_has_no_log_probability():
    with pytest.raises(ValueError, match="noiseless step"):
        GaussianStep(torch.zeros(1, 1), 0.0).log_prob(torch.zeros(1, 1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(kind="pde"), "choose 'ode', 'sde' or 'discrete'"),
        (dict(kind="ode", method="rk4"), "choose one of euler, heun, dopri5, adams"),
        (dict(kind="sde", method="dopri5"), "choose one of euler, adams"),
        (dict(kind="sde", method="adams", diffusion="flow_grpo"), "use 'euler'"),
        (dict(power=0.5), "power is 0.5"),
        (dict(kind="sde", method="euler", diffusion="inccreasing"), "choose one of sigma, linear, constant"),
        (dict(steps=0), "at least 1"),
        (dict(kind="sde", method="euler", last_step="last"), "choose one of mean, euler, tweedie, none"),
        (dict(kind="sde", method="euler", last_step_size=1.0), "last_step_size is 1.0"),
        (dict(kind="sde", method="euler", diffusion_norm=0.0), "diffusion_norm is 0.0"),
        (dict(kind="sde", method="euler", window_start=8, window=4), "beyond the sampler's 10"),
        (dict(kind="sde", method="adams", last_step="euler"), "which only sde euler has"),
        (dict(window=2), "which only sde euler has, not ode heun"),
        (dict(kind="discrete", method="ddpm", eta=1.0), "which only discrete ddim has"),
        (dict(kind="discrete", method="ddim", eta=1.5), "eta is 1.5"),
        (dict(kind="discrete", method="ddpm", steps=1001), "the noising chain has 1000"),
        (dict(kind="discrete"), "choose one of ddpm, ddim"),
        (dict(guidance_from=0.6, guidance_until=0.5), "not an interval"),
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
