"""How each tool resizes images to 299 pixels and scales their values for Inception."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastfid.features.preparation import pil_bicubic_float, tf1_bilinear

INCEPTION_SIDE = 299  # S of Inception v3, pixels


def _tf1(images: Tensor) -> Tensor:
    """TensorFlow-1 bilinear (corner-aligned grid of its resize_bilinear), then (x − 128)/128."""
    return (tf1_bilinear(images, INCEPTION_SIDE) - 128) / 128


def _bilinear(images: Tensor) -> Tensor:
    """pytorch-fid: bilinear on [0, 1] about pixel centres without antialiasing, then 2x − 1."""
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    return 2 * F.interpolate(images.float() / 255, size=size, mode="bilinear", align_corners=False) - 1


def _antialiased(images: Tensor) -> Tensor:
    """torchmetrics ≥ 1.8: antialiased bilinear on 0…255, then (x − 128)/128."""
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return (resized - 128) / 128


def _clean(images: Tensor) -> Tensor:
    """clean-fid: PIL bicubic of every channel in float, clipped to 0…255, not rounded, then (x − 128)/128."""
    return (pil_bicubic_float(images, INCEPTION_SIDE) - 128) / 128


INCEPTION_INPUTS = {  # name: (function, its description)
    "tf1": (_tf1, "TensorFlow-1 bilinear to 299x299, (x - 128) / 128"),
    "bilinear": (_bilinear, "bilinear to 299x299 without antialiasing, 2x - 1 on [0, 1]"),
    "antialiased": (_antialiased, "antialiased bilinear to 299x299, (x - 128) / 128"),
    "clean": (_clean, "PIL bicubic on float channels to 299x299, clipped, (x - 128) / 128"),
}
