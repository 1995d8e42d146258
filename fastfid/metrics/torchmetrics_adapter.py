"""Wraps a fastfid metric as a torchmetrics.Metric, for a MetricCollection, a tracker or a LightningModule's log.

Only `Metric.as_torchmetrics` imports this module, because torchmetrics takes longer to load than torch.
"""

from __future__ import annotations

from typing import Any, Protocol

import torchmetrics
from torch import Tensor


class Wrapped(Protocol):
    """What the adapter needs of a metric, which is a module; see `fastfid.metrics.metrics.Metric`."""

    def update(self, imgs: Tensor, real: bool) -> None:
        """Add images or features to a side."""

    def compute(self) -> Any:
        """The metric of all rows so far."""

    def reset(self) -> None:
        """Forget the rows."""


class TorchMetric(torchmetrics.Metric):
    """A fastfid metric as a torchmetrics.Metric; a call only updates it, and no state enters a checkpoint.

    The fastfid metric keeps the rows and brings those of all ranks together.
    """

    full_state_update = True

    def __init__(self, metric: Wrapped) -> None:
        super().__init__(sync_on_compute=False)  # the wrapped metric synchronises itself
        self.metric = metric

    def update(self, imgs: Tensor, real: bool) -> None:
        """Add images (or features) to the real or the generated side."""
        self.metric.update(imgs, real)

    def forward(self, imgs: Tensor, real: bool) -> None:
        """The same as `update`: one side alone has no distance."""
        self.update(imgs, real)

    def compute(self) -> Any:
        """What the metric computes."""
        return self.metric.compute()

    def reset(self) -> None:
        """Forget what the metric's own `reset` forgets."""
        super().reset()
        self.metric.reset()
