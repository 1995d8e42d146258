"""Names of the networks for the help of the command line; nothing here loads torch.

registry.py makes extractors from the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

BATCH_SIZE = 256  # images a network sees at once; 256 × 3 × 299² float32 of Inception input are 275 MB


@dataclass(frozen=True)
class FashionNetConfig:
    """Shape of a FashionNet: channels of its three stages, feature width d, kernel side, activation, downsampling."""

    channels: tuple[int, int, int]
    feature_dim: int
    kernel_size: int
    activation: str  # "relu", "gelu" or "silu"
    downsample: str  # "stride" (strided convolution) or "avgpool" (2×2 mean after the convolution)
    hidden: int | None = None  # width of a layer before the features of a network that is no classifier
    teacher: str | None = None  # the network whose features it predicts in place of classes


# Networks of different shapes, so that some can judge a reward that uses others.  fashion-f is no classifier: it
# predicts the features of EfficientNet-Lite0.
FASHION_NETS = {
    "fashion-a": FashionNetConfig((32, 64, 128), 128, kernel_size=3, activation="relu", downsample="stride"),
    "fashion-b": FashionNetConfig((24, 48, 96), 96, kernel_size=5, activation="gelu", downsample="avgpool"),
    "fashion-c": FashionNetConfig((24, 56, 112), 112, kernel_size=5, activation="gelu", downsample="stride"),
    "fashion-d": FashionNetConfig((20, 48, 96), 160, kernel_size=3, activation="relu", downsample="avgpool"),
    "fashion-e": FashionNetConfig((48, 64, 80), 80, kernel_size=3, activation="silu", downsample="stride"),
    "fashion-f": FashionNetConfig(
        (48, 96, 192),
        128,
        kernel_size=3,
        activation="gelu",
        downsample="stride",
        hidden=256,
        teacher="efficientnet-lite0",
    ),  # fmt: skip
}

DINOV2_MODELS = {  # the name here: timm's name of the same network
    "dinov2": "vit_large_patch14_dinov2",
    "dinov2-s": "vit_small_patch14_dinov2",
    "dinov2-b": "vit_base_patch14_dinov2",
    "dinov2-g": "vit_giant_patch14_dinov2",
}


class ClipModel(NamedTuple):
    """timm's name of a CLIP image tower, the width of its projection, and whether its activation is QuickGELU."""

    timm_name: str
    dim: int
    quick_gelu: bool


CLIP_MODELS = {  # OpenAI's networks, with the QuickGELU they were trained with; OpenCLIP's (LAION) with plain GELU
    "clip-b32": ClipModel("vit_base_patch32_clip_224", 512, quick_gelu=True),
    "clip-l14": ClipModel("vit_large_patch14_clip_224", 768, quick_gelu=True),
    "clip-l14-336": ClipModel("vit_large_patch14_clip_336", 768, quick_gelu=True),  # CMMD's
    "openclip-b32": ClipModel("vit_base_patch32_clip_224", 512, quick_gelu=False),
    "openclip-l14": ClipModel("vit_large_patch14_clip_224", 768, quick_gelu=False),
}

# EfficientNet-Lite by the side S of its input.  Lite0 was trained at 224 pixels.  96 pixels are eight times as fast,
# and 97% of its units still respond to images of 28 pixels.  Both are multiples of 32, its total stride.  Lite1 is a
# sibling, which judges where fashion-f, distilled from Lite0, is rewarded.
EFFICIENTNET_SIDES = {"efficientnet-lite0": 96, "efficientnet-lite0-224": 224, "efficientnet-lite1": 96}

NETWORK_NAMES = (*FASHION_NETS, "inception", *DINOV2_MODELS, *CLIP_MODELS, *EFFICIENTNET_SIDES)
