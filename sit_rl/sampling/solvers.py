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
from dataclasses import dataclass, replace
from typing import Literal

import torch

from sit_rl.sampling import ddpm
from sit_rl.sampling.gaussian_step import Transition
from sit_rl.sampling.interpolant import predicted_data, score

VelocityField = Callable[[torch.Tensor, float], torch.Tensor]  # (x [n, C, H, W], t) → v, labels already bound
NoiseSource = Callable[[int], torch.Tensor]  # step number → standard normal of x's shape

METHODS = {
    "ode": ("euler", "heun", "dopri5", "adams"),
    "sde": ("euler", "adams"),
    "discrete": ("ddpm", "ddim"),
}
DIFFUSIONS = ("sigma", "linear", "constant", "sbdm", "decreasing", "increasing-decreasing", "flow_grpo")
LAST_STEPS = ("mean", "euler", "tweedie", "none")
# Options that one kind and method alone has.
OPTION_OWNERS = dict.fromkeys(("diffusion_norm", "last_step", "window", "window_start"), ("sde", "euler"))
OPTION_OWNERS |= {"eta": ("discrete", "ddim")}

# dopri5 tolerances of the official SiT sampler.
DOPRI5_ATOL, DOPRI5_RTOL = 1e-6, 1e-3
# The official SDE sampler stops at t = 1 − 0.04 and takes one noiseless step from there.
LAST_STEP = 0.04
# Flow-GRPO's noise level a (arXiv 2505.05470).
FLOW_GRPO_LEVEL = 0.7
# Velocity evaluations of dopri5 at its default tolerances on the default model: about 50.
DOPRI5_EVALUATIONS = 50
# MixGRPO moves its window on by one step every 25 training iterations (arXiv 2507.21802).
WINDOW_STRIDE, WINDOW_EVERY = 1, 25


@dataclass(frozen=True)
class SamplerConfig:
    """Which solver, and how many steps of it."""

    kind: Literal["ode", "sde", "discrete"] = "ode"
    """ode or sde, of a velocity (SiT); discrete: the noising chain of a DiT"""
    method: Literal["euler", "heun", "dopri5", "adams", "ddpm", "ddim"] = "heun"
    """ode: euler, heun, dopri5, adams; sde: euler, adams (sigma only, no log-probabilities); discrete: ddpm, ddim"""
    steps: int = 10
    """grid intervals; dopri5 chooses its own and ignores this"""
    power: float = 1.0
    """of the grid; above 1: shorter steps near the data"""
    diffusion: Literal["sigma", "linear", "constant", "sbdm", "decreasing", "increasing-decreasing", "flow_grpo"] = (
        "sigma"
    )
    """sde: form of w(t); sigma and linear are both 1 − t; see diffusion_coefficient"""
    diffusion_norm: float = 1.0
    """sde euler: factor of w(t), or of the cosine in decreasing"""
    last_step: Literal["mean", "euler", "tweedie", "none"] = "mean"
    """sde euler: the SDE's drift, the ODE's, the posterior mean (same as the ODE's here), or one more noisy step"""
    last_step_size: float = LAST_STEP
    """sde and adams: length of the noiseless last step"""
    window_start: int = 0
    """sde euler: first step of the window"""
    window: int = 0
    """sde euler: how many steps are stochastic, the others following the ODE (MixGRPO); 0: all"""
    eta: float = 0.0
    """ddim: its η; 0 is deterministic, 1 has DDPM's noise"""
    guidance: float = 1.0
    """classifier-free guidance scale; 1: none"""
    guidance_channels: int = 0
    """how many channels are guided; 0: all; 3: as the official SiT and DiT samplers"""
    guidance_from: float = 0.0
    """time, 0 noise to 1 data, from which guidance acts"""
    guidance_until: float = 1.0
    """time until which guidance acts"""

    def __post_init__(self):
        """Refuse what does not exist, naming what does."""
        methods = METHODS.get(self.kind)
        if methods is None:
            raise ValueError(f"sampler kind is {self.kind!r}; choose 'ode', 'sde' or 'discrete'")
        if self.method not in methods:
            raise ValueError(f"{self.kind} method is {self.method!r}; choose one of {', '.join(methods)}")
        if self.diffusion not in DIFFUSIONS:
            raise ValueError(f"diffusion is {self.diffusion!r}; choose one of {', '.join(DIFFUSIONS)}")
        if self.last_step not in LAST_STEPS:
            raise ValueError(f"last_step is {self.last_step!r}; choose one of {', '.join(LAST_STEPS)}")
        if self.kind == "sde" and self.method == "adams" and self.diffusion != "sigma":
            raise ValueError(
                f"the SDE's Adams step is written for diffusion 'sigma', not {self.diffusion!r}; use 'euler'"
            )
        self._check_owners()
        self._check_numbers()

    def _check_owners(self) -> None:
        """Refuse an option that the chosen method would ignore."""
        for name, owner in OPTION_OWNERS.items():
            default = self.__dataclass_fields__[name].default
            if getattr(self, name) != default and (self.kind, self.method) != owner:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which only {' '.join(owner)} has, not "
                    f"{self.kind} {self.method}; leave it at {default!r}"
                )

    def _check_numbers(self) -> None:
        for name, least in (("steps", 1), ("power", 1), ("window", 0), ("window_start", 0), ("guidance_channels", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"sampler {name} is {getattr(self, name)}; it must be at least {least}")
        if self.kind == "discrete" and self.steps > ddpm.TRAIN_STEPS:
            raise ValueError(f"sampler steps is {self.steps}; the noising chain has {ddpm.TRAIN_STEPS}")
        if self.diffusion_norm <= 0:
            raise ValueError(f"diffusion_norm is {self.diffusion_norm}; it must be positive")
        if not 0 < self.last_step_size < 1:
            raise ValueError(f"last_step_size is {self.last_step_size}; it must be between 0 and 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}; it must be a finite number")
        if self.window and self.window_start + self.window > self.steps:
            raise ValueError(
                f"the window of {self.window} steps from {self.window_start} goes beyond the sampler's {self.steps}"
            )
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be between 0 and 1")
        if not 0 <= self.guidance_from <= self.guidance_until <= 1:
            raise ValueError(f"guidance from {self.guidance_from} until {self.guidance_until} is no interval of [0, 1]")

    def __str__(self) -> str:
        """E.g. 'ODE heun, 10 steps'."""
        parts = [self.method.upper() if self.kind == "discrete" else f"{self.kind.upper()} {self.method}"]
        if self.method != "dopri5":
            parts.append(f"{self.steps} steps")
        if self.kind == "sde" and self.diffusion != "sigma":
            parts.append(self.diffusion)
        if self.eta:
            parts.append(f"η {self.eta:g}")
        if self.kind == "sde" and self.window:
            parts.append(f"window {self.window_start}–{self.window_start + self.window - 1}")
        if self.guidance != 1:
            parts.append(f"guidance {self.guidance:g}")
        return ", ".join(parts)

    @property
    def needs(self) -> str:
        """What its model must predict: 'velocity' or 'noise'."""
        return "noise" if self.kind == "discrete" else "velocity"

    @property
    def has_density(self) -> bool:
        """Whether its noisy steps are Gaussians with log-probabilities, and a policy gradient has one at least."""
        return self.method != "adams" and bool(trained_steps(self))

    def guides(self, t: float) -> bool:
        """Whether guidance acts where the model is evaluated at t (a timestep of a discrete chain)."""
        time = 1 - t / (ddpm.TRAIN_STEPS - 1) if self.kind == "discrete" else t
        return self.guidance != 1 and self.guidance_from <= time <= self.guidance_until

    def evaluations(self) -> int:
        """Velocity evaluations a sample costs (dopri5: about 50, which its tolerance decides); guided ones are two."""
        count = {"heun": 2 * self.steps - 1, "dopri5": DOPRI5_EVALUATIONS}.get(self.method, self.steps)
        starts = time_grid(self)[: self.steps]
        return round(count * (1 + sum(map(self.guides, starts)) / len(starts)))


# The samplers that the published numbers come from (SiT's and DiT's sample_ddp.py without guidance). SiT-XL/2's FID of
# 8.3 is the SDE's; its ODE gives about 9.4. "250" is what the official ODE saves, not what it evaluates.
OFFICIAL = {
    "sit-ode": SamplerConfig("ode", "dopri5", 250),
    "sit-sde": SamplerConfig("sde", "euler", 250, diffusion="sigma", last_step="mean", last_step_size=LAST_STEP),
    "dit-ddpm": SamplerConfig("discrete", "ddpm", 250),
}


def time_grid(config: SamplerConfig) -> list[float]:
    """Grid 0 = t_0 < … < t_steps = 1, see the module's text; a discrete chain's: its `steps` timesteps, 999 … 0."""
    if config.kind == "discrete":
        return [float(t) for t in ddpm.visited_timesteps(config.steps)]
    steps, end = config.steps, 0.0
    stops = config.method == "adams" or (config.kind == "sde" and config.last_step != "none")
    if stops and steps > 1:
        steps, end = steps - 1, config.last_step_size
    root = end ** (1 / config.power)
    warped = [1 - (1 - i / steps * (1 - root)) ** config.power for i in range(steps + 1)]
    return warped + [1.0] if end else warped


def noisy_steps(config: SamplerConfig) -> list[int]:
    """Which of the steps draw noise, in order; all but adams' have log-probabilities."""
    last = config.steps - 1
    if config.kind == "ode" or (config.method == "ddim" and not config.eta):
        return []
    if config.kind == "discrete" or config.method == "adams":
        return list(range(last))
    grid = time_grid(config)
    return [i for i in range(config.steps) if euler_std(i, grid, config) > 0]


def trained_steps(config: SamplerConfig) -> list[int]:
    """Which noisy steps a policy gradient goes through: all, but for a discrete chain's last, onto timestep 0.

    That one is nearly deterministic: β̃ is 1e-4 there, and of 50 steps a change Δ of the noise moves its mean by 7.9Δ
    standard deviations, the step's before it by 1.6Δ and an Euler SDE's by 0.8Δ at most. It would be three quarters of
    the path's KL, and of 4 steps 98%.
    """
    noisy = noisy_steps(config)
    return noisy[:-1] if config.kind == "discrete" else noisy


def noise_draws(config: SamplerConfig) -> int:
    """How many draws `step_noise` must be able to give: one more than the last noisy step's number."""
    return max(noisy_steps(config), default=-1) + 1


def slide_window(config: SamplerConfig, iteration: int) -> SamplerConfig:
    """The same sampler with its window where MixGRPO has it at a training iteration.

    It moves on and then stays at the end, where it holds the last steps before the last one.
    """
    furthest = max(config.steps - 1 - config.window, 0)
    start = config.window_start + iteration // WINDOW_EVERY * WINDOW_STRIDE
    return replace(config, window_start=min(start, furthest)) if config.window else config


def sample(
    velocity: VelocityField, noise: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource | None = None
) -> torch.Tensor:
    """Samples of noise's shape [n, C, H, W]; noisy steps draw their noise from `step_noise`.

    For a discrete chain `velocity` is a DiT's two outputs instead, its t a timestep.
    """
    if noisy_steps(config) and step_noise is None:
        raise ValueError(
            f"the sampler {config} needs step_noise, a function from the step number to standard normal noise"
        )
    if config.method == "adams":
        return sample_adams(velocity, noise, config, step_noise)
    if config.kind == "ode":
        return sample_ode(velocity, noise, config)
    for _, x in walk(velocity, noise, config, step_noise):
        last = x
    return last


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
    velocity: VelocityField, x: torch.Tensor, config: SamplerConfig, step_noise: NoiseSource | None
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


def in_window(i: int, config: SamplerConfig) -> bool:
    """Whether step i is one of the stochastic ones."""
    return not config.window or config.window_start <= i < config.window_start + config.window


def euler_std(i: int, grid: list[float], config: SamplerConfig) -> float:
    """√(2wh) of step i of an Euler SDE; 0 outside the window and at the last step, unless that is 'none'."""
    if not in_window(i, config) or (i == config.steps - 1 and config.last_step != "none"):
        return 0.0
    return math.sqrt(2 * diffusion_coefficient(grid[i], grid, config) * (grid[i + 1] - grid[i]))


def diffusion_coefficient(t: float, grid: list[float], config: SamplerConfig) -> float:
    """w(t) in SiT's forms, with c = diffusion_norm; where a form is infinite at t = 0, the next grid point's value.

    sigma, linear c(1 − t); constant c; sbdm c(1 − t)/t; decreasing ¼(c·cos πt + 1)²; increasing-decreasing c·sin² πt;
    flow_grpo c·a²(1 − t)/2t, which is sbdm at c = a²/2. DanceGRPO's is constant at c = η²/2.
    """
    norm, later = config.diffusion_norm, max(t, grid[1])
    return {
        "sigma": norm * (1 - t),
        "linear": norm * (1 - t),
        "constant": norm,
        "sbdm": norm * (1 - later) / later,
        "decreasing": 0.25 * (norm * math.cos(math.pi * t) + 1) ** 2,
        "increasing-decreasing": norm * math.sin(math.pi * t) ** 2,
        "flow_grpo": norm * FLOW_GRPO_LEVEL**2 * (1 - later) / (2 * later),
    }[config.diffusion]
