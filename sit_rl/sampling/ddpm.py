"""Reverse steps of DiT's discrete diffusion, as Gaussians with log-probabilities.

The chain x_τ = √ᾱ_τ x₀ + √(1 − ᾱ_τ) ε has 1000 steps, β from 1e-4 to 0.02 in equal steps (Ho et al. 2020, arXiv
2006.11239); sampling visits S of them. With ᾱ here and ᾱ' at the next visited timestep (1 at the data), α = ᾱ/ᾱ',
β = 1 − α and ε̂ the model's noise, a step is N(μ, σ²):

    DDPM   μ = (x − β/√(1 − ᾱ) ε̂)/√α          log σ² = f log β + (1 − f) log β̃,  β̃ = β(1 − ᾱ')/(1 − ᾱ)
    DDIM   μ = √(ᾱ'/ᾱ) x + (√(1 − ᾱ' − σ²) − √(ᾱ'(1 − ᾱ)/ᾱ)) ε̂,  σ = η √(β̃)

f = (1 + the model's second output)/2 interpolates between the bounds of the variance (Nichol & Dhariwal 2021, arXiv
2102.09672, eq. 15). DDIM's σ is that of Song et al. 2021 (arXiv 2010.02502, eq. 16): η = 0 is deterministic, and η = 1
has DDPM's smaller variance. The means are the published ones without x̂₀, whose computation would cancel digits where ᾱ
is 4e-5. As in DiT's sampler, the last step has no noise, and x̂₀ is never clipped.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate, repeat

import numpy as np
import numpy.typing as npt
import torch

from sit_rl.sampling.step_distribution import GaussianStep

TRAIN_STEPS, BETA_FIRST, BETA_LAST = 1000, 1e-4, 0.02


@lru_cache
def signal_levels() -> npt.NDArray[np.float64]:
    """ᾱ_τ for τ = 0 … 999, float64."""
    return np.cumprod(1 - np.linspace(BETA_FIRST, BETA_LAST, TRAIN_STEPS), dtype=np.float64)


@lru_cache
def visited_timesteps(steps: int) -> tuple[int, ...]:
    """The timesteps of an S-step sampler from 999 down to 0, evenly spaced and rounded as in DiT's respacing.

    A sampler of one step visits only timestep 0, as in that code.
    """
    stride = (TRAIN_STEPS - 1) / (steps - 1) if steps > 1 else 0.0
    # Sums and not products: the official spacing adds, and its last bit decides ties of round().
    ascending = accumulate(repeat(stride, steps - 1), initial=0.0)
    return tuple(round(t) for t in ascending)[::-1]


def reverse_step(outputs: torch.Tensor, x: torch.Tensor, i: int, steps: int, method: str, eta: float) -> GaussianStep:
    """Step i of `steps` (0 is the first, at the noise) by 'ddpm' or 'ddim'.

    outputs  [n, 2C, H, W], the model's ε̂ and its place of the variance, at x and visited_timesteps(steps)[i]
    x        [n, C, H, W]
    eta      ddim's η in [0, 1]
    """
    noise, place = outputs.chunk(2, dim=1)
    here, there = levels(i, steps)
    if method == "ddim":
        std = eta * math.sqrt(posterior_variance(i, steps)) if i < steps - 1 else 0.0
        direction = math.sqrt(1 - there - std**2) - math.sqrt(there * (1 - here) / here)
        return GaussianStep(math.sqrt(there / here) * x + direction * noise, std)
    beta = 1 - here / there
    mean = (x - beta / math.sqrt(1 - here) * noise) / math.sqrt(1 - beta)
    return GaussianStep(mean, learned_std(place, i, steps) if i < steps - 1 else 0.0)


def levels(i: int, steps: int) -> tuple[float, float]:
    """ᾱ at the start and at the end of step i."""
    visited = [float(signal_levels()[t]) for t in visited_timesteps(steps)] + [1.0]
    return visited[i], visited[i + 1]


def posterior_variance(i: int, steps: int) -> float:
    """β̃ of step i, the variance of q(x' | x, x₀)."""
    here, there = levels(i, steps)
    return (1 - here / there) * (1 - there) / (1 - here)


def learned_std(place: torch.Tensor, i: int, steps: int) -> torch.Tensor:
    """σ of step i of DDPM, except the last: √β̃ for `place` −1, √β for 1."""
    here, there = levels(i, steps)
    low, high = math.log(posterior_variance(i, steps)), math.log(1 - here / there)
    fraction = (1 + place) / 2
    return torch.exp(0.5 * (fraction * high + (1 - fraction) * low))
