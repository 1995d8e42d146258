"""The leave-one-out reward: the step's own images are the set, and no reference set is kept.

An image is worth what the distance gains when it is left out. The set is the current model's, so the reward never lags
behind it, as a rolling reference set does by some steps.
"""

from __future__ import annotations

import torch

from fastfid import PreparedSet
from sit_rl.models.conditions import Conditions
from sit_rl.options.reward import RewardOptions
from sit_rl.reward.components import Component, RewardSide
from sit_rl.reward.swap_reward import (
    Scores,
    influence_credit,
    prepared_sets,
    reference_fd,
    reward_device,
    scores_of,
)
from sit_rl.sampling.random_streams import Stream, generator


class FreshReward:
    """Scores the images of one step, which are a set of B·m rows, by leaving them out.

    Labels cycle through the classes from step to step, so all are equally frequent, however many there are.
    """

    def __init__(self, options: RewardOptions, seed: int, side: RewardSide, step: int, conditions: Conditions):
        self.options, self.seed, self.side = options, seed, side
        count = options.images_per_step
        self.labels = conditions.balanced(count, step * count)  # of the set's rows
        self._prepared: list[PreparedSet] = []

    @property
    def prepared(self) -> list[PreparedSet]:
        """The step's images under each component, once they are scored."""
        return self._prepared

    @property
    def reference_fd(self) -> float | None:
        """FD of the step's images, once they are scored, under the first component that is one; None without one."""
        return reference_fd(self._prepared)

    def labels_of(self, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Conditions int64 [B·m] of the images that become `rows` [B, m] of the set."""
        return self.labels[rows.flatten()]

    def propose(self, step: int) -> torch.Tensor:
        """Rows int64 [B, m] of the set, shuffled into subsets."""
        order = generator(self.seed, Stream.SUBSET, step).permutation(self.options.images_per_step)
        return torch.from_numpy(order).view(self.options.candidates, self.options.replace)

    def score(self, rows: torch.Tensor, features: torch.Tensor) -> Scores:
        """Rewards of the subsets `rows` [B, m], and of their images, whose features are [B, m, d].

        subset     the change by leaving a subset out, less the distance: as if it were added to the rest
        image      the exact change by leaving an image out
        influence  its first order, for FD
        """
        device = reward_device(self.options, features.device)
        images = torch.empty_like(features.flatten(0, 1), device=device)
        images[rows.flatten()] = features.flatten(0, 1).to(device)
        self._prepared = prepared_sets(self.side.components, images, self.labels)
        rows = rows.to(device)
        nothing = images.new_zeros((len(rows), 0, images.shape[1]))

        def subset(component: Component, prepared: PreparedSet) -> torch.Tensor:
            return prepared.change(rows, nothing[..., component.columns]) - prepared.distance

        def image(component: Component, prepared: PreparedSet) -> torch.Tensor:
            if self.options.credit == "image":
                return prepared.leave_one_out()[rows]
            return influence_credit(prepared, images[:, component.columns])[rows]

        return scores_of(self.side.components, self._prepared, self.options, subset, image)
