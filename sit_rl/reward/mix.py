"""A mix of rewards: each component is standardised on its own, then all are weighted and averaged.

A component's credits are in units of its own distance.  Standardised on its own, none of them drowns the others (GDPO,
arXiv 2601.05242).  With weights w, fades f and standardised credits z,

    A = Σ_c w_c f_c z_c / Σ_c w_c.

Components that disagree average to less than one standard deviation, so the step is shorter where they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sit_rl.reward.advantages import CONSTANT, advantages


@dataclass(frozen=True)
class Part:
    """One component's part of a step.

    name    for the log and errors
    credit  float64 [n], of the step's images; higher is better
    weight  above 0
    fade    factor of the component's advantages, from 0 to 1
    rounding  how far the credits of equal images may differ
    """

    name: str
    credit: torch.Tensor
    weight: float = 1.0
    fade: float = 1.0
    rounding: float = 0.0


@dataclass(frozen=True)
class Mix:
    """The advantages of a mix.

    advantage     float64 [n]
    shares        each component's share of the variance of the advantages, Cov(part, A)/Var A: the sum is 1, and a
                  component that pulls against the others has a share below 0
    correlations  {component: {component: correlation of their standardised credits}}, each pair once
    """

    advantage: torch.Tensor
    shares: dict[str, float]
    correlations: dict[str, dict[str, float]]


def mix(parts: Sequence[Part], labels: torch.Tensor, how: str, clip: float) -> Mix:
    """The advantages of all parts together; `how` and `clip` as in `advantages`.

    ValueError, with the component's name, where its credits are NaN or equal; and where all of them cancel.
    """
    _check(parts)
    standard = {part.name: _standardised(part, labels, how, clip) for part in parts}
    total = sum(part.weight for part in parts)
    pulls = {part.name: part.weight * part.fade * standard[part.name] / total for part in parts}
    advantage = torch.stack(list(pulls.values())).sum(0)
    largest = max(float(pull.abs().max()) for pull in pulls.values())
    if largest > 0 and float(advantage.std()) <= CONSTANT * largest:
        raise ValueError(f"the components {', '.join(pulls)} cancel: their advantages add up to 0; change the weights")
    shares = {name: _share(pull, advantage) for name, pull in pulls.items()}
    return Mix(advantage, shares, _correlations(standard))


def _check(parts: Sequence[Part]) -> None:
    """ValueError for no part, two of one name, a weight that is not positive, credits of different length."""
    names = [part.name for part in parts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not parts or repeated:
        raise ValueError(f"a mix needs components of different names, got {', '.join(names) or 'none'}")
    for part in parts:
        if not 0 < part.weight < float("inf"):
            raise ValueError(f"component {part.name} has weight {part.weight}; it must be a positive number")
        if part.credit.shape != parts[0].credit.shape:
            raise ValueError(
                f"component {part.name} has credits {tuple(part.credit.shape)}, {names[0]} has "
                f"{tuple(parts[0].credit.shape)}; both must have one for each image of the step"
            )


def _standardised(part: Part, labels: torch.Tensor, how: str, clip: float) -> torch.Tensor:
    try:
        return advantages(part.credit, labels, how, clip, part.rounding)
    except ValueError as error:
        raise ValueError(f"reward component {part.name}: {error}") from None


def _share(pull: torch.Tensor, advantage: torch.Tensor) -> float:
    """Cov(pull, A)/Var A; 0 where A does not vary, which is a run that has faded out."""
    apart = advantage - advantage.mean()
    variance = float(apart @ apart)
    return float((pull - pull.mean()) @ apart) / variance if variance > 0 else 0.0


def _correlations(standard: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Pearson correlation of each pair."""
    centred = {name: z - z.mean() for name, z in standard.items()}
    units = {name: z / z.norm().clamp(min=torch.finfo(z.dtype).tiny) for name, z in centred.items()}
    names = list(units)
    return {
        name: {other: float(units[name] @ units[other]) for other in names[i + 1 :]}
        for i, name in enumerate(names[:-1])
    }
