"""torchmetrics' MemorizationInformedFrechetInceptionDistance: a Fréchet distance that copies of real images raise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfid.distances.frechet import frechet_distance
from fastfid.distances.memorization import nearest_cosine_distance
from fastfid.distances.moments import FeatureMoments
from fastfid.metrics.metrics import Feature, Metric
from fastfid.metrics.sides import RowsSide

SMALLEST_FD = 1e-8  # below it the result is 0, so that rounding divided by a small distance does not look like a score
LEAST_DIVISOR = 1e-14  # added to the divisor; both constants are torchmetrics'


class MemorizationInformedFrechetInceptionDistance(Metric[RowsSide]):
    """torchmetrics' class of this name, argument for argument; further ones as `Metric`'s.

    cosine_distance_eps  0.1  nearest distances from here on count as 1, so that the FD is not changed

    `compute` returns FD / the mean cosine distance of real images to their nearest generated one, 0-d float64.
    """

    _side = RowsSide

    def __init__(
        self,
        feature: Feature = 2048,
        reset_real_features: bool = True,
        normalize: bool = False,
        cosine_distance_eps: float = 0.1,
        **options: Any,
    ) -> None:
        if not (isinstance(cosine_distance_eps, float) and 0 < cosine_distance_eps <= 1):
            raise ValueError(f"cosine_distance_eps is {cosine_distance_eps!r}; pass a float above 0 and up to 1")
        super().__init__(feature, reset_real_features=reset_real_features, normalize=normalize, **options)
        self.cosine_distance_eps = cosine_distance_eps

    def _compute(self) -> Tensor:
        self._require(2)
        real, fake = self._real.rows(), self._fake.rows()
        distance = frechet_distance(FeatureMoments.from_features(real), FeatureMoments.from_features(fake))
        nearest = nearest_cosine_distance(real, fake)
        divisor = nearest if nearest < self.cosine_distance_eps else 1.0
        return torch.tensor(
            distance / (divisor + LEAST_DIVISOR) if distance > SMALLEST_FD else 0.0, dtype=torch.float64
        )
