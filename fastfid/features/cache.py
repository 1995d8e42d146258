"""Features of images, extracted once: a cache keyed by content, filled shard by shard as the features come.

A shard is a block of consecutive images of a source (extraction.py).  Its key is the SHA-256 of their content, of
the network's weights and of its preprocessing.  So a renamed folder, or a zip of it, finds all its shards, and a
folder with one changed file finds the others.  A shard also holds the SHA-256 of its key and its arrays: a damaged
or exchanged file is extracted again.  Each shard is written under a temporary name and then renamed.  An interrupted
run, a bad image or a second run at the same time leaves only whole shards, and the next run continues from them.

    $FASTFID_CACHE, or $XDG_CACHE_HOME/fastfid, or ~/.cache/fastfid
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastfid.features.extractor import FeatureExtractor
from fastfid.runtime.cache_folder import cache_folder
from fastfid.runtime.checked_arrays import load_checked, save_checked
from fastfid.runtime.hashes import sha256

FORMAT = 2  # of a shard's file; part of its key, so that a new layout never meets an old file


class FeatureCache:
    """Shards of features on disk: `load` gives one or None, `save` adds one; safe under concurrent runs.

    folder   `cache_folder()` unless given
    hits     shards found so far
    problem  why nothing more is written (a full or read-only disk), None while all is well
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.hits = 0
        self.problem: str | None = None

    def path(self, extractor: FeatureExtractor, digest: str) -> Path:
        """File of the shard of images with content `digest` in the features of `extractor`."""
        kind = type(extractor).__name__  # a MultiExtractor's shards also hold logits
        spatial = getattr(extractor.network, "spatial", False)
        identity = (FORMAT, extractor.name, extractor.weights_sha256, extractor.preprocessing, kind, spatial, digest)
        key = sha256([repr(identity)])
        return self.folder / "features" / key[:2] / f"{key}.npz"

    def load(
        self, extractor: FeatureExtractor, digest: str, count: int
    ) -> tuple[dict[str, Tensor], tuple[int, ...]] | None:
        """Outputs by name, float32 [count, …], and the images' shape [C, H, W]; None if absent or damaged."""
        path = self.path(extractor, digest)
        arrays = load_checked(path, path.stem)
        if arrays is None:
            return None  # extracted and written again
        held = {name: torch.from_numpy(value) for name, value in arrays.items()}
        shape = tuple(held.pop("image_shape", torch.empty(0)).tolist())
        if len(shape) != 3 or held.get("features", torch.empty(0)).shape != (count, extractor.dim):
            return None
        self.hits += 1
        return held, shape

    def save(
        self, extractor: FeatureExtractor, digest: str, outputs: dict[str, Tensor], shape: tuple[int, ...]
    ) -> None:
        """Write one shard; a failure is kept in `problem` and ends the writing, never the evaluation."""
        if self.problem is not None:
            return
        path = self.path(extractor, digest)
        arrays = {"image_shape": np.array(shape)} | {name: value.numpy() for name, value in outputs.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_checked(path, path.stem, arrays)
        except OSError as full:
            self.problem = f"features are not cached any more ({full}); free space, or set FASTFID_CACHE elsewhere"
