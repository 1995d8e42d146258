"""fastfid's metrics where only torchmetrics' own are taken: in a MetricCollection, a tracker, a LightningModule's log.

What they compute, keep and bring together across ranks stays theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from fastfid.features.extractor import FeatureExtractor
from fastfid.metrics.metrics import Metric


class TorchMetric(torchmetrics.Metric):
    """`metric` as a torchmetrics.Metric; a call only updates it, and no state enters a checkpoint."""

    full_state_update = True

    def __init__(self, metric: Metric):
        super().__init__(sync_on_compute=False)  # the metric itself brings the ranks' images together
        self.metric = metric

    def update(self, imgs: Tensor, real: bool) -> None:
        """Add images (or features) to the real or the generated side."""
        self.metric.update(imgs, real)

    def forward(self, imgs: Tensor, real: bool) -> None:
        """The same: one side alone has no distance."""
        self.update(imgs, real)

    def compute(self) -> Any:
        """What the metric computes."""
        return self.metric.compute()

    def reset(self) -> None:
        """Forget what the metric's own `reset` forgets."""
        super().reset()
        self.metric.reset()

    def _apply(self, fn: Callable, *args, **kwargs) -> TorchMetric:
        """Follow the module that holds it to another device; a FeatureExtractor stays where it was made."""
        super()._apply(fn, *args, **kwargs)
        if not isinstance(self.metric._feature, FeatureExtractor):
            self.metric.to(fn(torch.empty(0)).device)
        return self
