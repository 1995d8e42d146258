"""The paper's estimator: a clipped policy gradient through the steps of an SDE sampler (Flow-GRPO, arXiv 2505.05470).

    L = −E_x (1/S) Σ_i min( A ρ_i, A clip(ρ_i, 1 − c, 1 + c) ),
    ρ_i = exp( log p_θ(x_{i+1}|x_i) − log p_old(x_{i+1}|x_i) ),

over the S noisy steps of a path; log-probabilities are means over dimensions. Every step costs one pass, so an image
costs S of them where matching costs one.

**Clip range.** A mean-over-dimensions log-ratio of a fixed per-dimension shift δ has a spread |δ|/√d, so the paper's
c = 1e-4 at d = 4·32·32 = 4096 becomes c·√(4096/d) at another d: the clip then acts at the same per-dimension shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from sit_rl.estimators.base import Estimator, Minibatch
from sit_rl.models.sit import SiT
from sit_rl.rollout import Rollout, bind
from sit_rl.samplers import SamplerConfig, time_grid, transition

PAPER_DIMENSIONS = 4 * 32 * 32
# Before the first update the ratio is 1 up to float32 rounding of a mean of d squares, about 1e-6; a larger departure
# means that rollout and update disagree about the policy (dropout left on, another precision), and nothing is learned.
RATIO_TOLERANCE = 2e-5


class SDEPolicyGradient(Estimator):
    """One term for every noisy step of the path."""

    keeps_path = True

    @property
    def sampler(self) -> SamplerConfig:
        """Rollouts follow the SDE, whose steps have densities."""
        return self.config.rollout_sde

    @property
    def clip(self) -> float:
        """Half-width of the ratio's trust interval at this sample dimension."""
        return self.config.clip_range * math.sqrt(PAPER_DIMENSIONS / math.prod(self.setting.sample_shape))

    def losses(self, model: SiT, rollout: Rollout, batch: Minibatch) -> Iterator[tuple[torch.Tensor, dict]]:
        """See the module's equation."""
        states, old = rollout.states[batch.rows], rollout.log_prob[batch.rows]
        velocity, grid, noisy = bind(model, rollout.labels[batch.rows]), time_grid(self.sampler), self.sampler.steps - 1
        for i in range(noisy):
            step = transition(velocity(states[:, i], grid[i]), states[:, i], i, self.sampler)
            ratio = torch.exp(step.log_prob(states[:, i + 1]) - old[:, i])
            if batch.draw % self.updates == 0:
                self._check_on_policy(ratio, i)
            clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
            loss = -torch.minimum(batch.advantage * ratio, batch.advantage * clipped) / noisy
            yield loss, self._statistics(ratio.detach(), noisy)

    def _statistics(self, ratio: torch.Tensor, noisy: int) -> dict[str, torch.Tensor]:
        """Shares [n] of this step in the means of the ratio, of its distance from 1, and of clipped ratios."""
        departure = (ratio - 1).abs()
        return {
            "ratio": ratio / noisy,
            "ratio_departure": departure / noisy,
            "clipped": (departure > self.clip).float() / noisy,
        }

    @staticmethod
    def _check_on_policy(ratio: torch.Tensor, i: int) -> None:
        worst = float((ratio.detach() - 1).abs().max())
        if worst > RATIO_TOLERANCE:
            raise FloatingPointError(
                f"the ratio departs from 1 by {worst:.1e} at sampler step {i} before any update: rollout and update "
                "disagree about the policy; check that both run the same weights in the same precision"
            )
