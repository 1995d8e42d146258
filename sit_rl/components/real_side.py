"""The real side of a reward or an evaluation: features of real images, or a file of statistics."""

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

# Images per batch: large enough for the CPU's convolutions to be efficient, small enough for their workspace.
FEATURE_BATCH = 250


@dataclass(frozen=True)
class RealSide:
    """Moments of real images through one network, and the features float32 [n, d] unless they came as statistics."""

    moments: FeatureMoments
    features: torch.Tensor | None


def extract_real(source: torch.Tensor | Path, net: FeatureExtractor, label: str, progress: bool) -> RealSide:
    """Moments and features of images (tensor, folder, zip, npz), or the moments of a statistics file.

    Every rank calls it. Preempted between two batches if the run was told to stop.
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
    """ValueError or OSError, before features are computed, if real images or statistics cannot be used."""
    moments = saved_moments(source)
    if moments is None:
        next(iter(open_images(source).batches(1)))
        return
    for net in nets:
        check_statistics(Statistics(moments, str(source)), net)


def saved_moments(source: torch.Tensor | Path) -> FeatureMoments | None:
    """The moments of a statistics file; None for images."""
    if not isinstance(source, Path) or source.suffix != ".npz" or not holds_statistics(source):
        return None
    return FeatureMoments.load(source)


def check_statistics(statistics: Statistics, net: FeatureExtractor) -> None:
    """ValueError if saved statistics come from another network: another d, other weights or another resizing."""
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
    """Consecutive items, `size` at a time, so that only so many are read ahead."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
