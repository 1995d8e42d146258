"""Every named extractor: Inception with each peer's resizing, DINOv2 and CLIP by timm, EfficientNet-Lite0, TorchScript,
and a user's own.

Inception, EfficientNet-Lite0 and the fashion networks are MultiExtractors: `outputs` also gives logits (for the
Inception Score) and spatial features (sFID) from the same pass.  Weights come from a local path.  Those of
EfficientNet-Lite0 are in its pip package, and torch-fidelity can download those of Inception.  Nothing else is fetched.

Legend: n images, d feature dimension, H×W pixels, S side the network expects.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fastfid.features.efficientnet import efficientnet_extractor
from fastfid.features.extractor import FeatureExtractor, usable_device
from fastfid.features.fashion import fashion_extractor, fashion_with_logits
from fastfid.features.inception import inception_extractor
from fastfid.features.inception_resizing import INCEPTION_INPUTS
from fastfid.features.names import CLIP_MODELS, DINOV2_MODELS, EFFICIENTNET_SIDES, FASHION_NETS, NETWORK_NAMES
from fastfid.features.own_network import own_network
from fastfid.features.preparation import as_rgb, chosen_input
from fastfid.features.small_networks import SMALL, named_small
from fastfid.features.torchscript import TORCHSCRIPT, named_torchscript
from fastfid.features.vision_transformers import DINOV2_INPUTS, clip_extractor, dinov2_extractor
from fastfid.protocols import Protocol
from fastfid.runtime.imported_objects import FORM, object_name


def build_extractor(
    name: str,
    input_name: str | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    spatial: bool = False,
) -> FeatureExtractor:
    """Extractor `name`, with its logits; `input_name` is a name in INCEPTION_INPUTS, DINOV2_INPUTS or CLIP_INPUTS.

    name     of NETWORK_NAMES, "small:PATH" (see small_networks.py), "torchscript:PATH?side=S&range=R" (see
             `torchscript_extractor`), or a user's own, package.module:NAME or FILE.py:NAME (see own_network.py)
    spatial  also give the spatial features of sFID (Inception only)

    ValueError for unknown names, FileNotFoundError for missing weights, ImportError naming the extra to install.
    """
    if name == "inception":
        return inception_extractor(input_name or "tf1", weights, device, spatial)
    if name in DINOV2_MODELS:
        return dinov2_extractor(name, input_name or "pil", weights, device)
    if name in CLIP_MODELS:
        return clip_extractor(name, input_name or "pil", weights, device)
    if name in EFFICIENTNET_SIDES:
        return efficientnet_extractor(name, weights, device)
    if name in FASHION_NETS:
        return fashion_with_logits(name, weights, device)
    if name.startswith(TORCHSCRIPT):
        return named_torchscript(name, device)
    if name.startswith(SMALL):
        return named_small(name, device)
    own = object_name(name)
    if own is not None:
        return own_network(own, weights, device)
    if Path(name).is_file():
        raise ValueError(
            f"{name} is a file, and a TorchScript file can run code when it is loaded; if you trust it, name it "
            f"{TORCHSCRIPT}{name}"
        )
    raise ValueError(
        f"unknown feature network {name!r}; choose one of {', '.join(NETWORK_NAMES)}, {SMALL}PATH, or "
        f"{TORCHSCRIPT}PATH, or your own, {FORM}"
    )


def preprocessing_of(name: str, protocol: Protocol) -> str:
    """How `protocol` prepares images for the network `name`, "inception" or one of DINOV2_MODELS, as a sentence."""
    inputs = INCEPTION_INPUTS if name == "inception" else DINOV2_INPUTS
    chosen = protocol.inception if name == "inception" else protocol.dinov2
    return as_rgb(chosen_input(name, inputs, chosen)[1])


def feature_extractor(
    name: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureExtractor:
    """Extractor called `name`, as in `build_extractor`, with weights from the file `weights` if given.

    ValueError for an unknown name, an unusable device or a file of the wrong hash, FileNotFoundError for missing
    weights, ImportError naming the extra to install where a package is missing.
    """
    device = usable_device(device)
    if name in FASHION_NETS:
        return fashion_extractor(name, weights, device)
    return build_extractor(name, weights=weights, device=device)
