"""The linear path between noise and data, and what follows from a velocity field (SiT, arXiv 2401.08740, §2).

    x_t = t·x₁ + (1−t)·ε,   t = 0 noise → t = 1 data,   velocity u = x₁ − ε.

With v(x, t) = E[u | x_t = x], the rest follows from the linearity of the path. t broadcasts over x.
"""

from __future__ import annotations

import torch


def interpolate(data: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t = t·x₁ + (1−t)·ε for data and noise [n, ...] and t [n]."""
    t = expand(t, data)
    return t * data + (1 - t) * noise


def target_velocity(data: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """u = x₁ − ε, the target of flow matching, for tensors of equal shape."""
    return data - noise


def predicted_data(x: torch.Tensor, v: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """E[x₁ | x_t] = x + (1−t)·v."""
    return x + (1 - t) * v


def score(x: torch.Tensor, v: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """∇ log p_t(x) = (t·v − x)/(1−t); infinite at t = 1."""
    return (t * v - x) / (1 - t)


def expand(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """t [n] as [n, 1, ...] with as many dimensions as `like`."""
    return t.view(-1, *[1] * (like.ndim - 1))
