"""Features of a layer of torch-fidelity's Inception, as torchmetrics takes them.

Legend: n images, d feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.features.inception import INCEPTION_STAGES, load_inception
from fastfid.features.inception_resizing import INCEPTION_INPUTS
from fastfid.runtime.devices import full_float32

# Width of the features → the last of the stages INCEPTION_STAGES that they pass.
INCEPTION_LAYERS = {64: "MaxPool_1", 192: "MaxPool_2", 768: "Mixed_6e", 2048: "AvgPool", "logits_unbiased": "AvgPool"}


class InceptionLayer(nn.Module):
    """Features [n, d] of uint8 images [n, 1 or 3, H, W] from a layer of torch-fidelity's Inception.

    layer      64, 192, 768, 2048 (pooled over positions) or "logits_unbiased" (d = 1008)
    weights    None   file of its weights; torch-fidelity's download otherwise
    antialias  True   resized by antialiased bilinear interpolation as torchmetrics ≥ 1.8; False: as TensorFlow 1
    """

    def __init__(
        self,
        layer: int | str,
        weights: str | None = None,
        antialias: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.layer = layer
        self.network, _ = load_inception(weights, device)
        self.resize, self.preprocessing = INCEPTION_INPUTS["antialiased" if antialias else "tf1"]

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 [n, d] of images uint8 [n, 1 or 3, H, W]; ValueError for another type or shape."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"Inception takes uint8 images [n, 1 or 3, H, W], got {images.dtype} {tuple(images.shape)}; "
                "pass normalize=True for floats on [0, 1]"
            )
        device = next(self.network.parameters()).device
        with full_float32(device):
            x = self.resize(images.to(device).expand(-1, 3, -1, -1).contiguous())
            for stage in INCEPTION_STAGES:
                x = getattr(self.network, stage)(x)
                if stage == INCEPTION_LAYERS[self.layer]:
                    break
            x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
            return x.mm(cast(nn.Linear, self.network.fc).weight.T) if self.layer == "logits_unbiased" else x

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InceptionLayer:
        """Follow the module that holds it to another device, and stay float32 where that becomes half precision."""

        def moved(x: Tensor) -> Tensor:
            y = fn(x)
            return y if y.dtype == x.dtype else x.to(y.device)

        super()._apply(moved, recurse)
        return self
