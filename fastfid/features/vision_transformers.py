"""DINOv2 and CLIP, built by timm, with weights from a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.features.extractor import FeatureExtractor, usable_device
from fastfid.features.names import CLIP_MODELS, DINOV2_MODELS
from fastfid.features.preparation import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    as_rgb,
    chosen_input,
    imagenet_standardised,
    pil_bicubic,
    scaled_to_255,
    standardised,
    tf1_bilinear,
    to_rgb,
)
from fastfid.features.torchscript import load_torchscript
from fastfid.features.weight_files import read_state, unfit_weights
from fastfid.runtime.hashes import file_sha256

DINOV2_SIDE = 224  # S at which dgm-eval and EDM2 run DINOv2, pixels: 16 × 16 patches of 14

# DINOv2's own resampling of its 37 × 37 position embeddings adds this to the wanted side before it divides
# (facebookresearch/dinov2, interpolate_offset), without antialiasing; timm resamples otherwise.
POSITION_OFFSET = 0.1

# OpenAI publishes its networks as TorchScript archives, which run code when loaded.  These three are opened because
# their SHA-256 is known: it is part of their address (openai/CLIP, clip/clip.py).
OPENAI_ARCHIVES = frozenset({
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",  # ViT-B-32.pt
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",  # ViT-L-14.pt
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",  # ViT-L-14-336px.pt
})  # fmt: skip


def _dinov2_pil(images: Tensor) -> Tensor:
    """dgm-eval: PIL bicubic on uint8, which rounds, then /255 and ImageNet's statistics."""
    return imagenet_standardised(pil_bicubic(images, (DINOV2_SIDE, DINOV2_SIDE)).float() / 255)


def _dinov2_torch(images: Tensor) -> Tensor:
    """EDM2's default: torch's antialiased bicubic in float, neither clipped nor rounded."""
    size = (DINOV2_SIDE, DINOV2_SIDE)
    return imagenet_standardised(F.interpolate(images.float(), size=size, mode="bicubic", antialias=True) / 255)


def _dinov2_tf1(images: Tensor) -> Tensor:
    """torch-fidelity: TensorFlow-1 bilinear without antialiasing, then ImageNet's statistics."""
    return standardised(tf1_bilinear(images, DINOV2_SIDE), scaled_to_255(IMAGENET_MEAN), scaled_to_255(IMAGENET_STD))


DINOV2_INPUTS = {  # name: (function, its description)
    "pil": (_dinov2_pil, "PIL bicubic on uint8 to 224x224, /255, ImageNet mean and std"),
    "torch": (_dinov2_torch, "antialiased bicubic in float to 224x224, /255, ImageNet mean and std"),
    "tf1": (_dinov2_tf1, "TensorFlow-1 bilinear to 224x224, /255, ImageNet mean and std"),
}


def _clip_pil(images: Tensor, side: int) -> Tensor:
    """OpenAI's and clean-fid's: PIL bicubic on uint8 of the shorter side to `side`, centre crop, CLIP's statistics."""
    height, width = images.shape[-2:]
    short = min(height, width)
    resized = pil_bicubic(images, (side * height // short, side * width // short))
    top, left = (round((length - side) / 2) for length in resized.shape[-2:])
    return standardised(resized[..., top : top + side, left : left + side].float() / 255, CLIP_MEAN, CLIP_STD)


def _clip_square(images: Tensor, side: int) -> Tensor:
    """CMMD's: the centre square, PIL bicubic on uint8 to `side`, CLIP's statistics."""
    height, width = images.shape[-2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = images[..., top : top + short, left : left + short].contiguous()
    return standardised(pil_bicubic(square, (side, side)).float() / 255, CLIP_MEAN, CLIP_STD)


def _clip_tf1(images: Tensor, side: int) -> Tensor:
    """torch-fidelity: TensorFlow-1 bilinear of the whole image, then CLIP's statistics."""
    return standardised(tf1_bilinear(images, side), scaled_to_255(CLIP_MEAN), scaled_to_255(CLIP_STD))


CLIP_INPUTS = {  # name: (function of images and side, its description with a placeholder for the side)
    "pil": (_clip_pil, "PIL bicubic on uint8, shorter side to {0}, centre crop, /255, CLIP mean and std"),
    "square": (_clip_square, "centre square, PIL bicubic on uint8 to {0}x{0}, /255, CLIP mean and std"),
    "tf1": (_clip_tf1, "TensorFlow-1 bilinear to {0}x{0}, /255, CLIP mean and std"),
}


def dinov2_extractor(
    name: str, input_name: str, weights: str | Path | None, device: str | torch.device
) -> FeatureExtractor:
    """CLS token of DINOv2 at 224 pixels, built by timm without its own download."""
    resize, sentence = chosen_input(name, DINOV2_INPUTS, input_name)
    timm, weights = _timm(name, "dinov2"), _stated(weights, name, DINOV2_MODELS[name])
    model = timm.create_model(DINOV2_MODELS[name], pretrained=False, num_classes=0, img_size=DINOV2_SIDE)
    load_dinov2(model, weights)
    return _transformer(name, model, resize, sentence, model.num_features, weights, device)


def clip_extractor(
    name: str, input_name: str, weights: str | Path | None, device: str | torch.device
) -> FeatureExtractor:
    """Projected image embedding of CLIP, not normalised, built by timm without its own download."""
    resize, sentence = chosen_input(name, CLIP_INPUTS, input_name)
    timm_name, dim, quick_gelu = CLIP_MODELS[name]
    activation = {"act_layer": "quick_gelu"} if quick_gelu else {}
    timm, weights = _timm(name, "clip"), _stated(weights, name, timm_name)
    model = timm.create_model(timm_name, pretrained=False, num_classes=dim, **activation)
    load_clip(model, weights)
    side = model.patch_embed.img_size[0]
    return _transformer(name, model, partial(resize, side=side), sentence.format(side), dim, weights, device)


def _timm(name: str, extra: str) -> Any:
    """The timm package; ImportError names the extra that installs it."""
    try:
        import timm
    except ImportError as missing:
        raise ImportError(f"{name} is built by timm: pip install 'fastfid[{extra}]'") from missing
    return timm


def _stated(weights: str | Path | None, name: str, timm_name: str) -> str | Path:
    """The file of weights; FileNotFoundError if none is stated, because timm's own download is never used."""
    if weights is None:
        raise FileNotFoundError(
            f"{name} needs its weights from a file: fetch those of {timm_name} (timm's layout or the publisher's own) "
            "and pass weights= (--weights)"
        )
    return weights


def _transformer(
    name: str,
    model: nn.Module,
    resize: Callable[[Tensor], Tensor],
    sentence: str,
    dim: int,
    weights: str | Path,
    device: str | torch.device,
) -> FeatureExtractor:
    """The extractor of a loaded transformer; `resize` prepares its images."""
    device = usable_device(device)
    return FeatureExtractor(
        model.to(device).eval().requires_grad_(False),
        lambda images: resize(to_rgb(images)),
        name=name,
        dim=dim,
        preprocessing=as_rgb(sentence),
        weights_sha256=file_sha256(weights),
        device=device,
    )


def load_dinov2(model: Any, weights: str | Path) -> None:
    """Load `weights` (.safetensors or .pth, timm's or Meta's key layout) into timm's `model`, in place.

    Position embeddings [1, 1 + P, C] of another input side are resampled as DINOv2's own code does.  FileNotFoundError
    for a missing file, ValueError for one that does not fit.
    """
    state = read_state(weights)
    state.pop("mask_token", None)  # of pretraining only
    try:
        state["pos_embed"] = resampled_positions(state["pos_embed"], model.pos_embed.shape[1] - 1)
        model.load_state_dict(state)
    except Exception as unfit:  # torch may raise anything for a wrong state
        raise unfit_weights(weights, "DINOv2", unfit) from None


def load_clip(model: Any, weights: str | Path) -> None:
    """Load a CLIP image tower into timm's `model`, in place, from timm's, OpenCLIP's or OpenAI's key layout.

    weights  .safetensors, or a .pt, .bin or .pth that torch.load reads without running code; OpenAI's own TorchScript
             archives are opened if their hash is one of OPENAI_ARCHIVES.  Text towers are ignored.

    FileNotFoundError for a missing file, ValueError for one that does not fit.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = _openai_state(weights) or read_state(weights)
    try:
        model.load_state_dict(checkpoint_filter_fn(state, model))
    except Exception as unfit:  # timm and torch may raise anything for a wrong state
        raise unfit_weights(weights, "CLIP", unfit) from None


def _openai_state(weights: str | Path) -> dict[str, Tensor] | None:
    """State of a TorchScript archive that OpenAI published, by its hash; None for any other file."""
    if not Path(weights).is_file() or file_sha256(weights) not in OPENAI_ARCHIVES:
        return None
    return load_torchscript(weights, "cpu").state_dict()


def resampled_positions(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings [1, 1 + M², C] → [1, 1 + patches, C], bicubic, by DINOv2's rule (POSITION_OFFSET)."""
    if positions.shape[1] - 1 == patches:
        return positions
    side, wanted = math.isqrt(positions.shape[1] - 1), math.isqrt(patches)
    grid = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (wanted + POSITION_OFFSET) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    grid = grid.permute(0, 2, 3, 1).reshape(1, wanted * wanted, -1)
    return torch.cat([positions[:, :1], grid.to(positions.dtype)], dim=1)
