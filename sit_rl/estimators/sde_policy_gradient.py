"""The paper's estimator: a clipped policy gradient through the steps of a random sampler (Flow-GRPO, arXiv 2505.05470).

    L = −E_x (1/S) Σ_i min( A ρ_i, A clip(ρ_i, 1 − c, 1 + c) ),
    ρ_i = exp( log p_θ(x_{i+1}|x_i) − log p_old(x_{i+1}|x_i) ),

over the S trained steps of a path (`sit_rl.sampling.sampler_config.trained_steps`); log-probabilities are means over
dimensions. An image costs S passes, where matching costs one. For a SiT the steps are those of an Euler SDE; for a DiT
those of DDPM, whose learned variance is trained as well, or of DDIM with η > 0, without the last noisy one.

**Clip range.** If every dimension shifts by δ, the log-ratio, a mean over d dimensions, has a spread of |δ|/√d. The
paper's c = 1e-4 at d = 4·32·32 = 4096 therefore becomes c·√(4096/d) at another d: the clip then acts at the same δ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from sit_rl.estimators.base import Estimator, Minibatch, Term
from sit_rl.rollout import Rollout
from sit_rl.sampling.guidance import Model, bind
from sit_rl.sampling.ode_and_sde_steps import sampler_step
from sit_rl.sampling.sampler_config import SamplerConfig, slide_window, time_grid, trained_steps

PAPER_DIMENSIONS = 4 * 32 * 32
# Largest |ratio − 1| before the first update. float32: rounding of a mean of d squares, 1e-6, with a margin. bf16:
# kernels for another batch size round a velocity differently, which makes 1e-4, and in the worst sample 5e-4
# (docs/performance.md). More means that rollout and update disagree about the policy, as with dropout left on.
RATIO_TOLERANCE = {"float32": 2e-5, "bf16": 2e-3}


class SDEPolicyGradient(Estimator):
    """One term for every trained step of the path."""

    keeps_path = True

    def sampler(self, step: int) -> SamplerConfig:
        """The sampler of rollouts, whose steps have densities; a MixGRPO window slides with the training steps."""
        return slide_window(self.config.rollout.sde_sampler, step)

    def terms(self, step: int) -> int:
        """The noisy steps of a path that are trained."""
        return len(trained_steps(self.sampler(step)))

    @property
    def clip(self) -> float:
        """The clip range c for this number of dimensions of a sample."""
        return self.config.update.clip_range * math.sqrt(PAPER_DIMENSIONS / math.prod(self.components.sample_shape))

    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[Term]:
        """See the module's equation."""
        assert (
            rollout is not None and rollout.states is not None and rollout.log_prob is not None
        )  # because keeps_path is True
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
        """This step's part [n] of the statistics of a path.

        ratio, ratio_departure, clipped  means over the steps of ρ, |ρ − 1|, and whether ρ is clipped
        kl                               nats over the steps, to second order: half the squared log-ratio, which is d
                                         times the mean log-ratio used here
        """
        departure, dimension = (ratio - 1).abs(), math.prod(self.components.sample_shape)
        return {
            "ratio": ratio / steps,
            "ratio_departure": departure / steps,
            "clipped": (departure > self.clip).float() / steps,
            "kl": 0.5 * (dimension * log_ratio).square(),
        }

    def _check_on_policy(self, ratio: torch.Tensor, i: int) -> None:
        """FloatingPointError if a ratio is not 1 before the first update."""
        worst = float((ratio.detach() - 1).abs().max()) if len(ratio) else 0.0
        if not worst <= RATIO_TOLERANCE[self.config.run.precision]:
            raise FloatingPointError(
                f"the ratio departs from 1 by {worst:.1e} at sampler step {i} before any update: rollout and update "
                "disagree about the policy; check that both run the same weights in the same precision"
            )
