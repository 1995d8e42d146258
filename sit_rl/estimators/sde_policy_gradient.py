"""The paper's estimator: a clipped policy gradient through the steps of a random sampler (Flow-GRPO, arXiv 2505.05470).

    L = −E_x (1/S) Σ_i min( A ρ_i, A clip(ρ_i, 1 − c, 1 + c) ),
    ρ_i = exp( log p_θ(x_{i+1}|x_i) − log p_old(x_{i+1}|x_i) ),

over the S noisy steps of a path; log-probabilities are means over dimensions. Every step costs one pass, so an image
costs S of them where matching costs one. The steps are an Euler SDE's (SiT), or DDPM's, whose learned variance is
trained too, or DDIM's with η > 0 (DiT), both but for the last noisy one (`sit_rl.sampling.solvers.trained_steps`).

**Clip range.** A mean-over-dimensions log-ratio of a fixed per-dimension shift δ has a spread |δ|/√d, so the paper's
c = 1e-4 at d = 4·32·32 = 4096 becomes c·√(4096/d) at another d: the clip then acts at the same per-dimension shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from sit_rl.estimators.base import Estimator, Minibatch, Term
from sit_rl.rollout import Rollout
from sit_rl.sampling.guidance import Model, bind
from sit_rl.sampling.sampler_config import SamplerConfig, slide_window, time_grid, trained_steps
from sit_rl.sampling.solvers import sampler_step

PAPER_DIMENSIONS = 4 * 32 * 32
# Before the first update the ratio is 1 up to float32 rounding of a mean of d squares, about 1e-6. In bf16, kernels for
# another batch size may round a velocity differently, by 2⁻⁸ of its size, which a step late in a path of 50 turns into
# 0.003 of a dimension's log-ratio and the mean over 784 of them into 1e-4, five times that in the worst of many samples
# (6e-5 was seen on a CPU). DDPM's steps near the data turn it into twice as much (computed), which a DiT's 4096
# dimensions average to less. A larger departure means that rollout and update disagree about the policy, as with
# dropout left on, and nothing is learned.
RATIO_TOLERANCE = {"float32": 2e-5, "bf16": 2e-3}


class SDEPolicyGradient(Estimator):
    """One term for every noisy step of the path."""

    keeps_path = True

    def sampler(self, step: int) -> SamplerConfig:
        """Rollouts follow steps that have densities; a MixGRPO window slides with the training steps."""
        return slide_window(self.config.rollout.sde_sampler, step)

    def terms(self, step: int) -> int:
        """The noisy steps of a path that are trained."""
        return len(trained_steps(self.sampler(step)))

    @property
    def clip(self) -> float:
        """Half-width of the ratio's trust interval at this sample dimension."""
        return self.config.update.clip_range * math.sqrt(PAPER_DIMENSIONS / math.prod(self.components.sample_shape))

    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[Term]:
        """See the module's equation."""
        assert rollout is not None and rollout.states is not None and rollout.log_prob is not None  # keeps_path
        sampler = self.sampler(batch.draw // self.updates)
        states, old = rollout.states[batch.rows], rollout.log_prob[batch.rows]
        velocity = bind(model, rollout.labels[batch.rows], sampler)
        grid, trained = time_grid(sampler), trained_steps(sampler)
        for k, i in enumerate(trained):  # the first of the noisy steps, whose log-probabilities `old` holds
            step = sampler_step(velocity(states[:, i], grid[i]), states[:, i], i, sampler)
            log_ratio = step.log_prob(states[:, i + 1]) - old[:, k]
            ratio = torch.exp(log_ratio)
            if batch.draw % self.updates == 0:
                self._check_on_policy(ratio, i)
            clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
            loss = -torch.minimum(batch.advantage * ratio, batch.advantage * clipped) / len(trained)
            yield loss, self._statistics(ratio.detach(), log_ratio.detach(), len(trained))

    def _statistics(self, ratio: torch.Tensor, log_ratio: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
        """Shares [n] of this step in the means of the ratio, of its distance from 1, of clipped ratios, and in the KL.

        kl, in nats over these steps: to second order half the square of the step's log-ratio, here d times the mean.
        """
        departure, dimension = (ratio - 1).abs(), math.prod(self.components.sample_shape)
        return {
            "ratio": ratio / steps,
            "ratio_departure": departure / steps,
            "clipped": (departure > self.clip).float() / steps,
            "kl": 0.5 * (dimension * log_ratio).square(),
        }

    def _check_on_policy(self, ratio: torch.Tensor, i: int) -> None:
        """FloatingPointError where a ratio is not 1 before the first update."""
        worst = float((ratio.detach() - 1).abs().max()) if len(ratio) else 0.0
        if not worst <= RATIO_TOLERANCE[self.config.run.precision]:
            raise FloatingPointError(
                f"the ratio departs from 1 by {worst:.1e} at sampler step {i} before any update: rollout and update "
                "disagree about the policy; check that both run the same weights in the same precision"
            )
