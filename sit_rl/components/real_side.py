"""The real side of a reward or an evaluation: features of real images, or a file of statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fastfid import FeatureExtractor, FeatureMoments
from fastfid.identity import NetworkFeatures, mismatch
from fastfid.images.open import open_images
from fastfid.images.source import ImageSource, counted
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import Statistics, read_statistics
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.messages import say
from sit_rl.ranks.preemption import stop_if_told

# Images per batch: large enough for the CPU's convolutions to be efficient, small enough for their workspace.
FEATURE_BATCH = 250
FEWEST_REAL = 2  # of which there is a covariance; fastfid's warnings tell where the images are fewer than features


@dataclass(frozen=True)
class RealSide:
    """Moments of real images through one network, and the features float32 [n, d] unless they came as statistics.

    labels  classes int64 [n] of the features' images, numbered as the generator's; None where they are not known
    """

    moments: FeatureMoments
    features: torch.Tensor | None
    labels: torch.Tensor | None = None


def extract_real(source: torch.Tensor | Path, net: FeatureExtractor, label: str, progress: bool) -> RealSide:
    """Moments and features of images (tensor, folder, zip, npz), or the moments of a file of statistics or features.

    Every rank calls it. Preempted between two batches if the run was told to stop.
    """
    statistics = saved_statistics(source, net)
    if statistics is not None:
        return RealSide(statistics.moments.to(net.device), None)
    images = open_images(source)
    told = list(images.notes)  # by validate_real
    parts = []
    with tqdm(total=len(images), desc=label, unit="image", disable=not progress, leave=False) as bar:
        for several in _groups(images.batches(FEATURE_BATCH), torch.get_num_threads()):
            for part in map_batches(net, several, net.device):
                parts.append(part)
                bar.update(len(part))
            stop_if_told()
    for note in images.notes:
        if note not in told:  # of what only decoding finds
            say(f"note: {note}")
    features = torch.cat(parts)
    return RealSide(FeatureMoments.from_features(features), features, _labels(images))


def _labels(images: ImageSource) -> torch.Tensor | None:
    """The classes int64 [n] of images whose labels are all numbers; None for others."""
    names = images.labels(0, len(images))
    if not names or not all(name.isdecimal() for name in names):
        return None
    return torch.tensor([int(name) for name in names])


def validate_real(source: Path, nets: list[FeatureExtractor]) -> None:
    """ValueError or OSError, before features are computed, if real images or statistics cannot be used.

    Prints on the main rank what lies beside the images and is not read.
    """
    if not holds_statistics(source):
        images = open_images(source)
        if len(images) < FEWEST_REAL:
            raise ValueError(
                f"{source} holds {counted(len(images), 'image')}; a distance needs thousands of real images"
            )
        next(iter(images.batches(1)))
        for note in images.notes:
            say(f"note: {note}")
        return
    for net in nets:
        saved_statistics(source, net)


def check_shape(
    source: Path, decode: Callable[[torch.Tensor], torch.Tensor], model: GeneratorModel, device: torch.device
) -> None:
    """ValueError if real images have another size or other channels than the generator's, which distances would hide.

    decode  samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
    """
    if holds_statistics(source):
        return
    found = tuple(open_images(source).image(0).shape)
    made = tuple(decode(torch.zeros((1, *model.sample_shape), device=device)).shape[1:])
    if found != made:
        raise ValueError(
            f"{source} holds images of {_size(found)}, and the generator makes images of {_size(made)}; pass real "
            "images of its size and channels"
        )


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def saved_statistics(source: torch.Tensor | Path, net: FeatureExtractor) -> Statistics | None:
    """What a file of statistics or features holds for the network `net`, as `fastfid` reads it; None for images.

    ValueError or OSError for a damaged file, and for statistics of another network.
    """
    if not isinstance(source, Path) or not holds_statistics(source):
        return None
    statistics = read_statistics(source, net.name)
    check_statistics(statistics, net)
    return statistics


def check_statistics(statistics: Statistics, net: FeatureExtractor) -> None:
    """ValueError if saved statistics come from another network: another d, other weights or another resizing."""
    network, found = NetworkFeatures(f"the network {net.name}", net.dim, net.identity), None
    if statistics.dim != net.dim:
        found = f"{statistics.name} has d = {statistics.dim} features, {network.name} has d = {net.dim}"
    found = found or mismatch(statistics, network)
    if found:
        raise ValueError(
            f"{found}; pass images, statistics by `fastfid stats --network {net.name}`, or other --reward-features "
            "and --judge-features (none: no judge)"
        )


def _groups(items: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Consecutive items, `size` at a time, so that only so many are read ahead."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
