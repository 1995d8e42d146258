"""The feature networks of a run, from the files of --weights."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from fastfid import FeatureExtractor, feature_extractor
from sit_rl.config_groups import FileOptions
from sit_rl.files.paths import reading
from sit_rl.files.weights import weights_of


def load_networks(files: FileOptions, device: torch.device) -> tuple[FeatureExtractor, FeatureExtractor | None]:
    """The reward's feature network and the judge's, with the files of --weights."""
    judges = [] if files.judge_features == "none" else [files.judge_features]
    names = [files.reward_features, *judges]
    weights = weights_of(files.weights)
    if isinstance(weights, str) and len(set(names)) > 1:
        raise ValueError(f"--weights {weights} is one file for {' and '.join(names)}; write NAME={weights}")
    paths = dict.fromkeys(names, weights) if isinstance(weights, str) else weights or {}
    unused = [name for name in paths if name not in names]
    if unused:
        raise ValueError(f"--weights names {unused[0]}, which is not a network of this run: {', '.join(names)}")
    nets = [load_network(name, paths.get(name), device) for name in names]
    return nets[0], nets[1] if len(nets) > 1 else None


def load_network(name: str, weights: str | None, device: torch.device) -> FeatureExtractor:
    """A feature network; its weights come from a file of --weights if one was given."""
    with reading("--weights", weights) if weights else nullcontext():
        return feature_extractor(name, weights, device)
