"""Features of images, extracted once: a cache keyed by content, filled shard by shard as the features come.

A shard is SHARD_IMAGES consecutive images of a source.  Its key is the SHA-256 of their content, of the network's
weights and of its preprocessing, so a renamed folder, a zip of it, or one file changed among thousands find every shard
that still holds.  Each shard is written under a temporary name and renamed: an interrupted run, a late bad image or a
second run at the same time leave whole shards only, and whoever comes next goes on from them.

    $FASTFID_CACHE, or $XDG_CACHE_HOME/fastfid, or ~/.cache/fastfid
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastfid.extractors import outputs_of
from fastfid.features import FeatureExtractor
from fastfid.images import ImageBlock, ImageSource
from fastfid.moments import FeatureMoments, write_atomically

SHARD_IMAGES = 256  # 2 MiB of 2048 float32 features; 256 × 3 × 299² float32 of Inception input are 275 MB
FORMAT = 1  # of a shard's file; part of its key, so that a new layout never meets an old file
PROGRESS_DELAY = 2.0  # seconds before a progress bar shows itself: what ends sooner needs none


def cache_folder() -> Path:
    """Where features are kept: $FASTFID_CACHE, else $XDG_CACHE_HOME/fastfid, else ~/.cache/fastfid."""
    if os.environ.get("FASTFID_CACHE"):
        return Path(os.environ["FASTFID_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastfid"


class FeatureCache:
    """Shards of features on disk: `load` gives one or None, `save` adds one; safe under concurrent runs.

    folder   `cache_folder()` unless given
    hits     shards found so far
    problem  why nothing more is written (a full or read-only disk), None while all is well
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = Path(folder) if folder is not None else cache_folder()
        self.hits = 0
        self.problem: str | None = None

    def path(self, extractor: FeatureExtractor, digest: str) -> Path:
        """File of the shard of images with content `digest` in the features of `extractor`."""
        kind = type(extractor).__name__  # a MultiExtractor's shards also hold logits
        spatial = getattr(extractor.network, "spatial", False)
        identity = (FORMAT, extractor.name, extractor.weights_sha256, extractor.preprocessing, kind, spatial, digest)
        key = hashlib.sha256(repr(identity).encode()).hexdigest()
        return self.folder / "features" / key[:2] / f"{key}.npz"

    def load(self, extractor: FeatureExtractor, digest: str, count: int) -> tuple[dict[str, Tensor], tuple] | None:
        """Outputs by name, float32 [count, …], and the images' shape [C, H, W]; None if absent or damaged."""
        try:
            with np.load(self.path(extractor, digest), allow_pickle=False) as arrays:
                held = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None  # not there, or cut short by a crash of the machine: extracted and written again
        shape = tuple(held.pop("image_shape", torch.empty(0)).tolist())
        if len(shape) != 3 or held.get("features", torch.empty(0)).shape != (count, extractor.dim):
            return None
        self.hits += 1
        return held, shape

    def save(self, extractor: FeatureExtractor, digest: str, outputs: dict[str, Tensor], shape: tuple) -> None:
        """Write one shard; a failure is kept in `problem` and ends the writing, never the evaluation."""
        if self.problem is not None:
            return
        path = self.path(extractor, digest)
        arrays = {name: value.numpy() for name, value in outputs.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: np.savez(file, image_shape=np.array(shape), **arrays))
        except OSError as full:
            self.problem = f"features are not cached any more ({full}); free space, or set FASTFID_CACHE elsewhere"


@dataclass
class Extracted:
    """What one network gave for one source.

    outputs        features [n, d] and, where the network has them, logits [n, C], spatial [n, s]; float32, empty if
                   only moments were asked for
    moments        FeatureMoments of the features, and of the spatial ones or None
    names          of the images, n
    indices        their numbers in the source, n; skipped images are missing
    source_sha256  digest of the content of all images, hexadecimal
    """

    outputs: dict[str, Tensor]
    moments: FeatureMoments
    spatial: FeatureMoments | None
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    source_sha256: str = ""


def extract(
    source: ImageSource,
    extractors: list[FeatureExtractor],
    cache: FeatureCache | None = None,
    batch_size: int = SHARD_IMAGES,
    progress: bool = False,
    keep: bool = True,
) -> list[Extracted]:
    """Features of all images of `source` in every network, each image read and decoded once.

    batch_size  256  images a network sees at once, at most SHARD_IMAGES
    progress         a bar with rate and estimate on stderr for whatever takes longer than two seconds
    keep             False: only moments are kept, so memory does not grow with the number of images

    ValueError names an unfit image, or the first whose features are not finite; shards before it stay in the cache.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size is {batch_size}; it must be at least 1")
    gathered = [_Gatherer(extractor, len(source), keep) for extractor in extractors]
    with progress_bar(source, progress) as bar:
        run = _Run(source, gathered, cache, batch_size, bar)
        run.through(source.blocks(SHARD_IMAGES))
    return [gatherer.finish(run) for gatherer in gathered]


def progress_bar(source: ImageSource, shown: bool):
    """A tqdm bar over the images of `source`, silent below PROGRESS_DELAY seconds or unless `shown`."""
    from tqdm import tqdm

    name = Path(source.name).name
    return tqdm(total=len(source), unit="image", desc=name, file=sys.stderr, delay=PROGRESS_DELAY, disable=not shown)


class _Run:
    """One pass over a source: blocks are looked up, decoded a block ahead, sent through the networks, and saved."""

    def __init__(self, source: ImageSource, gathered: list[_Gatherer], cache, batch_size: int, bar):
        self.source, self.gathered, self.cache, self.batch_size, self.bar = source, gathered, cache, batch_size, bar
        self.shape: tuple | None = None  # of every image, [C, H, W]
        self.digest = hashlib.sha256()
        self.names: list[str] = []
        self.indices: list[int] = []

    def through(self, blocks) -> None:
        """Work through all blocks, each looked up and set decoding while the one before it is in the networks."""
        blocks, waiting = iter(blocks), None
        while True:
            try:
                block = next(blocks, None)
            except Exception:
                if waiting:  # reading failed further on: what is at hand is worth keeping
                    self._work(*waiting)
                raise
            upcoming = block and (block, self._look_up(block))
            if waiting:
                self._work(*waiting)
            if upcoming is None:
                return
            waiting = upcoming

    def _look_up(self, block: ImageBlock) -> list:
        """The block's shard in every network, None where it has to be extracted."""
        count = len(block.names)
        load = self.cache.load if self.cache is not None else lambda *_: None
        found = [load(gatherer.extractor, block.digest, count) for gatherer in self.gathered]
        if None in found:
            block.prefetch()
        return found

    def _work(self, block: ImageBlock, found: list) -> None:
        kept = list(range(len(block.names)))
        images = None
        if None in found or any(shape != (self.shape or shape) for _, shape in found):
            images, kept = block.decode(self.shape)  # which also refuses another shape, naming the image
        whole = len(kept) == len(block.names)
        self.shape = self.shape or (tuple(images.shape[1:]) if images is not None and len(images) else None)
        for gatherer, shard in zip(self.gathered, found, strict=True):
            if shard is None:
                outputs = self._extract(gatherer.extractor, images, [block.names[i] for i in kept])
                if self.cache is not None and whole:
                    self.cache.save(gatherer.extractor, block.digest, outputs, self.shape)
            else:
                outputs, shape = shard
                self.shape = self.shape or shape
            gatherer.add(outputs)
        self.names += [block.names[i] for i in kept]
        self.indices += [block.start + i for i in kept]
        self.digest.update(block.digest.encode())
        self.bar.update(len(block.names))

    def _extract(self, extractor: FeatureExtractor, images: Tensor, names: list[str]) -> dict[str, Tensor]:
        if not len(images):
            return {"features": torch.empty(0, extractor.dim)}
        parts = [outputs_of(extractor, batch) for batch in images.split(min(self.batch_size, SHARD_IMAGES))]
        outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, values in outputs.items():
            finite = torch.isfinite(values).all(dim=1)
            if not finite.all():
                raise ValueError(
                    f"the {name} of {names[int((~finite).nonzero()[0])]} in {self.source.name} by {extractor.name} "
                    "hold NaN or infinity; check the weights and the image"
                )
        return outputs


class _Gatherer:
    """Collects one network's outputs into tensors of the full length, or into moments only."""

    def __init__(self, extractor: FeatureExtractor, length: int, keep: bool):
        self.extractor, self.length, self.keep = extractor, length, keep
        self.filled = 0
        self.outputs: dict[str, Tensor] = {}
        self.moments: dict[str, FeatureMoments] = {}

    def add(self, outputs: dict[str, Tensor]) -> None:
        count = len(outputs["features"])
        for name, values in outputs.items():
            if name == "spatial" or not self.keep:
                self._add_moments(name, values)
            if self.keep and name != "spatial":
                store = self.outputs.setdefault(name, torch.empty(self.length, values.shape[1]))
                store[self.filled : self.filled + count] = values
        self.filled += count

    def _add_moments(self, name: str, values: Tensor) -> None:
        if name != "logits":
            self.moments.setdefault(name, FeatureMoments.empty(values.shape[1])).update(values)

    def finish(self, run: _Run) -> Extracted:
        if self.filled < 2:
            raise ValueError(f"{run.source.name} holds {self.filled} usable images; a covariance needs at least 2")
        outputs = {name: store[: self.filled] for name, store in self.outputs.items()}
        moments = FeatureMoments.from_features(outputs["features"]) if self.keep else self.moments["features"]
        digest = run.digest.hexdigest()
        return Extracted(outputs, moments, self.moments.get("spatial"), run.names, run.indices, digest)
