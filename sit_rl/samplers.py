"""From noise to images along a velocity field: ODE and SDE solvers, with per-step log-probabilities.

Time runs from 0 (noise) to 1 (data). The probability-flow ODE is dx = v dt; every SDE
    dx = [v + w·score] dt + √(2w) dW
has the same marginals for any diffusion w(t) ≥ 0 (SiT, arXiv 2401.08740, eq. 5). `sigma`, SiT's default, is w = 1 − t.

**Exponential step of the sigma SDE.** With D = x + (1−t)v the predicted data, its drift (1+t)v − x is linear in x:
    dx = [ (1+t)/(1−t) D − 2/(1−t) x ] dt + √(2(1−t)) dW.
Holding D over a step t → s and writing ρ = (1−s)/(1−t), the integrating factor (1−t)² gives the step exactly:
    x_s ~ N( ρ²·x + (s − ρ²t)·D,  (1−s)²(1 − ρ²) ).
Put x = tD + (1−t)ε: the mean becomes sD + ρ(1−s)ε and the variances add up to (1−s)², the path's own marginal, so the
only error left is that of holding D; at s = 1 the step is the posterior mean D and needs no special last step.

**Euler step** of any w: μ = x + h(v + w·score), σ = √(2wh), the form of SiT, Flow-GRPO and DDPO.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sit_rl.interpolant import predicted_data, score

VelocityField = Callable[[torch.Tensor, float], torch.Tensor]  # (x [n, C, H, W], t) → v, labels already bound
NoiseSource = Callable[[int], torch.Tensor]  # step number → standard normal of x's shape

ODE_METHODS = ("euler", "heun", "dopri5")
SDE_METHODS = ("exponential", "euler")
DIFFUSIONS = ("sigma", "flow_grpo")

# dopri5 tolerances of the official SiT sampler.
DOPRI5_ATOL, DOPRI5_RTOL = 1e-6, 1e-3
# The official Euler SDE sampler stops at t = 1 − 0.04 and takes one noiseless step from there.
LAST_STEP = 0.04
# Flow-GRPO's noise level a (arXiv 2505.05470).
FLOW_GRPO_LEVEL = 0.7


@dataclass(frozen=True)
class SamplerConfig:
    """Which solver, and how many steps of it."""

    kind: str = "ode"  # ode or sde
    method: str = "heun"  # ode: euler, heun, dopri5; sde: exponential (sigma only), euler
    steps: int = 10  # grid intervals; dopri5 chooses its own and ignores this
    diffusion: str = "sigma"  # sde only: sigma w = 1 − t; flow_grpo w = a²(1−t)/2t

    def __post_init__(self):
        """Refuse what does not exist, naming what does."""
        methods = {"ode": ODE_METHODS, "sde": SDE_METHODS}.get(self.kind)
        if methods is None:
            raise ValueError(f"sampler kind is {self.kind!r}; choose 'ode' or 'sde'")
        if self.method not in methods:
            raise ValueError(f"{self.kind} method is {self.method!r}; choose one of {', '.join(methods)}")
        if self.diffusion not in DIFFUSIONS:
            raise ValueError(f"diffusion is {self.diffusion!r}; choose one of {', '.join(DIFFUSIONS)}")
        if self.kind == "sde" and self.method == "exponential" and self.diffusion != "sigma":
            raise ValueError(
                f"the exponential step is derived for diffusion 'sigma', not {self.diffusion!r}; use method 'euler'"
            )
        if self.steps < 1:
            raise ValueError(f"sampler steps is {self.steps}; it must be at least 1")

    def __str__(self) -> str:
        """E.g. 'ODE heun, 10 steps'."""
        return f"{self.kind.upper()} {self.method}, {self.steps} steps"

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
    """Grid 0 = t_0 < … < t_steps = 1, uniform; the Euler SDE keeps its last interval at LAST_STEP as SiT does."""
    if config.kind == "sde" and config.method == "euler" and config.steps > 1:
        return [(1 - LAST_STEP) * i / (config.steps - 1) for i in range(config.steps)] + [1.0]
    return [i / config.steps for i in range(config.steps + 1)]


def sample(
    velocity: VelocityField, noise: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource | None = None
) -> torch.Tensor:
    """Samples of noise's shape [n, C, H, W]; an SDE draws its steps' noise from `step_noise`."""
    if config.kind == "ode":
        return sample_ode(velocity, noise, config)
    if step_noise is None:
        raise ValueError("an SDE sampler needs step_noise, a function from the step number to standard normal noise")
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
    """Follow one SDE path per sample; the last step is noiseless and has no log-probability."""
    grid, path = time_grid(config), Path([x], [])
    for i in range(config.steps):
        step = transition(velocity(path.states[-1], grid[i]), path.states[-1], i, config)
        path.states.append(step.sample(step_noise(i)) if step.std else step.mean)
        if step.std:
            path.log_prob.append(step.log_prob(path.states[-1]))
    return path


def transition(v: torch.Tensor, x: torch.Tensor, i: int, config: SamplerConfig) -> Transition:
    """The Gaussian of step i of an SDE's grid, given the velocity v at its start x."""
    grid = time_grid(config)
    t, s = grid[i], grid[i + 1]
    if config.method == "exponential":
        ratio = (1 - s) / (1 - t)
        mean = ratio**2 * x + (s - ratio**2 * t) * predicted_data(x, v, t)
        return Transition(mean, (1 - s) * math.sqrt(1 - ratio**2))
    h, w = s - t, diffusion_coefficient(t, grid, config)
    std = math.sqrt(2 * w * h) if i < config.steps - 1 else 0.0  # the last step is the mean alone
    return Transition(x + h * (v + w * score(x, v, t)), std)


def diffusion_coefficient(t: float, grid: list[float], config: SamplerConfig) -> float:
    """w(t); Flow-GRPO's is infinite at t = 0, where, as there, the next grid point's value is used."""
    if config.diffusion == "sigma":
        return 1 - t
    t = max(t, grid[1])
    return FLOW_GRPO_LEVEL**2 * (1 - t) / (2 * t)
