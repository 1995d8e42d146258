"""The options of an evaluation, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from fastfid.evaluation.class_names import NamesOfClasses, names_of_classes
from fastfid.features.cache import FeatureCache
from fastfid.features.names import BATCH_SIZE
from fastfid.images.open import open_images
from fastfid.images.source import ImageSource
from fastfid.runtime.devices import chosen_device

# Option → its least value, and what to say below it.
LEAST_VALUES = {
    "batch_size": (1, "the batch size is {}; it must be at least 1 (--batch-size)"),
    "nearest_k": (1, "nearest_k is {}; it counts neighbours from 1 (--nearest-k)"),
    "kid_subset_size": (2, "kid_subset_size is {}; an unbiased estimate needs at least 2 (--kid-subset-size)"),
    "seed": (0, "seed is {}; NumPy's generators take whole numbers from 0"),
}


@dataclass(frozen=True)
class Settings:
    """The options that `fastfid.evaluate`, `diff`, `compare` and `statistics_of` share; `evaluate` explains them."""

    weights: str | Path | Mapping[str, str | Path] | None = None
    device: str = "auto"
    batch_size: int = BATCH_SIZE
    cache: bool | str | Path = True
    skip_corrupt: bool = False
    force: bool = False
    value_range: tuple[float, float] | None = None
    workers: int | None = None
    class_folders: bool = False
    class_names: NamesOfClasses | None = None
    kid_subset_size: int | None = None
    nearest_k: int | None = None
    seed: int = 2020
    progress: bool = False

    def __post_init__(self) -> None:
        """Choose the device that "auto" means; ValueError for a number that no evaluation can use."""
        object.__setattr__(self, "device", chosen_device(self.device))
        for name, (low, message) in LEAST_VALUES.items():
            given = getattr(self, name)
            if given is not None and (not isinstance(given, Integral) or given < low):
                raise ValueError(message.format(given))
        names_of_classes(self.class_names)  # refuses a file that cannot be read

    @classmethod
    def of(cls, given: dict[str, Any]) -> Settings:
        """The settings given by name; TypeError that names those that do not exist."""
        names = [field.name for field in fields(cls)]
        if unknown := given.keys() - set(names):
            raise TypeError(f"unknown argument {', '.join(sorted(unknown))}; the settings are {', '.join(names)}")
        return cls(**given)

    def weights_of(self, network: str) -> str | Path | None:
        """The weights file for one network."""
        return self.weights.get(network) if isinstance(self.weights, Mapping) else self.weights

    def classes_of(self, labels: list[str] | None) -> list[str] | None:
        """The labels with numbers of classes replaced by their names."""
        names = names_of_classes(self.class_names)
        return labels if labels is None or not names else [names.get(label, label) for label in labels]

    def open_cache(self) -> FeatureCache | None:
        """The cache of features that `cache` names, or None."""
        if isinstance(self.cache, bool):
            return FeatureCache() if self.cache else None
        return FeatureCache(self.cache)

    def open_images(self, source: object, name: str | None = None) -> ImageSource:
        """`open_images` with these settings."""
        return open_images(source, self.value_range, self.skip_corrupt, self.workers, name, self.class_folders)
