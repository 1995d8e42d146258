"""Preparation of images for a network: resizing, number of channels, range of values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HALF_RANGE = 127.5  # uint8 x → x / 127.5 − 1 maps 0…255 onto −1…1

# Mean and deviation of RGB on [0, 1]: ImageNet's, as torchvision and DINOv2 use them, and those of CLIP's training set.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def standardised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x − mean)/std by channel, for x [n, 1 or 3, H, W] on [0, 1]; a grey image gets three channels."""
    centre, spread = (x.new_tensor(v)[:, None, None] for v in (mean, std))
    return (x - centre) / spread


VALUE_RANGES: dict[
    str, tuple[Callable[[Tensor], Tensor], str]
] = {  # name: (function of floats in 0…255, its description)
    "-1..1": (lambda x: x / HALF_RANGE - 1, "x / 127.5 - 1"),
    "0..1": (lambda x: x / 255, "x / 255"),
    "0..255": (lambda x: x, "values 0 to 255"),
    "imagenet": (lambda x: standardised(x / 255, IMAGENET_MEAN, IMAGENET_STD), "x / 255, ImageNet mean and std"),
    "clip": (lambda x: standardised(x / 255, CLIP_MEAN, CLIP_STD), "x / 255, CLIP mean and std"),
}


def preparation(
    side: int | None = None, value_range: str = "-1..1", rgb: bool = False
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Function uint8 [n, 1 or 3, H, W] → float32 [n, C, side, side], and a sentence that describes it.

    side         None      pixels, antialiased bilinear; None leaves the images as large as they are
    value_range  "-1..1"   a name of VALUE_RANGES
    rgb          False     repeat a grey channel three times

    ValueError for a side that is no positive integer or an unknown range.
    """
    if side is not None and (not isinstance(side, int) or side < 1):
        raise ValueError(f"side is {side!r}; pass the pixels a side the network expects, or None for no resizing")
    if value_range not in VALUE_RANGES:
        raise ValueError(f"unknown value range {value_range!r}; choose one of {', '.join(VALUE_RANGES)}")
    scale, words = VALUE_RANGES[value_range]
    resized = f"antialiased bilinear to {side}x{side}" if side else "no resizing"

    def prepare(images: Tensor) -> Tensor:
        x = (to_rgb(images) if rgb else images).to(torch.float32)
        if side is not None and x.shape[-2:] != (side, side):
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        return scale(x)

    return prepare, f"{'grey repeated to RGB, ' if rgb else ''}{resized}, {words}"


def to_rgb(images: Tensor) -> Tensor:
    """Images [n, 3, H, W] of [n, 1 or 3, H, W]: a grey channel is repeated."""
    return images.expand(-1, 3, -1, -1).contiguous()


def as_rgb(sentence: str) -> str:
    """The description of a preparation that starts with `to_rgb`."""
    return f"grey repeated to RGB, {sentence}"


def chosen_input(
    name: str, inputs: dict[str, tuple[Callable[..., Tensor], str]], input_name: str
) -> tuple[Callable[..., Tensor], str]:
    """Resizing function and its description; ValueError lists the names."""
    if input_name not in inputs:
        raise ValueError(f"unknown input {input_name!r} of {name}; choose one of {', '.join(inputs)}")
    return inputs[input_name]


def tf1_bilinear(images: Tensor, side: int) -> Tensor:
    """TensorFlow-1 bilinear without antialiasing: uint8 [n, 3, H, W] → float32 [n, 3, side, side] of 0…255."""
    try:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
    except ImportError as missing:
        raise ImportError(
            "TensorFlow-1 resizing comes from torch-fidelity: pip install 'fastfid[inception]'"
        ) from missing
    resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(side, side), align_corners=False)
    return resized


def pil_bicubic_float(images: Tensor, side: int) -> Tensor:
    """PIL's antialiased bicubic on float channels: uint8 [n, C, H, W] → float32 [n, C, side, side] within 0…255."""
    from PIL import Image

    n, channels = images.shape[:2]
    planes = images.cpu().numpy().astype(np.float32).reshape(n * channels, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in planes]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).reshape(n, channels, side, side).to(images.device)


def pil_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """PIL's antialiased bicubic on uint8, which rounds: uint8 [n, 3, H, W] → uint8 [n, 3, *size], size (h, w)."""
    from PIL import Image

    pictures = (Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images.cpu())
    resized = [np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device)


def imagenet_standardised(x: Tensor) -> Tensor:
    """x [n, 3, H, W] on [0, 1], standardised by channel with ImageNet's mean and deviation."""
    return standardised(x, IMAGENET_MEAN, IMAGENET_STD)


def scaled_to_255(statistics: tuple[float, ...]) -> tuple[float, ...]:
    """Channel statistics for pixels of 0…255, as in torch-fidelity; dividing by 255 first changes last bits."""
    return tuple(255 * value for value in statistics)
