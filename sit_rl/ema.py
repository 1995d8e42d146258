"""Exponential moving average of a module's parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Keeps `module`, a frozen copy whose parameters follow θ̄ ← decay·θ̄ + (1 − decay)·θ."""

    def __init__(self, source: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay is {decay}; it must be in [0, 1)")
        self.decay = decay
        self.module = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, decay: float | None = None) -> None:
        """Move towards `source`, by `decay` where given, else by the average's own."""
        weight = 1 - (self.decay if decay is None else decay)
        targets = [p.data for p in self.module.parameters()]
        torch._foreach_lerp_(targets, [p.data for p in source.parameters()], weight)
