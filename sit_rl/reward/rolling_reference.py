"""The reference set of the reward, which rolls: in each step the new images replace its oldest ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class ReferenceSet:
    """The N images that represent the generator.

    features  float32 [N, d], rows of `RewardSide`
    labels    int64 [N], their conditions
    oldest    index of the oldest row
    """

    features: torch.Tensor
    labels: torch.Tensor
    oldest: int = 0

    def oldest_rows(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """Indices int64 [count] of the oldest rows, in random order."""
        return torch.from_numpy((self.oldest + rng.permutation(count)) % len(self.labels))

    def rolled(self, removed: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> ReferenceSet:
        """The set after a step in which images replace the oldest rows `removed` [B, m], group by group.

        features  [B, m, d] of the new images
        labels    int64 [B·m], their conditions
        """
        kept, conditions = self.features.clone(), self.labels.clone()
        kept[removed.flatten()] = features.flatten(0, 1).to(kept)
        conditions[removed.flatten()] = labels
        return ReferenceSet(kept, conditions, (self.oldest + removed.numel()) % len(kept))
