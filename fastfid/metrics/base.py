"""The base class of the metrics: torchmetrics.Metric where torchmetrics is installed, otherwise torch.nn.Module.

Importing torchmetrics takes longer than importing torch and this package together.  Only the metric classes need it,
and `fastfid` imports them when the first of them is used.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

from torch import nn


class _Plain(nn.Module):
    """What the metrics use of torchmetrics.Metric."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def reset(self) -> None:
        """Forget how often `update` was called, which only torchmetrics counts."""


MetricBase: Any = _Plain
with suppress(ImportError):
    MetricBase = import_module("torchmetrics").Metric
IS_TORCHMETRICS = MetricBase is not _Plain
