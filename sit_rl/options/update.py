"""How scored samples change the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sit_rl.models.averages import gamma_of
from sit_rl.options.option import check_bounds, option

Estimator = Literal[
    "advantage_matching", "sde_policy_gradient", "rejection", "pretraining", "adjoint_matching", "merging"
]


@dataclass(frozen=True)
class UpdateOptions:
    """How scored samples change the model."""

    estimator: Estimator = option("advantage_matching")
    updates: int | None = option(None, "optimiser steps a training step; default: the estimator's", least=1)
    minibatch: int | None = option(None, "images an optimiser step; default: the estimator's", least=1)
    lr: float | None = option(None, "learning rate of AdamW; default: the estimator's", above=0)
    lr_schedule: Literal["constant", "cosine"] = option("cosine")
    step_control: bool = option(
        False,
        "halve the learning rate after a step that did not change the distance as predicted; it recovers by itself",
    )
    warmup: int = option(2, "training steps over which the rate rises from 0", least=0)
    momentum: float | None = option(
        None,
        "β₁ of AdamW: how strongly earlier gradients still act; default: the estimator's",
        least=0,
    )
    anchor: float | None = option(
        None, "advantage_matching: weight that holds the velocity near the base model's; default: the estimator's"
    )
    negative: float = option(1.0, "advantage_matching: weight of negative advantages")
    tilt: float = option(
        1.0,
        "adjoint_matching: how far images move towards the reward, in nats per standard deviation of the credits",
        above=0,
    )
    adjoint_steps: int = option(5, "adjoint_matching: steps of a path that an optimiser step trains", least=1)
    merge_std: float = option(1.0, "merging: standard deviation of the coefficients' logits (the paper's 1)", above=0)
    merge_search: Literal["policy", "grid"] = option(
        "policy", "merging: learn the mean of the coefficients, or take the best point of an even grid, the control"
    )
    clip_range: float = option(
        1e-4,
        "sde_policy_gradient: clip of the ratio at 4·32·32 dimensions, rescaled by √(4096/dimension)",
        above=0,
    )
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    ema: float = option(0.9, "decay per optimiser step of the averaged weights that are evaluated")
    ema_extra: tuple[float, ...] = option((), "decays of further averages, kept in the checkpoints")
    ema_power: tuple[float, ...] = option(
        (), "relative widths σ_rel of power-function averages, such as 0.05 0.1: see sit_rl/ema.py"
    )
    ema_snapshot_every: int = option(
        0,
        "steps between snapshots of the power-function averages, from which any other is made after the run; "
        "0 means none",
        least=0,
    )
    lora: int = option(
        0,
        "rank of LoRA terms that are trained in place of the weights (pip install 'fastfid[lora]'); 0: the weights",
        least=0,
    )

    def check(self) -> None:
        """ValueError for a number that no update can use."""
        check_bounds(self)
        if self.momentum is not None and self.momentum >= 1:
            raise ValueError(f"--momentum is {self.momentum}; it must be in [0, 1)")
        for name, decay in (("ema", self.ema), *(("ema-extra", decay) for decay in self.ema_extra)):
            if not 0 <= decay < 1:
                raise ValueError(f"--{name} is {decay}; it must be in [0, 1)")
        for sigma in self.ema_power:
            try:
                gamma_of(sigma)
            except ValueError as error:
                raise ValueError(f"--ema-power {sigma}: {error}") from None
        if self.ema_snapshot_every and not self.ema_power:
            raise ValueError(
                "--ema-snapshot-every needs --ema-power: the widths to take snapshots of, such as 0.05 0.1"
            )
