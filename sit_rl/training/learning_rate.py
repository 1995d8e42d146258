"""The learning rate of a step: constant, or a warm-up and a cosine."""

from __future__ import annotations

import math

from sit_rl.config import Config
from sit_rl.training.state import State


def warmup_cosine(progress: float, warmup: float = 0.02) -> float:
    """Learning-rate factor at `progress` in [0, 1]: linear up to 1 at `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def set_learning_rate(config: Config, state: State) -> None:
    """Linear warm-up over `warmup` steps, then constant, or half a cosine down to zero at the end."""
    if config.lr_schedule == "cosine":
        factor = warmup_cosine((state.step + 1) / (config.steps + 1), config.warmup / config.steps)
    else:
        factor = min(1.0, (state.step + 1) / max(1, config.warmup))
    for group in state.learner.optimizer.param_groups:
        group["lr"] = config.lr * factor
