"""The scores that one feature network gives generated images: the rows of the table of networks.

A run judges with every network, those that it rewards and those that it never does. What depends on the real images
alone is kept for all evaluations: distances of neighbours, sorted projections, the distance of real from real.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import torch

from fastfid import FeatureMoments, frechet_distance
from fastfid.distances.precision_recall import RealBalls
from fastfid.distances.sliced_wasserstein import SortedReal
from fastfid.runtime.even_steps import evenly_spaced
from sit_rl.components.build import Components
from sit_rl.components.networks import NetworkSides
from sit_rl.components.real_side import RealSide

# The paper's k of precision, recall, density and coverage (Naeem et al. 2020).
NEAREST_K = 5
# fd         Fréchet distance from the held-out real images
# fdr        the same in units of that of as many other real images: 1 is as good as real ones
# sliced_w2  sliced Wasserstein distance, which equal moments do not satisfy
SCORES = ("fd", "fdr", "precision", "recall", "density", "coverage", "sliced_w2")
Scores = dict[str, float | None]


class NetworkJudge:
    """The scores of one network. Those that need real features are None where the real side is a statistics file."""

    def __init__(self, sides: NetworkSides):
        self.sides = sides
        self._floors: dict[int, float | None] = {}

    def scores(self, features: torch.Tensor) -> dict[str, Any]:
        """`rewarded`, and every name of SCORES, of generated features [n, d]."""
        floor = self.floor(len(features))
        fd = distance(self.sides.heldout, features)
        return {"rewarded": self.sides.rewarded} | self._scores(features, fd, floor)

    def real_scores(self, count: int) -> dict[str, Any]:
        """The same of `count` of the reward's real images, in place of generated ones; all None without them."""
        rows = self.others(count)
        found = dict.fromkeys(SCORES) if rows is None else self._scores(rows, self.floor(count), self.floor(count))
        return {"rewarded": self.sides.rewarded} | found

    def floor(self, count: int) -> float | None:
        """Fréchet distance of `count` of the reward's real images from the held-out ones; None without them."""
        if count not in self._floors:
            rows = self.others(count)
            self._floors[count] = None if rows is None else distance(self.sides.heldout, rows)
        return self._floors[count]

    def others(self, count: int) -> torch.Tensor | None:
        """Features of `count` of the reward's real images, evenly spaced; None if they are fewer, or the judge's own.

        The same number as that of the generated images, because the distance of few images is larger.
        """
        real = self.sides.real.features
        if real is None or len(real) < count or self.sides.real is self.sides.heldout:
            return None
        return real[evenly_spaced(len(real), count)]

    def _scores(self, features: torch.Tensor, fd: float | None, floor: float | None) -> Scores:
        found: Scores = dict.fromkeys(SCORES)
        found["fd"] = fd
        if fd is not None and floor:
            found["fdr"] = fd / floor
        if self.sides.heldout.features is None:
            return found
        if min(len(features), len(self.sides.heldout.features)) > NEAREST_K:
            found |= self._balls.prdc(features)
        return found | {"sliced_w2": self._sorted.distance(features)}

    @cached_property
    def _balls(self) -> RealBalls:
        assert self.sides.heldout.features is not None
        return RealBalls(self.sides.heldout.features, NEAREST_K)

    @cached_property
    def _sorted(self) -> SortedReal:
        assert self.sides.heldout.features is not None
        return SortedReal(self.sides.heldout.features)


def distance(real: RealSide, features: torch.Tensor) -> float:
    """Fréchet distance of features [n, d] from the real moments."""
    return float(frechet_distance(real.moments, FeatureMoments.from_features(features)))


@lru_cache(maxsize=1)  # a process evaluates one run, many times
def judges_of(components: Components) -> dict[str, NetworkJudge]:
    """A judge for each network of the run, by name; the same ones at every call."""
    return {each.net.name: NetworkJudge(each) for each in components.networks}
