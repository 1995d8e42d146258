"""Advantages from rewards, and the choice of the samples that train."""

from __future__ import annotations

import math

import torch

# Rewards whose relative spread is below this are equal: float64 rounding of a sum of N terms makes as much.
CONSTANT = 1e-12
# Rewards of a coarser dtype are equal if they differ by this many roundings: one of each of the two.
ROUNDINGS = 2


def advantages(
    rewards: torch.Tensor, labels: torch.Tensor, how: str, clip: float, rounding: float = 0.0
) -> torch.Tensor:
    """(r − mean)/std, over the batch or within each class, clipped at ±clip: float64 [n].

    rounding  how far equal rewards may differ, beside the rounding of their own dtype

    Within a class, because the generator is given its labels: it does not choose differences between classes.
    A class whose rewards are equal up to rounding gets 0, so does the only sample of a class. ValueError if all
    rewards are equal: they give no gradient.
    """
    rewards = rewards if rewards.is_floating_point() else rewards.double()
    if not torch.isfinite(rewards).all():
        raise ValueError(
            f"{int((~torch.isfinite(rewards)).sum())} of {len(rewards)} rewards are NaN or infinite; "
            "look at the features of that step"
        )
    if len(rewards) > 1 and equal(rewards, rounding):
        raise ValueError(
            f"all {len(rewards)} rewards equal {rewards[0]:.6g}: nothing distinguishes the samples, "
            "so nothing can be learned; look at the images, and with --credit subset raise --candidates above 1"
        )
    out = torch.zeros_like(rewards, dtype=torch.float64)
    for rows in _groups(labels, how):
        if not equal(rewards[rows], rounding):
            out[rows] = standard_scores(rewards[rows].double())
    return out.clamp(-clip, clip)


def group_spreads(rewards: torch.Tensor, labels: torch.Tensor, how: str, rounding: float = 0.0) -> torch.Tensor:
    """The standard deviation that each reward was divided by, float64 [n]; infinite in a group of equal rewards."""
    out = torch.full_like(rewards, torch.inf, dtype=torch.float64)
    for rows in _groups(labels, how):
        if not equal(rewards[rows], rounding):
            out[rows] = rewards[rows].double().std()
    return out


def _groups(labels: torch.Tensor, how: str) -> list[torch.Tensor]:
    """Rows of each group whose rewards are compared: the batch, or each class."""
    if how == "batch":
        return [torch.arange(len(labels))]
    return [torch.nonzero(labels == c).flatten() for c in labels.unique()]


def equal(rewards: torch.Tensor, rounding: float = 0.0) -> bool:
    """Whether rewards [n ≥ 1] differ by no more than the rounding of their dtype, at any magnitude, or `rounding`."""
    if float(rewards.max()) - float(rewards.min()) <= rounding:
        return True
    tolerance = max(CONSTANT, ROUNDINGS * torch.finfo(rewards.dtype).eps)
    r = in_units(rewards.double())
    return bool(r.max() - r.min() <= tolerance * r.abs().max())


def standard_scores(r: torch.Tensor) -> torch.Tensor:
    """(r − mean)/std of unequal values float64 [n ≥ 2]."""
    r = in_units(r)
    return (r - r.mean()) / r.std()


def in_units(r: torch.Tensor) -> torch.Tensor:
    """Values float64 [n ≥ 1] divided by a power of two, so that the largest is between 1 and 2 and squares are finite.

    The division is exact. Zeros stay zeros.
    """
    return r / 2.0 ** (math.frexp(float(r.abs().max()))[1] - 1)


def select(advantage: torch.Tensor, fraction: float) -> torch.Tensor:
    """Rows of the best `fraction` of all samples (the paper's "global top 25%"), ascending.

    Of equal values, such as those of one subset, the first rows are taken.
    """
    count = max(1, round(fraction * len(advantage)))
    return torch.argsort(advantage, descending=True, stable=True)[:count].sort().values
