"""A model whose weights are a weighted mean of other models', and the policy that chooses the coefficients.

    θ(z) = Σ_j c_j θ_j,   c = softmax(z),   z ~ N(μ, std²)

μ is the output of a network of three layers for a constant input (arXiv 2607.02291, its variant of merging). The last
layer begins at 0, so that the first mean is that of all members.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sit_rl.models.sit import SiT

HIDDEN = 64  # width of the policy's layers: its output is one constant vector, for which any width is enough


class Members:
    """The models that are merged. They never change, so copies of a policy share them.

    template  a model of the same shape, prepared for the device; merged models are copies of it with other weights
    """

    def __init__(self, template: SiT, models: Sequence[SiT]):
        self.template = template
        states = [dict(model.named_parameters()) for model in models]
        self.weights = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def __deepcopy__(self, memo: dict[int, Any]) -> Members:
        return self

    @torch.no_grad()
    def merged(self, coefficients: torch.Tensor) -> SiT:
        """A new model with the weights Σ_j c_j θ_j, for c [J] whose sum is 1; summed in float64."""
        model = copy.deepcopy(self.template).requires_grad_(False)
        for name, parameter in model.named_parameters():
            of_member = self.weights[name]
            c = coefficients.double().to(of_member.device).view(-1, *[1] * (of_member.ndim - 1))
            parameter.copy_((c * of_member.double()).sum(0))
        return model


class MergePolicy(nn.Module):
    """A Gaussian over the logits z [J] of the coefficients, or the best of a list of them.

    grid  logits [P, J] to search instead of the Gaussian's mean; None: the mean is learned
    """

    def __init__(self, members: Members, std: float, seed: int, grid: torch.Tensor | None = None):
        super().__init__()
        self.members, self.std, self.grid = members, std, grid
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(1, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU()]
            last = nn.Linear(HIDDEN, len(members))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)
        # sum of rewards and number of visits of each point of the grid; in checkpoints, but not trained by gradients
        self.searched = None if grid is None else nn.Parameter(torch.zeros(2, len(grid)), requires_grad=False)
        self.to(next(iter(members.weights.values())).device)

    @property
    def device(self) -> torch.device:
        """Where the coefficients are: with the members."""
        return next(self.network.parameters()).device

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """log N(z; μ, std²) float32 [n], summed over the coefficients, for z [n, J]."""
        u: torch.Tensor = (z - self.network(z.new_ones(1, 1))) / self.std
        return (-0.5 * u.square() - math.log(self.std) - 0.5 * math.log(2 * math.pi)).sum(1)

    @torch.no_grad()
    def mean(self) -> torch.Tensor:
        """Logits [J] of the merged model: the Gaussian's mean, or the point of the grid with the best mean reward."""
        mean: torch.Tensor = self.network(torch.ones(1, 1, device=self.device))[0]
        if self.grid is None or self.searched is None or not bool(self.searched.any()):
            return mean
        total, visits = self.searched
        rewards = torch.where(visits > 0, total / visits.clamp(min=1), -torch.inf)
        return self.grid[int(rewards.argmax())].to(mean)

    def coefficients(self) -> torch.Tensor:
        """Coefficients [J] of the merged model."""
        return torch.softmax(self.mean(), 0)

    def model(self) -> SiT:
        """The merged model at the mean."""
        return self.members.merged(self.coefficients())


def simplex_grid(members: int, most: int) -> torch.Tensor:
    """Logits float32 [P ≤ most, J] of the finest even grid on the coefficients that has at most `most` points.

    Coefficients are k/n with Σ k = n. n is the largest with at most `most` points, and at least 1, which is the members
    alone. A coefficient of 0 has the logit −30, e⁻³⁰ = 1e-13.
    """
    parts = 1
    while math.comb(parts + members, members - 1) <= most:
        parts += 1
    points = torch.tensor(_compositions(parts, members), dtype=torch.float64) / parts
    return points.log().clamp(min=-30).float()


def _compositions(total: int, count: int) -> list[list[int]]:
    if count == 1:
        return [[total]]
    return [[first, *rest] for first in range(total + 1) for rest in _compositions(total - first, count - 1)]
