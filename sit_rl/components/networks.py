"""The feature networks of a run, from the files of --weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from fastfid import FeatureExtractor, feature_extractor
from sit_rl.files.paths import listed, reading
from sit_rl.files.weights import weights_of
from sit_rl.options.files import FileOptions


@dataclass(frozen=True)
class Networks:
    """The feature networks of a run.

    reward  the first network of the reward, which evaluations report
    judge   a second network, which the reward never uses, or None
    more    the reward's further networks
    """

    reward: FeatureExtractor
    judge: FeatureExtractor | None
    more: tuple[FeatureExtractor, ...]


def load_networks(files: FileOptions, rewarded: Sequence[str], device: torch.device) -> Networks:
    """The networks of a run, with the files of --weights; `rewarded` names those of --reward."""
    more = [name for name in rewarded if name != files.reward_features]
    judges = [] if files.judge_features == "none" else [files.judge_features]
    names = [files.reward_features, *judges, *more]
    weights = weights_of(files.weights)
    if isinstance(weights, str) and len(set(names)) > 1:
        raise ValueError(f"--weights {weights} is one file for {listed(names)}; write NAME={weights}")
    paths = dict.fromkeys(names, weights) if isinstance(weights, str) else weights or {}
    unused = [name for name in paths if name not in names]
    if unused:
        raise ValueError(f"--weights names {unused[0]}, which is not a network of this run: {', '.join(names)}")
    nets = [load_network(name, paths.get(name), device) for name in names]
    return Networks(nets[0], nets[1] if judges else None, tuple(nets[1 + len(judges) :]))


def load_network(name: str, weights: str | None, device: torch.device) -> FeatureExtractor:
    """A feature network; its weights come from a file of --weights if one was given."""
    with reading("--weights", weights) if weights else nullcontext():
        return feature_extractor(name, weights, device)
