"""Features with a gradient in the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastfid.features.extractor import FeatureExtractor, evaluation_mode
from fastfid.runtime.devices import full_float32


def differentiable_features(
    extractor: FeatureExtractor, images: Tensor, value_range: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Features [n, d] of float images [n, c, h, w], with their gradient in the images.

    value_range  (0, 1)  of the images; they become 0…255 without rounding, and are not clipped

    Images of 256 levels have the features of `extractor` up to float32 rounding.  The network's weights get no
    gradient.  ValueError for integers or another shape, and for a network whose preparation passes no gradient on.
    """
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range is {value_range}; pass two numbers (low, high) with low < high")
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a float tensor [n, c, h, w], got {what}; a gradient needs floats")
    pixels = (images.to(extractor.device) - low) * (255 / (high - low))
    parts = extractor.network, extractor.prepare
    with evaluation_mode(*parts), _frozen(*parts), full_float32(extractor.device), torch.inference_mode(False):
        with torch.enable_grad():
            found = extractor.network(extractor.prepare(pixels))
    features: Tensor = found["features"] if isinstance(found, dict) else found
    if images.requires_grad and not features.requires_grad:
        raise ValueError(
            f"{extractor.name} passes no gradient on to the images (its preparation: {extractor.preprocessing}); "
            "choose a network that is prepared by torch operations on floats"
        )
    return features


@contextmanager
def _frozen(*networks: object) -> Iterator[None]:
    """Within this block the parameters of these modules, or of the owners of these methods, want no gradient."""
    owners = [getattr(network, "__self__", network) for network in networks]
    wanting = [p for owner in owners if isinstance(owner, nn.Module) for p in owner.parameters() if p.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
