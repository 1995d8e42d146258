"""The options of a sampler, its grid of times and its noisy steps; equations: `sit_rl.sampling.ode_and_sde_steps`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from sit_rl.sampling import ddpm

METHODS = {
    "ode": ("euler", "heun", "dopri5", "adams"),
    "sde": ("euler", "adams", "ancestral"),
    "discrete": ("ddpm", "ddim"),
}
DIFFUSIONS = ("sigma", "linear", "constant", "sbdm", "decreasing", "increasing-decreasing", "flow_grpo")
LAST_STEPS = ("mean", "euler", "tweedie", "none")
# Options of a single kind and method.
OPTION_OWNERS = dict.fromkeys(("diffusion_norm", "last_step", "window", "window_start"), ("sde", "euler"))
OPTION_OWNERS |= {"eta": ("discrete", "ddim")}
# The official SDE sampler stops at t = 1 − 0.04 and takes one step without noise from there.
LAST_STEP = 0.04
# Flow-GRPO's noise level a (arXiv 2505.05470).
FLOW_GRPO_LEVEL = 0.7
MOST_STEPS = 100_000  # of a sampler, whose grid is a list; published numbers take 250 to 1,000
# Velocity evaluations of dopri5 at its default tolerances on the default model: about 50.
DOPRI5_EVALUATIONS = 50
# The official SiT and DiT samplers guide out[:, :3]: three of a latent's four channels, and all of fewer.
PUBLISHED_GUIDANCE_CHANNELS = 3
# MixGRPO moves its window by one step every 25 training iterations (arXiv 2507.21802).
WINDOW_STRIDE, WINDOW_EVERY = 1, 25


@dataclass(frozen=True)
class SamplerConfig:
    """A solver and its options."""

    kind: Literal["ode", "sde", "discrete"] = "ode"
    """ode or sde: of a velocity (SiT); discrete: the noising chain of a DiT"""
    method: Literal["euler", "heun", "dopri5", "adams", "ancestral", "ddpm", "ddim"] = "heun"
    """ode: euler, heun, dopri5, adams; sde: euler, adams (sigma only, no log-probabilities), ancestral (memoryless);
    discrete: ddpm, ddim"""
    steps: int = 10
    """intervals of the grid; dopri5 ignores it and chooses its own"""
    power: float = 1.0
    """of the grid; above 1 the steps near the data are shorter"""
    diffusion: Literal["sigma", "linear", "constant", "sbdm", "decreasing", "increasing-decreasing", "flow_grpo"] = (
        "sigma"
    )
    """sde: form of w(t); sigma and linear both mean 1 − t; see diffusion_coefficient"""
    diffusion_norm: float = 1.0
    """sde euler: factor of w(t), or of the cosine in decreasing"""
    last_step: Literal["mean", "euler", "tweedie", "none"] = "mean"
    """sde euler: along the SDE's drift, along the ODE's (euler), to the posterior mean (tweedie, the same here), or one
    more noisy step (none)"""
    last_step_size: float = LAST_STEP
    """sde and adams: length of the last step, which has no noise"""
    window_start: int = 0
    """sde euler: first step of the window"""
    window: int = 0
    """sde euler: number of noisy steps; the others follow the ODE (MixGRPO); 0: all steps"""
    eta: float = 0.0
    """ddim: its η; 0 without noise, 1 with DDPM's noise"""
    shift: float = 1.0
    """ode and sde: of the grid; above 1 the steps near the noise are shorter (SD3, arXiv 2403.03206); 1: none"""
    guidance: float = 1.0
    """classifier-free guidance scale; 1: none"""
    guidance_channels: int = 0
    """number of guided channels; 0: all; 3: as in the official SiT and DiT samplers"""
    guidance_from: float = 0.0
    """time from which guidance acts; 0 is noise, 1 is data"""
    guidance_until: float = 1.0
    """time until which guidance acts"""

    def __post_init__(self) -> None:
        """ValueError for options that do not exist or do not fit, with the possible ones."""
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
        if self.method == "ancestral" and self.diffusion != "sigma":
            raise ValueError(
                f"diffusion is {self.diffusion!r}, and sde ancestral has its own noise; leave it out, or use 'euler'"
            )
        self._check_owners()
        self._check_numbers()

    def _check_owners(self) -> None:
        """ValueError for an option that the chosen method would ignore."""
        for name, owner in OPTION_OWNERS.items():
            default = self.__dataclass_fields__[name].default
            if getattr(self, name) != default and (self.kind, self.method) != owner:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which only {' '.join(owner)} has, not "
                    f"{self.kind} {self.method}; leave it at {default!r}"
                )

    def _check_numbers(self) -> None:
        """ValueError for a number out of its range."""
        for name, least in (("steps", 1), ("power", 1), ("window", 0), ("window_start", 0), ("guidance_channels", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"sampler {name} is {getattr(self, name)}; it must be at least {least}")
        if self.steps > MOST_STEPS:
            raise ValueError(f"sampler steps is {self.steps}; it must be at most {MOST_STEPS:,}")
        if self.kind == "discrete" and self.steps > ddpm.TRAIN_STEPS:
            raise ValueError(f"sampler steps is {self.steps}; the noising chain has {ddpm.TRAIN_STEPS}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift is {self.shift}; it must be a positive number")
        if self.shift != 1 and self.kind == "discrete":
            raise ValueError(f"shift is {self.shift}, which a discrete chain does not have; leave it at 1")
        if not 0 < self.diffusion_norm < math.inf:
            raise ValueError(f"diffusion_norm is {self.diffusion_norm}; it must be a positive number")
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
            raise ValueError(
                f"guidance from {self.guidance_from} until {self.guidance_until} is not an interval in [0, 1]"
            )

    def __str__(self) -> str:
        """For example 'ODE heun, 10 steps'."""
        parts = [self.method.upper() if self.kind == "discrete" else f"{self.kind.upper()} {self.method}"]
        if self.method != "dopri5":
            parts.append(f"{self.steps} steps")
        if self.kind == "sde" and self.diffusion != "sigma":
            parts.append(self.diffusion)
        if self.shift != 1:
            parts.append(f"shift {self.shift:g}")
        if self.eta:
            parts.append(f"η {self.eta:g}")
        if self.kind == "sde" and self.window:
            parts.append(f"window {self.window_start}–{self.window_start + self.window - 1}")
        if self.guidance != 1:
            channels = f" on {self.guidance_channels} channels" if self.guidance_channels else ""
            parts.append(f"guidance {self.guidance:g}{channels}")
        return ", ".join(parts)

    @property
    def needs(self) -> str:
        """What the model must predict: 'velocity' or 'noise'."""
        return "noise" if self.kind == "discrete" else "velocity"

    @property
    def has_density(self) -> bool:
        """Whether its noisy steps have log-probabilities, and a policy gradient has at least one step."""
        return self.method != "adams" and bool(trained_steps(self))

    @property
    def memoryless(self) -> bool:
        """Whether its samples are independent of the noise that they start from, in the limit of many steps."""
        euler = self.kind == "sde" and self.method == "euler" and self.diffusion == "sbdm" and not self.window
        return self.method == "ancestral" or (euler and self.diffusion_norm == 1)

    def guides(self, t: float) -> bool:
        """Whether guidance acts where the model is evaluated at t (a timestep of a discrete chain)."""
        time = 1 - t / (ddpm.TRAIN_STEPS - 1) if self.kind == "discrete" else t
        return self.guidance != 1 and self.guidance_from <= time <= self.guidance_until

    def evaluations(self) -> int:
        """Velocity evaluations per sample; a guided one counts twice. For dopri5, which varies, 50 is assumed."""
        count = {"heun": 2 * self.steps - 1, "dopri5": DOPRI5_EVALUATIONS}.get(self.method, self.steps)
        starts = time_grid(self)[: self.steps]
        return round(count * (1 + sum(map(self.guides, starts)) / len(starts)))


# The samplers behind the published numbers (sample_ddp.py of SiT and DiT; guidance is off until asked for). With
# SiT-XL/2 the SDE gives an FID of 8.3, the ODE about 9.4. The official ODE saves 250 states; the number of its
# evaluations is another one.
OFFICIAL = {
    name: replace(sampler, guidance_channels=PUBLISHED_GUIDANCE_CHANNELS)
    for name, sampler in {
        "sit-ode": SamplerConfig("ode", "dopri5", 250),
        "sit-sde": SamplerConfig("sde", "euler", 250, diffusion="sigma", last_step="mean", last_step_size=LAST_STEP),
        "dit-ddpm": SamplerConfig("discrete", "ddpm", 250),
    }.items()
}


def time_grid(config: SamplerConfig) -> list[float]:
    """The grid 0 = t_0 < … < t_steps = 1 (`ode_and_sde_steps` has it); for a discrete chain its timesteps 999 … 0."""
    if config.kind == "discrete":
        return [float(t) for t in ddpm.visited_timesteps(config.steps)]
    steps, end = config.steps, 0.0
    euler_sde = config.kind == "sde" and config.method == "euler"
    stops = config.method == "adams" or (euler_sde and config.last_step != "none")
    if stops and steps > 1:
        steps, end = steps - 1, config.last_step_size
    root = shifted(end, 1 / config.shift) ** (1 / config.power)
    warped = [1 - shifted((1 - i / steps * (1 - root)) ** config.power, config.shift) for i in range(steps + 1)]
    return warped + [1.0] if end else warped


def shifted(sigma: float, shift: float) -> float:
    """The noise level 1 − t of a grid with a shift: sσ/(1 + (s − 1)σ); 1/s undoes s (SD3, arXiv 2403.03206, eq. 23)."""
    return sigma if shift == 1 else shift * sigma / (1 + (shift - 1) * sigma)


def noisy_steps(config: SamplerConfig) -> list[int]:
    """Numbers of the steps that draw noise, in order. All have log-probabilities, except those of adams."""
    last = config.steps - 1
    if config.kind == "ode" or (config.method == "ddim" and not config.eta):
        return []
    if config.kind == "discrete" or config.method in ("adams", "ancestral"):
        return list(range(last))
    grid = time_grid(config)
    return [i for i in range(config.steps) if euler_std(i, grid, config) > 0]


def trained_steps(config: SamplerConfig) -> list[int]:
    """Numbers of the noisy steps that a policy gradient trains: all, except a discrete chain's last, to timestep 0.

    That step is almost deterministic: its β̃ is 1e-4. With 50 steps, a change Δ of the noise moves its mean by 7.9Δ
    standard deviations, but by 1.6Δ in the step before and by at most 0.8Δ in an Euler SDE. The step would contribute
    three quarters of the path's KL, and 98% with 4 steps.
    """
    noisy = noisy_steps(config)
    return noisy[:-1] if config.kind == "discrete" else noisy


def noise_draws(config: SamplerConfig) -> int:
    """Number of draws that `step_noise` must provide: one more than the number of the last noisy step."""
    return max(noisy_steps(config), default=-1) + 1


def slide_window(config: SamplerConfig, iteration: int) -> SamplerConfig:
    """The same sampler with its window where MixGRPO has it at a training iteration.

    The window moves and then stays at the end, just before the last step.
    """
    furthest = max(config.steps - 1 - config.window, 0)
    start = config.window_start + iteration // WINDOW_EVERY * WINDOW_STRIDE
    return replace(config, window_start=min(start, furthest)) if config.window else config


def in_window(i: int, config: SamplerConfig) -> bool:
    """Whether step i is inside the window, so that it is noisy."""
    return not config.window or config.window_start <= i < config.window_start + config.window


def euler_std(i: int, grid: list[float], config: SamplerConfig) -> float:
    """√(2wh) of step i of an Euler SDE; 0 outside the window, and at the last step unless last_step is 'none'."""
    if not in_window(i, config) or (i == config.steps - 1 and config.last_step != "none"):
        return 0.0
    return math.sqrt(2 * diffusion_coefficient(grid[i], grid, config) * (grid[i + 1] - grid[i]))


def diffusion_coefficient(t: float, grid: list[float], config: SamplerConfig) -> float:
    """w(t) in SiT's forms, with c = diffusion_norm, and in Flow-GRPO's.

    sigma, linear c(1 − t); constant c; sbdm c(1 − t)/t; decreasing ¼(c·cos πt + 1)²; increasing-decreasing c·sin² πt;
    flow_grpo c·a²(1 − t)/2t. DanceGRPO uses constant with c = η²/2.

    Two forms are infinite at t = 0. There the next grid point t₁ replaces every t of sbdm, and, as in Flow-GRPO's code,
    only the t in the denominator of flow_grpo, which becomes a²/2t₁.
    """
    norm, later = config.diffusion_norm, max(t, grid[1])
    return {
        "sigma": norm * (1 - t),
        "linear": norm * (1 - t),
        "constant": norm,
        "sbdm": norm * (1 - later) / later,
        "decreasing": 0.25 * (norm * math.cos(math.pi * t) + 1) ** 2,
        "increasing-decreasing": norm * math.sin(math.pi * t) ** 2,
        "flow_grpo": norm * FLOW_GRPO_LEVEL**2 * (1 - t) / (2 * later),
    }[config.diffusion]
