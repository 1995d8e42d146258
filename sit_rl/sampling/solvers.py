"""From noise to images along a velocity field: ODE and SDE solvers, with per-step log-probabilities.

Time runs from 0 (noise) to 1 (data). The probability-flow ODE is dx = v dt; every SDE
    dx = [v + w·score] dt + √(2w) dW
has the same marginals for any diffusion w(t) ≥ 0 (SiT, arXiv 2401.08740, eq. 5). `sigma`, SiT's default, is w = 1 − t.

**Euler step** of any w: μ = x + h(v + w·score), σ = √(2wh), the form of SiT, Flow-GRPO and DDPO. Gaussian, so it has a
log-probability, and a policy gradient can be taken through it. In a window (MixGRPO) only some steps are such; the
others are the ODE's, x + hv.

**Adams–Bashforth step** of either, with b the drift of the equation and h' the step before h:
    x_s = x + h·[b_t + h/2h'·(b_t − b_{t−h'})] + σξ,  σ² = ∫_t^s 2w,
of order 2 for an ODE, and of weak order 2 for a drift linear in x with additive noise (the stationary variance of
dx = −ax dt + σdW comes out right up to (ah)², where Euler's is up to ah), at one velocity a step where Heun takes two.
The sigma SDE's drift is written (1+t)v − x, free of the score's 1/(1−t). It has no density in closed form: it evaluates
and does not train.

**Grid.** 1 − t = ((1−u) + u·δ^{1/power})^power, u uniform. Towards the data the velocity contracts at a rate 1/(1−t),
which an explicit solver only follows where its step is shorter than 1−t: power > 1 makes it so. The Euler SDE and Adams
stop at 1 − t = δ = 0.04, as the official SDE sampler does, and take one noiseless step from there: Adams to the
posterior mean x + (1−t)v, Euler by default along the SDE's drift ("mean"), as there. The others have δ = 0.

**Discrete chains** (DiT) share the interface: their steps are `sampling.ddpm`'s, their t a timestep 999 … 0, their
`velocity` the model's noise and variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from sit_rl.sampling import ddpm
from sit_rl.sampling.gaussian_step import Transition
from sit_rl.sampling.interpolant import predicted_data, score
from sit_rl.sampling.sampler_config import (
    SamplerConfig,
    diffusion_coefficient,
    euler_std,
    in_window,
    noisy_steps,
    time_grid,
)

VelocityField = Callable[[torch.Tensor, float], torch.Tensor]  # (x [n, C, H, W], t) → v, labels already bound
NoiseSource = Callable[[int], torch.Tensor]  # step number → standard normal of x's shape

# dopri5 tolerances of the official SiT sampler.
DOPRI5_ATOL, DOPRI5_RTOL = 1e-6, 1e-3


def sample(
    velocity: VelocityField, noise: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource | None = None
) -> torch.Tensor:
    """Samples of noise's shape [n, C, H, W]; noisy steps draw their noise from `step_noise`.

    For a discrete chain `velocity` is a DiT's two outputs instead, its t a timestep.
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
    """Integrate dx = v dt from t = 0 to 1; Heun's last step is an Euler step, where v is least curved."""
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
    """Follow one path per sample of an Euler SDE or a discrete chain; noiseless steps have no log-probability."""
    path = Path([x], [])
    for step, state in walk(velocity, x, config, step_noise):
        path.states.append(state)
        if step.noisy:
            path.log_prob.append(step.log_prob(state))
    return path


def walk(
    velocity: VelocityField, x: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource
) -> Iterator[tuple[Transition, torch.Tensor]]:
    """Each step's transition and the state drawn from it."""
    grid = time_grid(config)
    for i in range(config.steps):
        step = transition(velocity(x, grid[i]), x, i, config)
        x = step.sample(step_noise(i)) if step.noisy else step.mean
        yield step, x


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


def transition(v: torch.Tensor, x: torch.Tensor, i: int, config: SamplerConfig) -> Transition:
    """The Gaussian of step i of an Euler SDE or a discrete chain, given the model's output v at its start x.

    Outside a window it is the ODE's Euler step, noiseless.
    """
    if config.kind == "discrete":
        return ddpm.reverse_step(v, x, i, config.steps, config.method, config.eta)
    grid = time_grid(config)
    t, h = grid[i], grid[i + 1] - grid[i]
    if not in_window(i, config):
        return Transition(x + h * v, 0.0)
    if i == config.steps - 1 and config.last_step == "euler":
        return Transition(x + h * v, 0.0)
    if i == config.steps - 1 and config.last_step == "tweedie":
        return Transition(predicted_data(x, v, t), 0.0)
    w = diffusion_coefficient(t, grid, config)
    return Transition(x + h * (v + w * score(x, v, t)), euler_std(i, grid, config))
