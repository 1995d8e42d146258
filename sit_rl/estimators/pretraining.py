"""The control: go on pretraining on real images with the compute that RL would have spent.

A run of RL spends, per training step, B·m samples × the sampler's evaluations, and updates × minibatch × 4 (forward,
backward = 2 forwards, the anchor's forward). Here all of it goes into minibatches of real images, 3 evaluations each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sit_rl.estimators.base import Estimator, Minibatch, Model
from sit_rl.estimators.matching import matching_points, squared_error
from sit_rl.models.pixels import to_float
from sit_rl.ranks.process_group import world_size
from sit_rl.rollout import Rollout
from sit_rl.sampling.random_streams import Stream, generator


class Pretraining(Estimator):
    """Flow matching on real images."""

    rolls_out = False

    @property
    def updates(self) -> int:
        """As many minibatches as the evaluations of an RL step pay for."""
        c = self.config
        evaluations = (
            c.reward.images_per_step * c.rollout.sampler.evaluations() + c.update.updates * c.update.minibatch * 4
        )
        return max(1, round(evaluations / (3 * c.update.minibatch)))

    def minibatches(self, kept: torch.Tensor, step: int) -> Iterator[list[int]]:
        """Rows of the real images, drawn without replacement inside a minibatch, which is all of them at most."""
        total = len(self.components.real_images)
        size = min(self.config.update.minibatch, total)
        for u in range(self.updates):
            yield generator(self.config.seed, Stream.SHUFFLE, step, u).choice(total, size, replace=False).tolist()

    def share(self, indices: list[int], of_rank: int) -> list[int]:
        """Real images belong to no rank: every world-th."""
        return indices[of_rank :: world_size()]

    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[tuple[torch.Tensor, dict]]:
        """|v_θ(x_t, t) − u|² on this rank's share of the real images."""
        real, device = self.components.real_images, self.components.device
        x1 = to_float(real.images[batch.rows]).to(device)
        t, x_t, target = matching_points(x1, batch.indices, self.config.seed, batch.draw, as_pretraining=True)
        matching = squared_error(model(x_t, t, real.labels[batch.rows].to(device)), target)
        yield matching, {"matching": matching.detach()}
