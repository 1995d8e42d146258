"""From noise to images along a velocity field: ODE and SDE solvers, with per-step log-probabilities.

Time runs from 0 (noise) to 1 (data). The probability-flow ODE is dx = v dt; every SDE
    dx = [v + w·score] dt + √(2w) dW
has the same marginals for any diffusion w(t) ≥ 0 (SiT, arXiv 2401.08740, eq. 5). `sigma`, SiT's default, is w = 1 − t.

**Euler step** of any w: μ = x + h(v + w·score), σ = √(2wh), the form of SiT, Flow-GRPO and DDPO. Gaussian, so it has a
log-probability, and a policy gradient can be taken through it.

**Adams–Bashforth step** of either, with b the drift of the equation and h' the step before h:
    x_s = x + h·[b_t + h/2h'·(b_t − b_{t−h'})] + σξ,  σ² = ∫_t^s 2w,
of order 2 for an ODE, and of weak order 2 for a drift linear in x with additive noise (the stationary variance of
dx = −ax dt + σdW comes out right up to (ah)², where Euler's is up to ah), at one velocity a step where Heun takes two.
The sigma SDE's drift is written (1+t)v − x, free of the score's 1/(1−t). It has no density in closed form: it evaluates
and does not train.

**Grid.** 1 − t = ((1−u) + u·δ^{1/power})^power, u uniform. Towards the data the velocity contracts at a rate 1/(1−t),
which an explicit solver only follows where its step is shorter than 1−t: power > 1 makes it so. The Euler SDE and Adams
stop at 1 − t = δ = 0.04, as the official SDE sampler does, and end with the posterior mean x + (1−t)v; the others have
δ = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from sit_rl.interpolant import predicted_data, score

VelocityField = Callable[[torch.Tensor, float], torch.Tensor]  # (x [n, C, H, W], t) → v, labels already bound
NoiseSource = Callable[[int], torch.Tensor]  # step number → standard normal of x's shape

ODE_METHODS = ("euler", "heun", "dopri5", "adams")
SDE_METHODS = ("euler", "adams")
DIFFUSIONS = ("sigma", "flow_grpo")

# dopri5 tolerances of the official SiT sampler.
DOPRI5_ATOL, DOPRI5_RTOL = 1e-6, 1e-3
# The official SDE sampler stops at t = 1 − 0.04 and takes one noiseless step from there.
LAST_STEP = 0.04
# Flow-GRPO's noise level a (arXiv 2505.05470).
FLOW_GRPO_LEVEL = 0.7


@dataclass(frozen=True)
class SamplerConfig:
    """Which solver, and how many steps of it."""

    kind: Literal["ode", "sde"] = "ode"
    """ode or sde"""
    method: Literal["euler", "heun", "dopri5", "adams"] = "heun"
    """ode: euler, heun, dopri5, adams; sde: euler, adams (sigma only, no log-probabilities)"""
    steps: int = 10
    """grid intervals; dopri5 chooses its own and ignores this"""
    power: float = 1.0
    """of the grid; above 1: shorter steps near the data"""
    diffusion: Literal["sigma", "flow_grpo"] = "sigma"
    """sde: sigma w = 1 − t; flow_grpo w = a²(1−t)/2t"""

    def __post_init__(self):
        """Refuse what does not exist, naming what does."""
        methods = {"ode": ODE_METHODS, "sde": SDE_METHODS}.get(self.kind)
        if methods is None:
            raise ValueError(f"sampler kind is {self.kind!r}; choose 'ode' or 'sde'")
        if self.method not in methods:
            raise ValueError(f"{self.kind} method is {self.method!r}; choose one of {', '.join(methods)}")
        if self.diffusion not in DIFFUSIONS:
            raise ValueError(f"diffusion is {self.diffusion!r}; choose one of {', '.join(DIFFUSIONS)}")
        if self.kind == "sde" and self.method == "adams" and self.diffusion != "sigma":
            raise ValueError(
                f"the SDE's Adams step is written for diffusion 'sigma', not {self.diffusion!r}; use 'euler'"
            )
        if self.steps < 1:
            raise ValueError(f"sampler steps is {self.steps}; it must be at least 1")
        if self.power < 1:
            raise ValueError(f"sampler power is {self.power}; it must be at least 1")

    def __str__(self) -> str:
        """E.g. 'ODE heun, 10 steps'."""
        return f"{self.kind.upper()} {self.method}" + ("" if self.method == "dopri5" else f", {self.steps} steps")

    def evaluations(self) -> int:
        """Velocity evaluations a sample costs (dopri5: about 50, which its tolerance decides)."""
        return {"heun": 2 * self.steps - 1, "dopri5": 50}.get(self.method, self.steps)


@dataclass
class Transition:
    """A Gaussian step x_t → x_s: mean of x's shape, standard deviation a number (0 for a noiseless step)."""

    mean: torch.Tensor
    std: float

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """mean + std·noise."""
        return self.mean + self.std * noise if self.std else self.mean

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log N(x; mean, std²) averaged over the dimensions of a sample, float32 [n]; needs std > 0.

        The mean, not the sum, as DDPO and its successors: clip ranges on its ratio then depend on the dimension.
        """
        if self.std <= 0:
            raise ValueError("a noiseless step has no log-probability; leave the sampler's last step out of the loss")
        z = (x.float() - self.mean.float()) / self.std
        return (-0.5 * z.square() - math.log(self.std) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def time_grid(config: SamplerConfig) -> list[float]:
    """Grid 0 = t_0 < … < t_steps = 1; see the module's text."""
    steps, end = config.steps, 0.0
    if (config.kind == "sde" or config.method == "adams") and steps > 1:
        steps, end = steps - 1, LAST_STEP
    root = end ** (1 / config.power)
    warped = [1 - (1 - i / steps * (1 - root)) ** config.power for i in range(steps + 1)]
    return warped + [1.0] if end else warped


def sample(
    velocity: VelocityField, noise: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource | None = None
) -> torch.Tensor:
    """Samples of noise's shape [n, C, H, W]; an SDE draws its steps' noise from `step_noise`."""
    if config.kind == "sde" and step_noise is None:
        raise ValueError("an SDE sampler needs step_noise, a function from the step number to standard normal noise")
    if config.method == "adams":
        return sample_adams(velocity, noise, config, step_noise)
    if config.kind == "ode":
        return sample_ode(velocity, noise, config)
    return sample_sde(velocity, noise, config, step_noise).states[-1]


def sample_ode(velocity: VelocityField, x: torch.Tensor, config: SamplerConfig) -> torch.Tensor:
    """Integrate dx = v dt from t = 0 to 1; Heun's last step is an Euler step, where v is least curved."""
    if config.method == "dopri5":
        from torchdiffeq import odeint

        ends = torch.tensor([0.0, 1.0], device=x.device)
        return odeint(lambda t, y: velocity(y, float(t)), x, ends, method="dopri5", atol=DOPRI5_ATOL, rtol=DOPRI5_RTOL)[
            -1
        ]
    grid = time_grid(config)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        v = velocity(x, t)
        if config.method == "heun" and s < 1:
            v = (v + velocity(x + (s - t) * v, s)) / 2
        x = x + (s - t) * v
    return x


@dataclass
class Path:
    """An SDE path: states x_0 … x_steps, each [n, C, H, W], and log p(x_{i+1} | x_i) [n] of its noisy steps."""

    states: list[torch.Tensor]
    log_prob: list[torch.Tensor]


def sample_sde(velocity: VelocityField, x: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource) -> Path:
    """Follow one Euler path per sample; the last step is noiseless and has no log-probability."""
    grid, path = time_grid(config), Path([x], [])
    for i in range(config.steps):
        step = transition(velocity(path.states[-1], grid[i]), path.states[-1], i, config)
        path.states.append(step.sample(step_noise(i)) if step.std else step.mean)
        if step.std:
            path.log_prob.append(step.log_prob(path.states[-1]))
    return path


def sigma_variance(t: float, s: float) -> float:
    """Variance of the sigma SDE's noise from t to s: ∫_t^s 2(1−τ) dτ = (s − t)(2 − t − s)."""
    return (s - t) * (2 - t - s)


def sample_adams(
    velocity: VelocityField, x: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource | None
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
    """The Gaussian of Euler step i of an SDE, given the velocity v at its start x; the last is its mean alone."""
    grid = time_grid(config)
    t, h = grid[i], grid[i + 1] - grid[i]
    w = diffusion_coefficient(t, grid, config)
    std = math.sqrt(2 * w * h) if i < config.steps - 1 else 0.0
    return Transition(x + h * (v + w * score(x, v, t)), std)


def diffusion_coefficient(t: float, grid: list[float], config: SamplerConfig) -> float:
    """w(t); Flow-GRPO's is infinite at t = 0, where, as there, the next grid point's value is used."""
    if config.diffusion == "sigma":
        return 1 - t
    t = max(t, grid[1])
    return FLOW_GRPO_LEVEL**2 * (1 - t) / (2 * t)
