"""The control: continue pretraining on real images with the compute that RL would have spent.

A training step of RL costs B·m samples × the sampler's evaluations, and updates × minibatch × 4 evaluations (forward,
backward = 2 forwards, the anchor's forward). Here all of it goes into minibatches of real images, 3 evaluations each.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sit_rl.components.image_sets import ImageSet
from sit_rl.estimators.base import Estimator, Minibatch, Term
from sit_rl.estimators.matching import matching_points, squared_error
from sit_rl.models.pixels import to_float
from sit_rl.ranks.process_group import world_size
from sit_rl.rollout import Rollout
from sit_rl.sampling.guidance import Model
from sit_rl.sampling.random_streams import Stream, generator


class Pretraining(Estimator):
    """Flow matching on real images."""

    rolls_out = False

    @property
    def updates(self) -> int:
        """The number of minibatches that costs as many evaluations as an RL step."""
        rollout = self.config.reward.images_per_step * self.config.rollout.sampler.evaluations()
        update = super().updates * self.minibatch_size * 4
        return max(1, round((rollout + update) / (3 * self.minibatch_size)))

    @property
    def real_images(self) -> ImageSet:
        """The reward's real images with their labels."""
        images = self.components.real_images
        if images is None:
            raise ValueError(
                "--estimator pretraining needs labelled real images, and --real gives none; choose another estimator"
            )
        return images

    def minibatches(self, kept: torch.Tensor, step: int) -> Iterator[list[int]]:
        """Rows of the real images, drawn without replacement within a minibatch; at most all of them."""
        total = len(self.real_images)
        size = min(self.minibatch_size, total)
        for u in range(self.updates):
            yield generator(self.config.seed, Stream.SHUFFLE, step, u).choice(total, size, replace=False).tolist()

    def share(self, indices: list[int], of_rank: int) -> list[int]:
        """Real images belong to no rank, so each rank takes every world-th one."""
        return indices[of_rank :: world_size()]

    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[Term]:
        """|v_θ(x_t, t) − u|² on this rank's share of the real images."""
        real, device = self.real_images, self.components.device
        x1 = to_float(real.images[batch.rows]).to(device)
        t, x_t, target = matching_points(x1, batch.indices, self.config.seed, batch.draw, as_pretraining=True)
        matching = squared_error(model(x_t, t, real.labels[batch.rows].to(device)), target)
        yield matching, {"matching": matching.detach()}
