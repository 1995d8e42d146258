"""Exponential moving averages of a module's parameters.

Power-function averages (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv
2312.02696, §3) give the weights after update τ a weight of τ^γ. After t updates,

    θ̄(t) = β θ̄(t−1) + (1 − β) θ(t),   β = (1 − 1/t)^(γ+1),

and the profile's standard deviation is σ_rel·t with σ_rel² = (γ+1)/((γ+2)²(γ+3)).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

Trained = TypeVar("Trained", bound=nn.Module)
# Smallest σ_rel, a thousandth of the run. The paper's are 0.05 to 0.25.
NARROWEST = 1e-3


def copy_sharing(source: Trained, shared: Iterable[torch.Tensor]) -> Trained:
    """A deep copy of a module that holds the tensors of `shared` in common with it."""
    return copy.deepcopy(source, {id(tensor): tensor for tensor in shared})


class EMA(Generic[Trained]):
    """Keeps `module`, a frozen copy whose parameters follow θ̄ ← decay·θ̄ + (1 − decay)·θ.

    shared  parameters of the source that never change, which the copy holds in common with it
    """

    def __init__(self, source: Trained, decay: float, shared: Iterable[torch.Tensor] = ()):
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay is {decay}; it must be in [0, 1)")
        self.decay = decay
        common = {id(tensor): tensor for tensor in shared}
        self.module: Trained = copy_sharing(source, common.values()).eval().requires_grad_(False)
        self._own = [i for i, p in enumerate(source.parameters()) if id(p) not in common]  # numbers of the others

    @torch.no_grad()
    def update(self, source: nn.Module, decay: float | None = None) -> None:
        """Move towards `source`, with `decay` if it is given, else with the decay of this average."""
        weight = 1 - (self.decay if decay is None else decay)
        ours, theirs = _local(self.module), _local(source)
        torch._foreach_lerp_([ours[i] for i in self._own], [theirs[i] for i in self._own], weight)


def _local(module: nn.Module) -> list[torch.Tensor]:
    """The data of the parameters; of a sharded parameter, this rank's part."""
    return [p.to_local() if hasattr(p, "to_local") else p.data for p in module.parameters()]


class PowerEMA(EMA[Trained]):
    """The power-function average of relative width `sigma_rel`; equations at the top of this file."""

    def __init__(self, source: Trained, sigma_rel: float, shared: Iterable[torch.Tensor] = ()):
        super().__init__(source, 0.0, shared)
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)

    def update_after(self, source: nn.Module, updates: int) -> None:
        """Move towards `source`, the weights after `updates` updates (from 1)."""
        self.update(source, decay=(1 - 1 / updates) ** (self.gamma + 1))


def gamma_of(sigma_rel: float) -> float:
    """The exponent γ ≥ 0 whose profile has the relative standard deviation `sigma_rel`, from NARROWEST to 1/√12.

    With s = σ_rel⁻², γ is the largest real root of the cubic (γ+2)²(γ+3) = s(γ+1). ValueError outside the interval.
    """
    widest = 12**-0.5  # γ = 0: all updates have the same weight
    if not NARROWEST <= sigma_rel <= widest:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; it must be in [{NARROWEST}, {widest:.4f}], where the latter is the plain mean"
        )
    s = sigma_rel**-2
    roots = np.roots([1, 7, 16 - s, 12 - s])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-6 * np.abs(roots).max()].real.max()))
