"""The subset-replace reward.  Training uses fastfid's distances only through this file.

A reference set of N generated images represents the generator. Replace m of them by new images of the same classes:
the Fréchet distance of the changed set measures what the new images do to the distribution (arXiv 2607.02291, eq. 4).
`fastfid.SwapEngine` computes it exactly, for all subsets at once, and for every single image.

Signs: a `change` below 0 is an improvement; a reward is minus a distance.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from fastfid import FeatureMoments, SwapEngine
from fastfid.distances.real_side import RealFactor
from sit_rl.config_groups import RewardOptions
from sit_rl.ranks.cpu_batches import enter_worker
from sit_rl.sampling.random_streams import Stream, generator


@dataclass
class ReferenceSet:
    """The N images that represent the generator: features float32 [N, d], labels int64 [N], index of the oldest row."""

    features: torch.Tensor
    labels: torch.Tensor
    oldest: int = 0


@dataclass
class Scores:
    """Rewards of a step's candidates, float64.

    subset  [B], minus the FD of the reference set after the swap
    image   [B·m], the credit of each image, from which the advantages are made
    """

    subset: torch.Tensor
    image: torch.Tensor


class SwapReward:
    """Holds the reference set and scores candidates against the real moments.

    The engine is on the features' device, or with --reward-device cpu in host memory. In host memory a thread prepares
    the engine (an eigendecomposition) while the GPU works: during the update if the reference set rolls, during the
    rollout if it was refreshed. Scores cannot overlap with other work: they need the last feature, and the first
    advantage needs them.
    """

    def __init__(self, options: RewardOptions, seed: int, real: FeatureMoments, reference: ReferenceSet):
        self.options, self.seed = options, seed
        self.device = torch.device("cpu") if options.device == "cpu" else reference.features.device
        self.real = RealFactor(real, self.device)
        self._thread = None
        if options.device == "cpu":
            self._thread = ThreadPoolExecutor(1, "reward", enter_worker, (torch.get_num_threads(),))
        self.renew(reference)

    def renew(self, reference: ReferenceSet) -> None:
        """Take a new reference set and begin one symmetric eigendecomposition."""
        self.reference = replace(reference, features=reference.features.to(self.device))
        arguments = self.real, self.reference.features
        self._engine = SwapEngine(*arguments) if self._thread is None else self._thread.submit(SwapEngine, *arguments)

    @property
    def engine(self) -> SwapEngine:
        """The engine of the present reference set; waits until it is ready."""
        if isinstance(self._engine, Future):
            self._engine = self._engine.result()
        return self._engine

    @property
    def distance(self) -> float:
        """FD between the reference set and the reward's real moments."""
        return self.engine.distance

    def propose(self, step: int) -> torch.Tensor:
        """Rows int64 [B, m] that this step's candidates replace; a new image has the label of the row it replaces.

        refresh  each candidate replaces a random subset of the reference set (the paper)
        rolling  the B·m oldest rows, shuffled: `roll` later carries out exactly the swaps that were scored, and the
                 number of images of each class stays the same
        """
        c, rng = self.options, generator(self.seed, Stream.SUBSET, step)
        if c.reference == "rolling":
            rows = (self.reference.oldest + rng.permutation(c.images_per_step)) % c.reference_size
            return torch.from_numpy(rows).view(c.candidates, c.replace)
        return torch.stack(
            [torch.from_numpy(rng.choice(c.reference_size, c.replace, replace=False)) for _ in range(c.candidates)]
        )

    def score(self, removed: torch.Tensor, features: torch.Tensor) -> Scores:
        """Rewards of candidates: removed int64 [B, m], features [B, m, d] of the images that replace them.

        Results are on the engine's device.
        """
        removed, features = removed.to(self.device), features.to(self.device)
        subset = -self.engine.score(removed, features)
        return Scores(subset, self._credit(removed, features, subset).flatten())

    def _credit(self, removed: torch.Tensor, features: torch.Tensor, subset: torch.Tensor) -> torch.Tensor:
        """Reward of every image [B, m] under the credit rule.

        subset     the reward of the image's subset
        image      minus the exact change by swapping this image in alone, plus the change by only removing the old one.
                   The second term depends on the old image only; without it, half of the variance would come from there
        influence  first-order change by adding the image
        """
        if self.options.credit == "subset":
            return subset[:, None].expand(removed.shape)
        if self.options.credit == "image":
            return self._left_out(removed) - self.engine.change_each(removed, features)
        return -self.engine.influence(features.flatten(0, 1)).view(removed.shape) / self.engine.count

    def _left_out(self, removed: torch.Tensor) -> torch.Tensor:
        """Exact change [B, m] by removing each row alone, without a replacement."""
        rows = removed.reshape(-1, 1)
        nothing = self.reference.features.new_zeros((len(rows), 0, self.reference.features.shape[1]))
        return self.engine.change(rows, nothing).view(removed.shape)

    def roll(self, removed: torch.Tensor, features: torch.Tensor) -> None:
        """Carry out every swap of a rolling step: features [B, m, d] replace the rows [B, m]."""
        kept = self.reference.features.clone()
        kept[removed.flatten()] = features.flatten(0, 1).to(kept)
        oldest = (self.reference.oldest + removed.numel()) % len(kept)
        self.renew(ReferenceSet(kept, self.reference.labels, oldest))
