"""The networks of a reward of images, each with its weight and its distance to the real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastfid.evaluation.real_statistics import real_statistics
from fastfid.features.extractor import FeatureExtractor
from fastfid.features.registry import feature_extractor
from fastfid.rewards.checked_reward import CheckedReward
from fastfid.rewards.frechet import FrechetReward
from fastfid.rewards.protocol import SetReward
from fastfid.runtime.errors import first_line
from fastfid.runtime.hashes import moments_sha256
from fastfid.statistics.statistics import Statistics

Network = str | FeatureExtractor
# Features float32 [n, d] of real images → their set reward.
Make = Callable[[Tensor], SetReward]
Weights = str | Path | Mapping[str, str | Path] | None


@dataclass(eq=False)
class Part:
    """One network of the reward.

    extractor  the network
    weight     above 0
    reward     distance to the real images in its features
    real       SHA-256 of the real moments
    unit       spread of its credits in the first call; None before it
    """

    extractor: FeatureExtractor
    weight: float
    reward: SetReward
    real: str
    unit: float | None = None

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.extractor.name


def parts_of(
    real: Any,
    networks: Network | Sequence[Network] | Mapping[Any, float],
    weights: Weights,
    device: str | torch.device,
    value_range: tuple[float, float],
    make: Make | None,
    options: Mapping[str, Any],
) -> list[Part]:
    """The parts of a `DistributionReward`, whose arguments these are; ValueError in one sentence for others."""
    chosen = _chosen(networks, weights, device)
    found = []
    for asked, extractor, weight in chosen:
        source = _source_of(real, asked, extractor)
        statistics = real_statistics(source, extractor, value_range, keep=make is not None)
        digest = moments_sha256(statistics.moments.mean, statistics.moments.cov)
        found.append(Part(extractor, weight, _reward(statistics, extractor, make, options), digest))
    return found


def _chosen(
    networks: Network | Sequence[Network] | Mapping[Any, float], weights: Weights, device: str | torch.device
) -> list[tuple[Network, FeatureExtractor, float]]:
    """Each network as it was asked for, its extractor and its weight."""
    if isinstance(networks, str | FeatureExtractor):
        networks = [networks]
    if not isinstance(networks, Mapping | Sequence):
        raise ValueError(f"networks is a {type(networks).__name__}; pass names or FeatureExtractors")
    pairs = list(networks.items()) if isinstance(networks, Mapping) else [(network, 1.0) for network in networks]
    if not pairs:
        raise ValueError("networks is empty; name a feature network")
    if len(pairs) > 1 and isinstance(weights, str | Path):
        raise ValueError(f"weights is one file for {len(pairs)} networks; pass {{network: file}}")
    found = []
    for network, weight in pairs:
        if not (isinstance(weight, int | float) and 0 < weight < float("inf")):
            raise ValueError(f"the weight of network {network} is {weight!r}; it must be a positive number")
        if isinstance(network, str):
            path = weights.get(network) if isinstance(weights, Mapping) else weights
            extractor = feature_extractor(network, path, device)
        elif isinstance(network, FeatureExtractor):
            extractor = network
        else:
            raise ValueError(
                f"network is a {type(network).__name__}; pass a name or FeatureExtractor.from_module(module, dim)"
            )
        found.append((network, extractor, float(weight)))
    names = [extractor.name for _, extractor, _ in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"two networks are called {repeated[0]}; give each a name of its own")
    return found


def _source_of(real: Any, asked: Network, extractor: FeatureExtractor) -> Any:
    """The real side for one network."""
    if not isinstance(real, Mapping):
        return real
    for key in (asked, extractor.name):
        if isinstance(key, str) and key in real:
            return real[key]
    raise ValueError(
        f"real has nothing for the network {extractor.name}, only for {', '.join(map(str, real))}; add an entry for it"
    )


def _reward(
    statistics: Statistics, extractor: FeatureExtractor, make: Make | None, options: Mapping[str, Any]
) -> SetReward:
    if make is None:
        return FrechetReward(statistics.moments, f"fd:{extractor.name}", extractor.device, **options)
    if statistics.features is None:
        raise ValueError(
            f"make needs the features of real images, and {statistics.name} holds moments only; pass images"
        )
    try:
        made = make(statistics.features.to(extractor.device))
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the caller says which option to lower
    except Exception as error:
        what = f"{type(error).__name__} for the real features {tuple(statistics.features.shape)}"
        raise ValueError(f"make raised {what}: {first_line(error)}") from error
    if not hasattr(made, "prepare"):
        raise ValueError(f"make returned a {type(made).__name__}; return a set reward (fastfid.rewards.SetReward)")
    return CheckedReward(made, getattr(made, "name", None) or f"make:{extractor.name}")
