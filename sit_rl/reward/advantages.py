"""Advantages from rewards, and the choice of the samples that train."""

from __future__ import annotations

import torch

# Rewards whose relative spread is below this are equal: float64 rounding of a sum of N terms makes as much.
CONSTANT = 1e-12


def advantages(rewards: torch.Tensor, labels: torch.Tensor, how: str, clip: float) -> torch.Tensor:
    """(r − mean)/std, over the batch or within each class, clipped at ±clip: float64 [n].

    Within a class, because the generator is given its labels: it does not choose differences between classes.
    The only sample of a class gets 0. ValueError if all rewards are equal: they give no gradient.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError(
            f"{int((~torch.isfinite(rewards)).sum())} of {len(rewards)} rewards are NaN or infinite; "
            "look at the features of that step"
        )
    if rewards.std() <= CONSTANT * rewards.abs().max():
        raise ValueError(
            f"all {len(rewards)} rewards equal {rewards[0]:.6g}: nothing distinguishes the samples, "
            "so nothing can be learned; look at the images, and with --credit subset raise --candidates above 1"
        )
    out = torch.zeros_like(rewards, dtype=torch.float64)
    groups = (
        [torch.arange(len(rewards))]
        if how == "batch"
        else [torch.nonzero(labels == c).flatten() for c in labels.unique()]
    )
    for rows in groups:
        r = rewards[rows].double()
        if len(rows) > 1 and r.std() > 0:
            out[rows] = (r - r.mean()) / r.std()
    return out.clamp(-clip, clip)


def select(advantage: torch.Tensor, fraction: float) -> torch.Tensor:
    """Rows of the best `fraction` of all samples (the paper's "global top 25%"), ascending.

    Of equal values, such as those of one subset, the first rows are taken.
    """
    count = max(1, round(fraction * len(advantage)))
    return torch.argsort(advantage, descending=True, stable=True)[:count].sort().values
