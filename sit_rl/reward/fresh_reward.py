"""The leave-one-out reward: the step's own images are the set, and no reference set is kept.

An image is worth what the distance gains when it is left out. The set is the current model's, so the reward never lags
behind it, as a rolling reference set does by some steps.
"""

from __future__ import annotations

import torch

from fastfid import PreparedSet
from fastfid.rewards.frechet import FrechetSet
from sit_rl.config_groups import RewardOptions
from sit_rl.reward.components import RewardSide
from sit_rl.reward.swap_reward import Credits, Scores, prepared_sets, reference_fd, reward_device
from sit_rl.sampling.random_streams import Stream, generator


class FreshReward:
    """Scores the images of one step, which are a set of B·m rows, by leaving them out.

    Labels cycle through the classes from step to step, so all are equally frequent, however many there are.
    """

    def __init__(self, options: RewardOptions, seed: int, side: RewardSide, step: int, num_classes: int):
        self.options, self.seed, self.side = options, seed, side
        count = options.images_per_step
        self.labels = (step * count + torch.arange(count)) % num_classes  # of the set's rows
        self._prepared: list[PreparedSet] = []

    @property
    def reference_fd(self) -> float | None:
        """FD of the step's images, once they are scored, under the first component that is one; None without one."""
        return reference_fd(self._prepared)

    def labels_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Labels int64 [B·m] of the images that become `rows` [B, m] of the set."""
        return self.labels[rows.flatten()]

    def propose(self, step: int) -> torch.Tensor:
        """Rows int64 [B, m] of the set, shuffled into subsets."""
        order = generator(self.seed, Stream.SUBSET, step).permutation(self.options.images_per_step)
        return torch.from_numpy(order).view(self.options.candidates, self.options.replace)

    def score(self, rows: torch.Tensor, features: torch.Tensor) -> Scores:
        """Rewards of the subsets `rows` [B, m], and of their images, whose features are [B, m, d].

        The reward of a subset is the change by leaving it out, less the distance: as if the rest were the reference
        set to which it is added.
        """
        device = reward_device(self.options, features.device)
        images = torch.empty_like(features.flatten(0, 1), device=device)
        images[rows.flatten()] = features.flatten(0, 1).to(device)
        self._prepared = prepared_sets(self.side.components, images, self.labels)
        rows, credits, first = rows.to(device), [], None
        for component, prepared in zip(self.side.components, self._prepared, strict=True):
            own = images[:, component.columns]
            subset = None
            if first is None or self.options.credit == "subset":
                nothing = own.new_zeros((len(rows), 0, own.shape[1]))
                subset = prepared.change(rows, nothing) - prepared.distance
                first = subset if first is None else first
            credit = self._credit(prepared, own, rows, subset)
            credits.append(Credits(component, prepared.distance, credit.flatten()))
        assert first is not None, "a reward has at least one component"
        return Scores(first, tuple(credits))

    def _credit(
        self, prepared: PreparedSet, features: torch.Tensor, rows: torch.Tensor, subset: torch.Tensor | None
    ) -> torch.Tensor:
        """Reward of every image [B, m] under the credit rule.

        subset     the reward of the image's subset
        image      the exact change by leaving the image out
        influence  its first order, for FD
        """
        if self.options.credit == "subset":
            assert subset is not None, "the subsets are scored first"
            return subset[:, None].expand(rows.shape)
        if self.options.credit == "image":
            return prepared.leave_one_out()[rows]
        assert isinstance(prepared, FrechetSet), "the config allows influence for fd only"
        return -prepared.engine.influence(features)[rows] / prepared.count
