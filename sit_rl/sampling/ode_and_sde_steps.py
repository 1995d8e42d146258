"""From noise to images along a velocity field: ODE and SDE solvers, with per-step log-probabilities.

Time runs from 0 (noise) to 1 (data). The probability-flow ODE is dx = v dt; every SDE
    dx = [v + w·score] dt + √(2w) dW
has the same marginals for any diffusion w(t) ≥ 0 (SiT, arXiv 2401.08740, eq. 5). `sigma`, SiT's default, is w = 1 − t.

**Euler step** of any w: μ = x + h(v + w·score), σ = √(2wh), the form of SiT, Flow-GRPO and DDPO. Gaussian, so it has a
log-probability, through which a policy gradient can be taken. With a window (MixGRPO), the steps outside the window are
the ODE's, x + hv.

**Adams–Bashforth step** of either, with b the drift of the equation and h' the step before h:
    x_s = x + h·[b_t + h/2h'·(b_t − b_{t−h'})] + σξ,  σ² = ∫_t^s 2w,
of order 2 for an ODE, and of weak order 2 for a drift that is linear in x with additive noise: the stationary variance
of dx = −ax dt + σdW is right up to (ah)², with Euler up to ah. It takes one velocity per step, Heun takes two. The
drift of the sigma SDE is written as (1+t)v − x, without the 1/(1−t) of the score. The step has no density in closed
form, so it serves evaluation and not training.

**Ancestral step** of the SDE with w = (1 − t)/t, whose samples do not depend on the noise that they start from. With
x̂ = x + (1−t)v in place of the data, it is the posterior of the path's noising, as in DDPM:
    μ = s·x̂ + ((1−s)/(1−t))²·(t/s)·(x − t·x̂),  σ² = (1−s)²·(1 − ((t/s)·(1−s)/(1−t))²).
It has a density, is exact at t = 0, where Euler's w is infinite, and needs no last step of its own: at s = 1, μ = x̂.

**Grid.** 1 − t = ((1−u) + u·δ^{1/power})^power, u uniform. A shift s maps σ = 1 − t to sσ/(1 + (s−1)σ) and keeps δ.
Near the data the velocity contracts at a rate 1/(1−t). An explicit solver follows it only with steps shorter than 1−t,
which power > 1 gives. The Euler SDE and Adams stop at 1 − t = δ = 0.04, as the official SDE sampler does, and then take
one step without noise. Adams goes to the posterior mean x + (1−t)v. Euler by default follows the SDE's drift ("mean"),
as the official sampler does. The others have δ = 0.

**Discrete chains** (DiT) have the same interface. Their steps are those of `sampling.ddpm`, their t is a timestep
999 … 0, and their `velocity` is the model's noise and variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from sit_rl.sampling import ddpm
from sit_rl.sampling.interpolant import predicted_data, score
from sit_rl.sampling.sampler_config import (
    SamplerConfig,
    diffusion_coefficient,
    euler_std,
    in_window,
    noisy_steps,
    time_grid,
)
from sit_rl.sampling.step_distribution import GaussianStep

VelocityField = Callable[[torch.Tensor, float], torch.Tensor]  # (x [n, C, H, W], t) → v, labels already bound
NoiseSource = Callable[[int], torch.Tensor]  # step number → standard normal of x's shape

# dopri5 tolerances of the official SiT sampler.
DOPRI5_ATOL, DOPRI5_RTOL = 1e-6, 1e-3


def sample(
    velocity: VelocityField, noise: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource | None = None
) -> torch.Tensor:
    """Samples [n, C, H, W] from noise of the same shape. Noisy steps take their noise from `step_noise`.

    For a discrete chain, `velocity` gives the two outputs of a DiT, and its t is a timestep.
    """
    if step_noise is None:
        if noisy_steps(config):
            raise ValueError(
                f"the sampler {config} needs step_noise, a function from the step number to standard normal noise"
            )
        step_noise = _no_noise
    if config.method == "adams":
        return sample_adams(velocity, noise, config, step_noise)
    if config.kind == "ode":
        return sample_ode(velocity, noise, config)
    for _, x in walk(velocity, noise, config, step_noise):
        last = x
    return last


def _no_noise(step: int) -> torch.Tensor:
    """Stands for the noise of a sampler without noisy steps, which never asks for it."""
    raise AssertionError(f"step {step} draws noise although the sampler has no noisy steps")


def sample_ode(velocity: VelocityField, x: torch.Tensor, config: SamplerConfig) -> torch.Tensor:
    """Integrate dx = v dt from t = 0 to 1. The last step of Heun is an Euler step, because v is least curved there."""
    if config.method == "dopri5":
        from torchdiffeq import odeint

        ends = torch.tensor([0.0, 1.0], device=x.device)
        states: torch.Tensor = odeint(
            lambda t, y: velocity(y, float(t)), x, ends, method="dopri5", atol=DOPRI5_ATOL, rtol=DOPRI5_RTOL
        )
        return states[-1]
    grid = time_grid(config)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        v = velocity(x, t)
        if config.method == "heun" and s < 1:
            v = (v + velocity(x + (s - t) * v, s)) / 2
        x = x + (s - t) * v
    return x


@dataclass
class Path:
    """A random path: states x_0 … x_steps, each [n, C, H, W], and log p(x_{i+1} | x_i) [n] of its noisy steps."""

    states: list[torch.Tensor]
    log_prob: list[torch.Tensor]


def sample_path(velocity: VelocityField, x: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource) -> Path:
    """One path per sample of an Euler SDE or a discrete chain. Steps without noise have no log-probability."""
    path = Path([x], [])
    for step, state in walk(velocity, x, config, step_noise):
        path.states.append(state)
        if step.noisy:
            path.log_prob.append(step.log_prob(state))
    return path


def walk(
    velocity: VelocityField, x: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource
) -> Iterator[tuple[GaussianStep, torch.Tensor]]:
    """The Gaussian of each step and the state drawn from it."""
    grid = time_grid(config)
    for i in range(config.steps):
        step = sampler_step(velocity(x, grid[i]), x, i, config)
        x = step.sample(step_noise(i)) if step.noisy else step.mean
        yield step, x


def ancestral_step(v: torch.Tensor, x: torch.Tensor, t: float, s: float) -> GaussianStep:
    """The Gaussian of the ancestral step from t to s (equation above), from the velocity v at x."""
    data, kept = predicted_data(x, v, t), (1 - s) / (1 - t)
    forgotten = t / s * kept
    return GaussianStep(s * data + kept * forgotten * (x - t * data), (1 - s) * math.sqrt(1 - forgotten**2))


def sigma_variance(t: float, s: float) -> float:
    """Variance of the sigma SDE's noise from t to s: ∫_t^s 2(1−τ) dτ = (s − t)(2 − t − s)."""
    return (s - t) * (2 - t - s)


def sample_adams(
    velocity: VelocityField, x: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource
) -> torch.Tensor:
    """Adams–Bashforth steps of the ODE or the sigma SDE (equation above), then the posterior mean."""
    grid, earlier = time_grid(config), None
    for i, (t, s) in enumerate(zip(grid[:-2], grid[1:-1], strict=True)):
        h, v = s - t, velocity(x, t)
        drift = v if config.kind == "ode" else (1 + t) * v - x
        slope = 0.0 if earlier is None else (drift - earlier) / (2 * (t - grid[i - 1]))
        x, earlier = x + h * (drift + h * slope), drift
        if config.kind == "sde":
            x = x + math.sqrt(sigma_variance(t, s)) * step_noise(i)
    return predicted_data(x, velocity(x, grid[-2]), grid[-2])


def sampler_step(v: torch.Tensor, x: torch.Tensor, i: int, config: SamplerConfig) -> GaussianStep:
    """The Gaussian of step i of an Euler SDE or a discrete chain, from the model's output v at the step's start x.

    Outside a window it is the ODE's Euler step, without noise.
    """
    if config.kind == "discrete":
        return ddpm.reverse_step(v, x, i, config.steps, config.method, config.eta)
    grid = time_grid(config)
    t, h = grid[i], grid[i + 1] - grid[i]
    if config.method == "ancestral":
        return ancestral_step(v, x, t, grid[i + 1])
    if not in_window(i, config):
        return GaussianStep(x + h * v, 0.0)
    if i == config.steps - 1 and config.last_step == "euler":
        return GaussianStep(x + h * v, 0.0)
    if i == config.steps - 1 and config.last_step == "tweedie":
        return GaussianStep(predicted_data(x, v, t), 0.0)
    w = diffusion_coefficient(t, grid, config)
    return GaussianStep(x + h * (v + w * score(x, v, t)), euler_std(i, grid, config))
