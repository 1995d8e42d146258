"""The components of a run's reward, and what they read of images: the trainer's door to fastfid/rewards.

Every image has one row: the features of each network of the reward, side by side, then what each component of the
user's own reads, such as the score of a Python function.  A component reads its own columns.  So features of a network
are computed once an image, however many components read them, and the reference set is one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fastfid import (
    DensityRatioReward,
    FeatureExtractor,
    FrechetReward,
    KernelReward,
    SetReward,
    SlicedWassersteinReward,
)
from fastfid.runtime.even_steps import evenly_spaced
from sit_rl.components.build import Components
from sit_rl.components.networks import features_by_each
from sit_rl.components.real_side import RealSide
from sit_rl.components.try_own_parts import two_images
from sit_rl.config import Config
from sit_rl.reward.own_reward import OwnReward, Reader, load_flagged_reward
from sit_rl.reward_names import PYTHON, ComponentName, networks_of

# Real images, evenly spaced, that kernels and sorted projections compare with: as many as the reference set has by
# default.  Moments are of all real images.
REAL_ROWS = 5_000


@dataclass(frozen=True)
class Component:
    """One component: its name, its weight in the mix, the columns that it reads, and the reward itself."""

    name: str
    weight: float
    columns: slice
    reward: SetReward


@dataclass(frozen=True)
class RewardSide:
    """All components of a run, and how the row of an image is computed.

    networks  those whose features a rollout does not compute: all but the first
    readers   what the components of the user's own read of an image
    sources   SHA-256 of the file of each component of the user's own, by its name
    """

    components: tuple[Component, ...]
    networks: tuple[FeatureExtractor, ...] = ()
    readers: tuple[Reader, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def rows(self, features: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, batch: int) -> torch.Tensor:
        """float32 [n, d]: features [n, d₁] of the first network, and what else the components read of the images.

        images uint8 [n, c, h, w] and labels int64 [n] in host memory, read `batch` at a time as in a rollout
        """
        more = sum(each.dim for each in self.networks) + sum(each.width for each in self.readers)
        if not more or not len(images):  # a rank may own no image
            return features if not more else features.new_empty(0, features.shape[1] + more)
        parts, batches = [features, *features_by_each(self.networks, images, batch)], images.split(batch)
        for reader in self.readers:
            read = [reader.rows(*some) for some in zip(batches, labels.split(batch), strict=True)]
            parts.append(torch.cat(read).to(features))
        return torch.cat(parts, dim=1)


def reward_side(config: Config, components: Components, device: torch.device) -> RewardSide:
    """The components that --reward names, with their real side on `device`.

    ValueError, with the component's name, where it needs the features of real images and --real holds statistics.
    """
    named, first = config.reward_components, config.files.reward_features
    networks = (first, *(name for name in networks_of(named) if name != first))
    nets = (components.reward_net, *components.more_nets)
    sides = dict(zip(networks, (components.real, *components.more_real), strict=True))
    own = _own(config, components)
    widths = [(name, each.reader.width) for name, each in own.items()]
    columns = _columns([*((name, net.dim) for name, net in zip(networks, nets, strict=True)), *widths])
    labels = None if components.real_images is None else components.real_images.labels
    found = []
    kernels: dict[str, KernelReward] = {}  # one on each network, with which others share the products
    for each in named:
        key = str(each) if each.kind == PYTHON else each.source
        reward = own[key].reward if each.kind == PYTHON else _reward(each, sides, labels, device, kernels.get(key))
        if isinstance(reward, KernelReward):
            kernels.setdefault(key, reward)
        found.append(Component(str(each), each.weight, columns[key], reward))
    readers, sources = tuple(each.reader for each in own.values()), {name: each.source for name, each in own.items()}
    return RewardSide(tuple(found), components.more_nets, readers, sources)


def _own(config: Config, components: Components) -> dict[str, OwnReward]:
    """The components of the user's own, by name."""
    named = [each for each in config.reward_components if each.kind == PYTHON]
    images = two_images(components.model, components.decode)[0] if named else torch.empty(0)
    return {str(each): load_flagged_reward(each, config, images) for each in named}


def _columns(dims: Sequence[tuple[str, int]]) -> dict[str, slice]:
    """Name → columns of rows that hold so many features of each side by side."""
    columns, start = {}, 0
    for name, dim in dims:
        columns[name] = slice(start, start + dim)
        start += dim
    return columns


def _reward(
    component: ComponentName,
    sides: Mapping[str, RealSide],
    labels: torch.Tensor | None,
    device: torch.device,
    beside: KernelReward | None,
) -> SetReward:
    """The reward of a component on a network; `beside` is one by another kernel on the same network."""
    name = str(component)
    side = sides[component.source]
    if component.kind == "fd":
        return FrechetReward(side.moments, name, device)
    if side.features is None:
        raise ValueError(f"--reward {name} needs the features of real images, and --real holds statistics; pass images")
    if component.kind == "density_ratio":
        return DensityRatioReward(side.features.to(device), labels, name=name)
    rows = side.features[evenly_spaced(len(side.features), REAL_ROWS)].to(device)
    if component.kind == "sliced_wasserstein":
        return SlicedWassersteinReward(rows, name=name)
    # float32 takes half the time; changes err by 2e-5 of their spread (5,000 rows of 128 features, measured)
    kernel: Literal["polynomial", "gaussian"] = "polynomial" if component.kind == "kid" else "gaussian"
    return KernelReward(rows, kernel, dtype=torch.float32, name=name, beside=beside)
