"""The flow-matching error of a model at given samples, which several estimators use in place of −log p(x).

E_{t,ε} |v(x_t, t) − (x − ε)|² bounds −log p(x) up to a weighting of t (Kingma & Gao 2023, arXiv 2303.00848). Its
gradient, weighted by advantages, is a policy gradient without a path: one pass per image instead of one per step.
"""

from __future__ import annotations

import torch

from sit_rl.ranks.transfer import to_device
from sit_rl.sampling.interpolant import interpolate, target_velocity
from sit_rl.sampling.random_streams import Stream, generators, sample_normal

# From draw to draw a sample's time moves by the golden ratio mod 1, which fills [0, 1) most evenly.
GOLDEN = 0.6180339887498949


def matching_points(
    samples: torch.Tensor, indices: list[int], seed: int, draw: int, as_pretraining: bool = False
) -> tuple[torch.Tensor, ...]:
    """Points at which each sample's error is computed: (t [n], x_t [n, ...], target velocity [n, ...]), float32.

    t is uniform, or logit-normal(0, 1) if `as_pretraining`. (seed, draw, sample index) determines ε and t.
    """
    starts = torch.tensor([g.random() for g in generators(seed, Stream.MATCHING, 0, indices)], dtype=torch.float64)
    u = (starts + draw * GOLDEN) % 1.0
    # u is 0 with probability 2⁻⁵³, where the logit is −∞ and its sigmoid 0, an allowed time
    t = to_device((torch.sigmoid(torch.special.ndtri(u)) if as_pretraining else u).float(), samples.device)
    drawn = sample_normal(seed, Stream.MATCHING, draw + 1, indices, tuple(samples.shape[1:]))
    noise = to_device(drawn, samples.device)
    return t, interpolate(samples, noise, t), target_velocity(samples, noise)


def squared_error(v: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over a sample's dimensions of |v − target|²: [n]."""
    return (v - target).square().flatten(1).mean(1)
