"""Extractors beyond `fastfid.features`: Inception with every peer's resizing, logits and spatial maps; DINOv2 by timm.

An extractor here is a FeatureExtractor whose `outputs` also gives what the network knows besides the features, in the
same pass: logits (Inception Score) and spatial features (sFID).  Weights come from a local path, or for Inception from
torch-fidelity's download; nothing is fetched that the caller did not ask for.

Legend: n images, d feature dimension, H×W pixels, S side the network expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid import features as base
from fastfid.features import FeatureExtractor, file_sha256

INCEPTION_SIDE = 299  # S of Inception v3, pixels
DINOV2_SIDE = 224  # S at which dgm-eval and EDM2 run DINOv2, pixels: 16 × 16 patches of 14
SPATIAL_CHANNELS = 7  # of the first branch of mixed_6, as ADM's evaluator takes them: 7·17·17 = 2023 features

# ImageNet statistics of RGB on [0, 1], as torchvision and DINOv2 use them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# DINOv2's own resampling of its 37 × 37 position embeddings adds this to the wanted side before it divides
# (facebookresearch/dinov2, interpolate_offset), without antialiasing; timm resamples otherwise.
POSITION_OFFSET = 0.1

# Stages of torch-fidelity's Inception between the normalised image and the 2048 pooled features, in order.
INCEPTION_STAGES = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip

DINOV2_MODELS = {  # the name here: timm's name of the same network
    "dinov2": "vit_large_patch14_dinov2",
    "dinov2-s": "vit_small_patch14_dinov2",
    "dinov2-b": "vit_base_patch14_dinov2",
    "dinov2-g": "vit_giant_patch14_dinov2",
}

NETWORK_NAMES = (*base.EXTRACTOR_NAMES, *DINOV2_MODELS)


class MultiExtractor(FeatureExtractor):
    """A FeatureExtractor that also gives logits or spatial features from the same pass, see `outputs`.

    network takes prepared images and returns a dict with "features" [n, d] and optionally "logits" [n, C] and
    "spatial" [n, s]; everything else is as in FeatureExtractor.
    """

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All the network gives for images, uint8 [n, 1 or 3, H, W]: float32 tensors on the CPU, by name."""
        base._check_images(images)
        found = self.network(self.prepare(images.to(self.device)))
        if found["features"].shape != (len(images), self.dim):
            raise ValueError(
                f"{self.name} returned features {tuple(found['features'].shape)} for {len(images)} images; they must "
                f"be ({len(images)}, {self.dim})"
            )
        return {name: value.to(torch.float32).cpu() for name, value in found.items()}

    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 [n, d], of images, uint8 [n, 1 or 3, H, W]."""
        return self.outputs(images)["features"] if len(images) else torch.empty(0, self.dim)


def outputs_of(extractor: FeatureExtractor, images: Tensor) -> dict[str, Tensor]:
    """{"features": [n, d], …} of any extractor for uint8 images [n, C, H, W], float32 on the CPU."""
    if isinstance(extractor, MultiExtractor):
        return extractor.outputs(images)
    return {"features": extractor(images).cpu()}


def build_extractor(
    name: str,
    input_name: str | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    spatial: bool = False,
) -> FeatureExtractor:
    """Extractor `name` fed as `input_name` says (a name of INCEPTION_INPUTS or DINOV2_INPUTS), with logits if any.

    spatial  also give the spatial features of sFID (Inception only)

    ValueError for unknown names, FileNotFoundError for missing weights, ImportError naming the extra to install.
    """
    if name == "inception":
        return _inception(input_name or "tf1", weights, device, spatial)
    if name in DINOV2_MODELS:
        return _dinov2(name, input_name or "pil", weights, device)
    if name in base.FASHION_NETS:
        return _fashion(name, weights, device)
    raise ValueError(f"unknown feature network {name!r}; choose one of {', '.join(NETWORK_NAMES)}")


# --- fashion-a, fashion-b ----------------------------------------------------------------------------------------


def _fashion(name: str, weights: str | Path | None, device: str | torch.device) -> MultiExtractor:
    """The embedded network with the logits of its head."""
    plain = base.feature_extractor(name, weights, device)
    net = base.load_fashion_net(name, weights).to(plain.device)

    def both(prepared: Tensor) -> dict[str, Tensor]:
        features = net.features(prepared)
        return {"features": features, "logits": net.head(features)}

    return _with_identity_of(plain, both)


def _with_identity_of(plain: FeatureExtractor, network: Callable) -> MultiExtractor:
    return MultiExtractor(
        network,
        plain.prepare,
        name=plain.name,
        dim=plain.dim,
        preprocessing=plain.preprocessing,
        weights_sha256=plain.weights_sha256,
        device=plain.device,
    )


# --- Inception ---------------------------------------------------------------------------------------------------


def _tf1(images: Tensor) -> Tensor:
    """TensorFlow-1 bilinear (corner-aligned grid of its resize_bilinear), then (x − 128)/128."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    return (interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=size, align_corners=False) - 128) / 128


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


def pil_bicubic_float(images: Tensor, side: int) -> Tensor:
    """PIL's antialiased bicubic on float channels: uint8 [n, C, H, W] → float32 [n, C, side, side] within 0…255."""
    from PIL import Image

    n, channels = images.shape[:2]
    planes = images.cpu().numpy().astype(np.float32).reshape(n * channels, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in planes]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).reshape(n, channels, side, side).to(images.device)


INCEPTION_INPUTS = {  # name: (function, the sentence of provenance)
    "tf1": (_tf1, "TensorFlow-1 bilinear to 299x299, (x - 128) / 128"),
    "bilinear": (_bilinear, "bilinear to 299x299 without antialiasing, 2x - 1 on [0, 1]"),
    "antialiased": (_antialiased, "antialiased bilinear to 299x299, (x - 128) / 128"),
    "clean": (_clean, "PIL bicubic on float channels to 299x299, clipped, (x - 128) / 128"),
}


def _inception(
    input_name: str, weights: str | Path | None, device: str | torch.device, spatial: bool
) -> MultiExtractor:
    """The TensorFlow Inception of 2015 in torch-fidelity's port, stage by stage behind any of INCEPTION_INPUTS."""
    if input_name not in INCEPTION_INPUTS:
        raise ValueError(f"unknown input {input_name!r} of inception; choose one of {', '.join(INCEPTION_INPUTS)}")
    device = base._usable_device(device)
    network, digest = base.load_inception(weights, device)
    resize, sentence = INCEPTION_INPUTS[input_name]
    return MultiExtractor(
        InceptionOutputs(network, spatial),
        lambda images: resize(base._to_rgb(images)),
        name="inception",
        dim=base.INCEPTION_DIM,
        preprocessing=f"grey repeated to RGB, {sentence}",
        weights_sha256=digest,
        device=device,
    )


class InceptionOutputs(nn.Module):
    """Pooled features [n, 2048], logits without bias [n, 1008] and on request spatial features [n, 2023].

    `network` is torch-fidelity's FeatureExtractorInceptionV3; the images [n, 3, 299, 299] are resized and normalised
    already.  The logits leave the bias out, as the Inception Score's graph does; the spatial features are the first
    seven channels of mixed_6's 1×1 branch in the order [17, 17, 7], as ADM's evaluator flattens them.
    """

    def __init__(self, network: nn.Module, spatial: bool = False):
        super().__init__()
        self.network, self.spatial = network, spatial

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


# --- DINOv2 ------------------------------------------------------------------------------------------------------


def _imagenet(x: Tensor) -> Tensor:
    """Standardise RGB on [0, 1] by ImageNet's mean and deviation."""
    mean, std = (x.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def _dinov2_pil(images: Tensor) -> Tensor:
    """dgm-eval: PIL bicubic on uint8, which rounds, then /255 and ImageNet's statistics."""
    from PIL import Image

    size = (DINOV2_SIDE, DINOV2_SIDE)
    pictures = (Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images.cpu())
    resized = np.stack([np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures])
    return _imagenet(torch.from_numpy(resized).permute(0, 3, 1, 2).to(images.device).float() / 255)


def _dinov2_torch(images: Tensor) -> Tensor:
    """EDM2's default: torch's antialiased bicubic in float, neither clipped nor rounded."""
    size = (DINOV2_SIDE, DINOV2_SIDE)
    return _imagenet(F.interpolate(images.float(), size=size, mode="bicubic", antialias=True) / 255)


def _dinov2_tf1(images: Tensor) -> Tensor:
    """torch-fidelity: TensorFlow-1 bilinear without antialiasing, then ImageNet's statistics."""
    try:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
    except ImportError as missing:
        raise ImportError(
            "TensorFlow-1 resizing comes from torch-fidelity: pip install 'fastfid[inception]'"
        ) from missing
    size = (DINOV2_SIDE, DINOV2_SIDE)
    resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=size, align_corners=False)
    return _imagenet(resized / 255)


DINOV2_INPUTS = {  # name: (function, the sentence of provenance)
    "pil": (_dinov2_pil, "PIL bicubic on uint8 to 224x224, /255, ImageNet mean and std"),
    "torch": (_dinov2_torch, "antialiased bicubic in float to 224x224, /255, ImageNet mean and std"),
    "tf1": (_dinov2_tf1, "TensorFlow-1 bilinear to 224x224, /255, ImageNet mean and std"),
}


def _dinov2(name: str, input_name: str, weights: str | Path | None, device: str | torch.device) -> FeatureExtractor:
    """CLS token of DINOv2 at 224 pixels, built by timm without its own download."""
    if input_name not in DINOV2_INPUTS:
        raise ValueError(f"unknown input {input_name!r} of {name}; choose one of {', '.join(DINOV2_INPUTS)}")
    try:
        import timm
    except ImportError as missing:
        raise ImportError(f"{name} is built by timm: pip install 'fastfid[dinov2]'") from missing
    if weights is None:
        raise FileNotFoundError(
            f"{name} needs its weights from a file: fetch {DINOV2_MODELS[name]} in timm's or Meta's layout and pass "
            "weights= (--weights)"
        )
    device = base._usable_device(device)
    model = timm.create_model(DINOV2_MODELS[name], pretrained=False, num_classes=0, img_size=DINOV2_SIDE)
    load_dinov2(model, weights)
    resize, sentence = DINOV2_INPUTS[input_name]
    return FeatureExtractor(
        model.to(device).eval().requires_grad_(False),
        lambda images: resize(base._to_rgb(images)),
        name=name,
        dim=model.num_features,
        preprocessing=f"grey repeated to RGB, {sentence}",
        weights_sha256=file_sha256(weights),
        device=device,
    )


def load_dinov2(model: nn.Module, weights: str | Path) -> None:
    """Load `weights` (.safetensors or .pth, timm's or Meta's key layout) into timm's `model`, in place.

    Position embeddings [1, 1 + P, C] of another input side are resampled as DINOv2's own code does.  FileNotFoundError
    for a missing file, ValueError for one that does not fit.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no weights file at {weights}; pass the path of the downloaded weights")
    state = _read_state(Path(weights))
    state.pop("mask_token", None)  # of pretraining only
    try:
        state["pos_embed"] = resampled_positions(state["pos_embed"], model.pos_embed.shape[1] - 1)
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as unfit:
        reason = str(unfit).splitlines()[0]
        raise ValueError(f"{weights} does not hold these DINOv2 weights ({reason}); pass the right file") from None


def _read_state(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as damaged:  # damaged files raise nearly anything
        reason = (str(damaged).splitlines() or [type(damaged).__name__])[0]
        raise ValueError(f"{path} is no readable weights file ({reason}); download it again") from None


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
