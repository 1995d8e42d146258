"""fashion-a to fashion-f: the embedded networks for 28x28 images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.features.extractor import FeatureExtractor, MultiExtractor, usable_device
from fastfid.features.names import FASHION_NETS
from fastfid.features.preparation import HALF_RANGE
from fastfid.runtime.errors import first_line
from fastfid.runtime.hashes import file_sha256
from fastfid.runtime.tensor_files import read_tensors
from fastfid.runtime.torch_file_checks import Damaged

ASSETS = Path(__file__).parents[1] / "assets"

FASHION_SIZE = 28  # side of a Fashion-MNIST image, pixels

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class FashionNet(nn.Module):
    """Small classifier of 28×28 grey images whose penultimate activations [n, feature_dim] serve as features.

    Three stages of convolution, batch normalisation and activation, each halving the resolution (28 → 14 → 7 → 3 or 4),
    then a global average and one linear layer with activation (the features); `head` exists for training only.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 128),
        feature_dim: int = 128,
        num_classes: int = 10,
        kernel_size: int = 3,
        activation: str = "relu",
        downsample: str = "stride",
    ):
        super().__init__()
        widths = (1, *channels)
        self.stages = nn.Sequential(
            *(
                _stage(c_in, c_out, kernel_size, activation, downsample)
                for c_in, c_out in zip(widths[:-1], widths[1:], strict=True)
            )
        )
        self.embed = nn.Sequential(nn.Linear(channels[-1], feature_dim), ACTIVATIONS[activation]())
        self.head = nn.Linear(feature_dim, num_classes)
        # Convolutions on a CPU are faster in channels-last: 1.4–1.5× the images per second of the default layout.
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate activations, float32 [n, feature_dim], of images x, float32 [n, 1, 28, 28] in [−1, 1]."""
        embedded: Tensor = self.embed(self.stages(x).mean(dim=(2, 3)))
        return embedded

    def forward(self, x: Tensor) -> Tensor:
        """Class logits, float32 [n, num_classes], of images x, float32 [n, 1, 28, 28] in [−1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits


class DistilledNet(FashionNet):
    """A FashionNet whose outputs [n, feature_dim] predict components of another network's features, and serve as ours.

    They are linear in a layer of `hidden` units.  There are no classes.
    """

    def __init__(self, hidden: int, feature_dim: int, **shape: Any):
        super().__init__(feature_dim=hidden, num_classes=feature_dim, **shape)

    def features(self, x: Tensor) -> Tensor:
        """Predicted components, float32 [n, feature_dim], of images x, float32 [n, 1, 28, 28] in [−1, 1]."""
        components: Tensor = self.head(super().features(x))
        return components

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        return self.features(x)


def _stage(c_in: int, c_out: int, kernel_size: int, activation: str, downsample: str) -> nn.Sequential:
    """One convolution stage that halves the resolution."""
    stride = 2 if downsample == "stride" else 1
    convolution = nn.Conv2d(c_in, c_out, kernel_size, stride, padding=kernel_size // 2, bias=False)
    # The mean follows the convolution directly.  It commutes with the affine part of the normalisation, and leaves a
    # quarter of the pixels to normalise and to activate.
    pool = [nn.AvgPool2d(2)] if downsample == "avgpool" else []
    return nn.Sequential(convolution, *pool, nn.BatchNorm2d(c_out), ACTIVATIONS[activation]())


def build_fashion_net(name: str, num_classes: int = 10) -> FashionNet:
    """Untrained FashionNet of the shape that `FASHION_NETS[name]` describes; ValueError for an unknown name."""
    if name not in FASHION_NETS:
        raise ValueError(f"unknown fashion network {name!r}; choose one of {', '.join(FASHION_NETS)}")
    shape = asdict(FASHION_NETS[name])
    hidden, teacher = shape.pop("hidden"), shape.pop("teacher")
    return FashionNet(num_classes=num_classes, **shape) if teacher is None else DistilledNet(hidden, **shape)


def load_fashion_net(name: str, path: str | Path | None = None) -> FashionNet:
    """Trained FashionNet `name` in evaluation mode, frozen; weights from `path` or the embedded asset.

    ValueError for an unknown name; FileNotFoundError, naming the command that trains them, for missing weights.
    """
    net, weights = build_fashion_net(name), _fashion_weights(name, path)
    try:
        net.load_state_dict(read_tensors(weights)[0])
    except Damaged:  # it names the file and the remedy
        raise
    except Exception as unfit:  # safetensors and torch may raise anything for a wrong file
        reason = first_line(unfit)
        raise ValueError(f"{weights} does not hold the weights of {name} ({reason}); pass the right file") from None
    return net.eval().requires_grad_(False)


def _fashion_weights(name: str, path: str | Path | None) -> Path:
    weights = Path(path) if path is not None else ASSETS / f"{name}.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"the weights of {name} are missing ({weights}); train them with "
            f"`python -m sit_rl.pretrain features --networks {name}`"
        )
    return weights


def prepare_fashion_images(images: Tensor) -> Tensor:
    """uint8 [n, 1 or 3, H, W] → float32 [n, 1, 28, 28] in [−1, 1].

    Three channels are averaged to grey; another size is resized by antialiased bilinear interpolation (pixel centres
    at half-integers, no rounding back to uint8).
    """
    x = images.to(torch.float32)
    if x.shape[1] == 3:
        x = x.mean(dim=1, keepdim=True)
    if x.shape[2:] != (FASHION_SIZE, FASHION_SIZE):
        size = (FASHION_SIZE, FASHION_SIZE)
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return x / HALF_RANGE - 1


def fashion_extractor(name: str, weights: str | Path | None, device: str | torch.device) -> FeatureExtractor:
    """Extractor of the embedded network `name`, features alone."""
    net = load_fashion_net(name, weights).to(device)
    return FeatureExtractor(
        net.features,
        prepare_fashion_images,
        name=name,
        dim=FASHION_NETS[name].feature_dim,
        preprocessing="mean over channels, antialiased bilinear to 28x28, x / 127.5 - 1",
        weights_sha256=file_sha256(_fashion_weights(name, weights)),
        device=device,
    )


def fashion_with_logits(name: str, weights: str | Path | None, device: str | torch.device) -> FeatureExtractor:
    """The embedded network with the logits of its head; its features alone if it is no classifier."""
    plain = fashion_extractor(name, weights, usable_device(device))
    if FASHION_NETS[name].teacher is not None:
        return plain
    net = load_fashion_net(name, weights).to(plain.device)

    def both(prepared: Tensor) -> dict[str, Tensor]:
        features = net.features(prepared)
        return {"features": features, "logits": net.head(features)}

    return _with_identity_of(plain, both)


def _with_identity_of(plain: FeatureExtractor, network: Callable[[Tensor], dict[str, Tensor]]) -> MultiExtractor:
    return MultiExtractor(
        network,
        plain.prepare,
        name=plain.name,
        dim=plain.dim,
        preprocessing=plain.preprocessing,
        weights_sha256=plain.weights_sha256,
        device=plain.device,
    )
