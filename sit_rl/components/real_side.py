"""Real images seen through one network: extracted features, or a file of statistics, each checked first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fastfid import FeatureExtractor, FeatureMoments
from fastfid.identity import NetworkFeatures, mismatch
from fastfid.images.open import open_images
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import Statistics
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.preemption import stop_if_told

FEATURE_BATCH = 250  # images; large enough for the CPU's convolutions, small enough for their workspace


@dataclass(frozen=True)
class RealSide:
    """Real images seen through one network: their moments, and their features [n, d] where images were given."""

    moments: FeatureMoments
    features: torch.Tensor | None


def extract_real(source: torch.Tensor | Path, net: FeatureExtractor, label: str, progress: bool) -> RealSide:
    """Moments and features of images (tensor, folder, zip, npz), or the moments of a statistics file.

    Every rank calls it; Preempted between two batches where the run was told to stop.
    """
    moments = saved_moments(source)
    if moments is not None:
        check_statistics(Statistics(moments, str(source)), net)
        return RealSide(moments.to(net.device), None)
    images = open_images(source)
    parts = []
    with tqdm(total=len(images), desc=label, unit="image", disable=not progress, leave=False) as bar:
        for several in _groups(images.batches(FEATURE_BATCH), torch.get_num_threads()):
            for part in map_batches(net, several, net.device):
                parts.append(part)
                bar.update(len(part))
            stop_if_told()
    features = torch.cat(parts)
    return RealSide(FeatureMoments.from_features(features), features)


def validate_real(source: Path, nets: list[FeatureExtractor]) -> None:
    """ValueError or OSError, before hours of features, where real images or statistics cannot be what they should."""
    moments = saved_moments(source)
    if moments is None:
        next(iter(open_images(source).batches(1)))
        return
    for net in nets:
        check_statistics(Statistics(moments, str(source)), net)


def saved_moments(source: torch.Tensor | Path) -> FeatureMoments | None:
    """The moments of a statistics file, None for images."""
    if not isinstance(source, Path) or source.suffix != ".npz" or not holds_statistics(source):
        return None
    return FeatureMoments.load(source)


def check_statistics(statistics: Statistics, net: FeatureExtractor) -> None:
    """ValueError where saved statistics are not of the network's features: of another d, weights or resizing."""
    network, found = NetworkFeatures(f"the network {net.name}", net.dim, net.identity), None
    if statistics.dim != net.dim:
        found = f"{statistics.name} has d = {statistics.dim} features, {network.name} has d = {net.dim}"
    found = found or mismatch(statistics, network)
    if found:
        raise ValueError(
            f"{found}; pass images, statistics by `fastfid stats --network {net.name}`, or other --reward-features "
            "and --judge-features (none: no second network)"
        )


def _groups(items: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Consecutive items, `size` at a time: what is read ahead while earlier ones are worked on stays bounded."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
