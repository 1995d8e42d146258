"""How an evaluation is run: its options, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path

from fastfid.features.cache import FeatureCache
from fastfid.features.names import BATCH_SIZE
from fastfid.images.open import open_images
from fastfid.images.source import ImageSource


@dataclass(frozen=True)
class Settings:
    """How an evaluation is run; see `fastfid.evaluate`."""

    weights: str | Path | dict | None = None
    device: str = "cpu"
    batch_size: int = BATCH_SIZE
    cache: bool | str | Path = True
    skip_corrupt: bool = False
    force: bool = False
    value_range: tuple[float, float] | None = None
    workers: int | None = None
    kid_subset_size: int | None = None
    nearest_k: int | None = None
    seed: int = 2020
    progress: bool = False

    def __post_init__(self):
        """ValueError for what no evaluation can use, before an image is read."""
        least = {
            "batch_size": (1, "the batch size is {}; it must be at least 1 (--batch-size)"),
            "nearest_k": (1, "nearest_k is {}; it counts neighbours from 1 (--nearest-k)"),
            "kid_subset_size": (2, "kid_subset_size is {}; an unbiased estimate needs at least 2 (--kid-subset-size)"),
            "seed": (0, "seed is {}; NumPy's generators take whole numbers from 0"),
        }
        for name, (low, message) in least.items():
            given = getattr(self, name)
            if given is not None and (not isinstance(given, Integral) or given < low):
                raise ValueError(message.format(given))

    @classmethod
    def of(cls, given: dict) -> Settings:
        """The settings given by name; TypeError naming those that do not exist."""
        names = [field.name for field in fields(cls)]
        if unknown := given.keys() - set(names):
            raise TypeError(f"unknown argument {', '.join(sorted(unknown))}; the settings are {', '.join(names)}")
        return cls(**given)

    def open_cache(self) -> FeatureCache | None:
        """The cache of features that `cache` asks for."""
        return None if self.cache is False else FeatureCache(None if self.cache is True else self.cache)

    def open_images(self, source, name: str | None = None) -> ImageSource:
        """`open_images` with these settings."""
        return open_images(source, self.value_range, self.skip_corrupt, self.workers, name)
