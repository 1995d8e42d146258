"""Shortens the steps after one that changed the distance less than predicted.

S are the images of a step, S' those of the next one, and D is the distance of a set to the real images. Exchange each
image of S, alone, for one of S' of the same class:

    predicted   P = Σ_i [D(S with image i exchanged) − D(S)],       realised   R = D(S') − D(S).

P is the first order in the change of the distribution. Of the second order it has only what the noise of independent
samples makes, and R has the same, so R − P is the curvature along the step. For a quadratic distance R/P = 1 − s/2,
where the step has s times the length that leads to the minimum along its line: 1/2 at the minimum, 0 for twice that
length, which gains nothing, and below 0 beyond.

With several components, P and R are sums over them, each in units of its credits' standard deviation and with its
weight. A step should improve the distance. It has failed where

    R − LEAST_RATIO·min(P, 0) > √(2/n):

where less than LEAST_RATIO of what was predicted has come true, or where the distance rose, by more than the noise of
two sets of n images. It halves the learning rate. A step of which at least ENOUGH_RATIO came true had at most 0.8 of
the length to the minimum, so that one a quarter longer does not pass it: it raises the rate by a quarter, up to the
schedule's. Other steps leave it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastfid import DensityRatioReward, FrechetReward, PreparedSet
from fastfid.rewards.credit import change_each
from sit_rl.reward.components import Component, RewardSide
from sit_rl.reward.mix import Part
from sit_rl.reward.swap_reward import named, prepared_sets

# Steps that went well had R/P of 0.46 to 0.81, those that had gone too far at most 0.30 (docs/training.md). By the
# parabola, 0.4 is a step of 1.2 times the length to the minimum.
LEAST_RATIO = 0.4
# 1 − 0.8/2, the ratio of a step of 0.8 of the length to the minimum.
ENOUGH_RATIO = 0.6
# Halving answers a step of twice the useful length. 1/16 of a rate that was too high learns slowly and still measures.
LOWER, RAISE, LEAST_PACE = 0.5, 1.25, 1 / 16


@dataclass(frozen=True)
class Agreement:
    """What was predicted of a step and what it did.

    predicted, realised  P and R of all components, in standard deviations of a credit
    noise                what R may exceed its bound by: √(2/n), the spread of the difference of two means of n credits;
                         between two sets of one model, R had 0.44 times this spread
    promised, change     P and R of the first component, in units of its distance
    """

    predicted: float
    realised: float
    noise: float
    promised: float
    change: float

    @property
    def failed(self) -> bool:
        """Whether the step was too long."""
        return self.realised - LEAST_RATIO * min(self.predicted, 0.0) > self.noise

    @property
    def short(self) -> bool:
        """Whether a step a quarter longer would still have been a good one."""
        return self.realised <= ENOUGH_RATIO * self.predicted < 0


@dataclass
class StepControl:
    """The factor of the learning rate, and the images of the step before.

    pace    factor of the schedule's learning rate, from LEAST_PACE to 1
    rows    float32 [n, d] of the step before, in the order of the labels; None before the first step
    labels  int64 [n]
    sets    the same images under each component that is compared; None after a resume
    """

    pace: float = 1.0
    rows: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    sets: list[PreparedSet] | None = None

    def after_step(
        self, side: RewardSide, parts: Sequence[Part], rows: torch.Tensor, labels: torch.Tensor
    ) -> Agreement | None:
        """Compare a step's images with those of the step before, and set the pace; None after the first step.

        parts   of the mix, for the units and weights of the components
        rows    float32 [n, d] of the step's images, labels int64 [n]
        """
        order = torch.argsort(labels, stable=True)  # so that exchanged images have the same class
        rows, labels = rows[order], labels[order]
        chosen, agreement = comparable(side), None
        some = [side.components[i] for i in chosen]
        sets = prepared_sets(some, rows, labels)
        if self.rows is not None and self.labels is not None:
            before = self.sets or prepared_sets(some, self.rows, self.labels)
            agreement = compare(some, [parts[i] for i in chosen], before, sets, rows, labels)
            if agreement.failed:
                self.pace = max(LEAST_PACE, self.pace * LOWER)
            elif agreement.short:
                self.pace = min(1.0, self.pace * RAISE)
        self.rows, self.labels, self.sets = rows, labels, sets
        return agreement


def compare(
    components: Sequence[Component],
    parts: Sequence[Part],
    before: Sequence[PreparedSet],
    after: Sequence[PreparedSet],
    rows: torch.Tensor,
    labels: torch.Tensor,
) -> Agreement:
    """What the images of the sets `after` promised to change in the distance of those `before`, and what they changed.

    rows  float32 [n, d] of `after`, and labels int64 [n]; row i has the class of image i of `before`
    """
    count = len(rows)
    firsts: list[tuple[float, float]] = []
    predicted = realised = 0.0
    total = sum(part.weight for part in parts)
    for component, part, first, last in zip(components, parts, before, after, strict=True):
        with named(component):
            promised = _sum_of_exchanges(first, rows[:, component.columns], labels)
        change = last.distance - first.distance
        firsts.append((promised, change))
        unit = part.weight / total / (count * max(float(part.credit.std()), torch.finfo(torch.float64).tiny))
        predicted, realised = predicted + unit * promised, realised + unit * change
    return Agreement(predicted, realised, math.sqrt(2 / count), *firsts[0])


def _sum_of_exchanges(prepared: PreparedSet, rows: torch.Tensor, labels: torch.Tensor) -> float:
    """Σ_i of the exact changes by exchanging image i alone for row i."""
    index = torch.arange(prepared.count, device=rows.device)
    return float(change_each(prepared, index, rows, labels.to(rows.device)).sum())


def comparable(side: RewardSide) -> list[int]:
    """Numbers of the components whose distance means the same for two sets.

    A discriminator is fitted to each set anew, so that its logits of two sets have no common scale.
    """
    return [i for i, each in enumerate(side.components) if not isinstance(each.reward, DensityRatioReward)]


def not_comparable(side: RewardSide, images: int) -> str | None:
    """Why steps of so many images cannot be compared, in words; None if they can.

    An image in a direction of features that the others do not span changes FD by the root of its variance, of which no
    series has a first order. With twice as many images as features this does not happen.
    """
    if not comparable(side):
        return "a discriminator that is fitted to every set anew says nothing of the change between two"
    for component in side.components:
        d = component.columns.stop - component.columns.start
        if isinstance(component.reward, FrechetReward) and images < 2 * d:
            return f"{images} images a step are fewer than twice the {d} features of {component.name}"
    return None
