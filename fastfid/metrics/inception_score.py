"""torchmetrics' InceptionScore: how sure a classifier is of each image, and how evenly its classes are used."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.arguments import check_seed, check_whole
from fastfid.distances.class_scores import ClassProbabilities, depends_on_order, order_warning
from fastfid.metrics.metrics import Feature, Metric
from fastfid.metrics.sides import RowsSide

MIXED = 2020  # seed of the order that others are compared with; torch-fidelity's


class InceptionScore(Metric[RowsSide]):
    """torchmetrics' class of this name, argument for argument; further ones as `Metric`'s.

    feature  "logits_unbiased"  what gives class logits [n, C]: as `Metric`'s, or None where `update` is given logits
    splits   10                 parts whose scores are averaged
    seed     2020               of the permutation before the split, RandomState; None keeps the order of the images,
                                with a warning where the score depends on it, as of images sorted by class

    There are generated images only.  `compute` returns mean and sample standard deviation over the parts, 0-d float64;
    the deviation of one part is NaN.  torchmetrics permutes by torch's global generator, so that with the same images
    its numbers differ within this deviation.
    """

    _side = RowsSide

    def __init__(
        self,
        feature: Feature = "logits_unbiased",
        splits: int = 10,
        normalize: bool = False,
        *,
        seed: int | None = 2020,
        **options: Any,
    ) -> None:
        check_whole("splits", splits, 1, "the images are split into at least 1 part")
        if seed is not None:
            check_seed(seed)
        super().__init__(feature, normalize=normalize, **options)
        self.splits, self.seed = splits, seed

    def update(self, imgs: Tensor, real: bool = False) -> None:
        """Add generated images (or logits [n, C]); ValueError for real ones, which have no part in the score."""
        if real:
            raise ValueError("the Inception Score has no real side; leave real images out")
        super().update(imgs, real=False)

    def forward(self, imgs: Tensor, real: bool = False) -> None:
        """The same as `update`."""
        self.update(imgs, real)

    def _compute(self) -> tuple[Tensor, Tensor]:
        if self._fake.count < self.splits:
            raise RuntimeError(f"{self._fake.count} images cannot be split into {self.splits} parts; update it first")
        found = self._scores(self._order(self.seed))
        if self.seed is None and len(found) > 1:  # one part has no order
            mixed = self._scores(self._order(MIXED))
            if depends_on_order(found.mean().item(), mixed.mean().item(), mixed.std(correction=0).item()):
                warnings.warn(order_warning("the score", found.mean().item(), mixed.mean().item()), stacklevel=2)
        return found.mean(), found.std() if len(found) > 1 else torch.tensor(float("nan"), dtype=torch.float64)

    def _scores(self, order: Tensor) -> Tensor:
        """The score of each part of the rows in this order, float64 [splits]."""
        logits = self._fake.rows()
        scores = [ClassProbabilities(logits, part).score() for part in order.chunk(self.splits)]
        return torch.tensor(scores, dtype=torch.float64)

    def _order(self, seed: int | None) -> Tensor:
        """Numbers of the rows in the order in which they are split, int64 [n]."""
        n = self._fake.count
        if seed is None:
            return torch.arange(n)
        return torch.from_numpy(np.random.RandomState(seed).permutation(n))
