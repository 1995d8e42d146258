"""The learning rate of a step: constant, or a warm-up and a cosine."""

from __future__ import annotations

import math

import torch

from sit_rl.options.option import filled_in
from sit_rl.options.update import UpdateOptions


def warmup_cosine(progress: float, warmup: float = 0.02) -> float:
    """Learning-rate factor at `progress` in [0, 1]: linear up to 1 at `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def learning_rate(update: UpdateOptions, step: int, steps: int) -> float:
    """The rate of step `step` of `steps`: a linear warm-up, then constant or half a cosine to 0."""
    if update.lr_schedule == "cosine":
        return filled_in(update.lr) * warmup_cosine((step + 1) / (steps + 1), update.warmup / steps)
    return filled_in(update.lr) * min(1.0, (step + 1) / max(1, update.warmup))


def set_learning_rate(
    update: UpdateOptions, optimizer: torch.optim.Optimizer, step: int, steps: int, pace: float = 1.0
) -> None:
    """Give the optimiser the rate of step `step` of `steps`.

    pace  factor of it, by which the step control shortens steps
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(update, step, steps) * pace
