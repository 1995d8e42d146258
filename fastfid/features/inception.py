"""Inception v3 of 2015 with its logits and its spatial features; inception_resizing.py has each tool's resizing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastfid.features.extractor import MultiExtractor, usable_device
from fastfid.features.inception_resizing import INCEPTION_INPUTS
from fastfid.features.preparation import as_rgb, chosen_input, to_rgb
from fastfid.features.weight_files import checked_sha256

# The TensorFlow Inception of 2015-12-05 ported to PyTorch; its file name contains these first digits of its SHA-256.
INCEPTION_SHA256 = "6726825d"

INCEPTION_DIM = 2048  # width of its last pooling layer


def load_inception(weights: str | Path | None, device: str | torch.device) -> tuple[nn.Module, str]:
    """torch-fidelity's Inception on `device`, from `weights` or its own download, and the SHA-256 of its weights.

    ImportError naming the extra without torch-fidelity, FileNotFoundError for missing weights, ValueError for others.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as missing:
        raise ImportError(
            "the inception network comes from torch-fidelity: pip install 'fastfid[inception]'"
        ) from missing
    if weights is None:
        weights = _download(URL_INCEPTION_V3)
    digest = checked_sha256(weights, INCEPTION_SHA256)  # before it is opened: it is a pickle
    layer = str(INCEPTION_DIM)
    network = FeatureExtractorInceptionV3("inception", [layer], feature_extractor_weights_path=str(weights))
    return network.to(device), digest


SPATIAL_CHANNELS = 7  # of the first branch of mixed_6, as ADM's evaluator takes them: 7·17·17 = 2023 features

# Stages of torch-fidelity's Inception between the normalised image and the 2048 pooled features, in order.
INCEPTION_STAGES = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip


def inception_extractor(
    input_name: str, weights: str | Path | None, device: str | torch.device, spatial: bool
) -> MultiExtractor:
    """The TensorFlow Inception of 2015 in torch-fidelity's port, stage by stage behind any of INCEPTION_INPUTS."""
    resize, sentence = chosen_input("inception", INCEPTION_INPUTS, input_name)
    device = usable_device(device)
    network, digest = load_inception(weights, device)
    return MultiExtractor(
        InceptionOutputs(network, spatial),
        lambda images: resize(to_rgb(images)),
        name="inception",
        dim=INCEPTION_DIM,
        preprocessing=as_rgb(sentence),
        weights_sha256=digest,
        device=device,
    )


class InceptionOutputs(nn.Module):
    """Pooled features [n, 2048], logits without bias [n, 1008] and on request spatial features [n, 2023].

    `network` is torch-fidelity's FeatureExtractorInceptionV3; the images [n, 3, 299, 299] are resized and normalised
    already.  The logits leave the bias out, as the Inception Score's graph does; the spatial features are the first
    seven channels of mixed_6's 1×1 branch in the order [17, 17, 7], as ADM's evaluator flattens them.
    """

    def __init__(self, network: Any, spatial: bool = False):
        super().__init__()
        self.network: Any = network  # torch-fidelity's class, which has no types
        self.spatial = spatial

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name for x, float32 [n, 3, 299, 299]."""
        found = {}
        for stage in INCEPTION_STAGES:
            if self.spatial and stage == "Mixed_6d":  # TensorFlow's mixed_6
                maps = self.network.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
                found["spatial"] = maps.permute(0, 2, 3, 1).flatten(1)
            x = getattr(self.network, stage)(x)
        found["features"] = x.flatten(1)
        found["logits"] = found["features"].mm(self.network.fc.weight.T)
        return found


def downloaded_inception() -> Path | None:
    """The weights that an earlier run downloaded; None without them or without torch-fidelity."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        return None
    cached = _cached(URL_INCEPTION_V3)
    return cached if cached.is_file() else None


def _cached(url: str) -> Path:
    """Where torch's hub keeps its copy of `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _download(url: str) -> Path:
    """Local copy of `url` in torch's hub cache, fetched once."""
    cached = _cached(url)
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(cached), hash_prefix=INCEPTION_SHA256)
        except OSError as failed:
            raise FileNotFoundError(
                f"the inception weights could not be downloaded ({failed}); fetch {url} elsewhere and "
                "pass its path as weights (--weights)"
            ) from failed
    return cached
