"""One pass over a source: every image read and decoded once, sent through every network, its features kept.

Images are worked through in shards of SHARD_IMAGES, each looked up in the cache and set decoding while the one before
it is in the networks, and saved as soon as its features are there: a late bad image or an interruption loses nothing.
Rows that are kept, which intervals, KID and neighbours need, are in memory up to a GiB, above it in a temporary file.

Under a process group the shards are divided among the ranks and the features gathered on rank 0 (distributed.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.features.cache import FeatureCache
from fastfid.features.extractor import FeatureExtractor, outputs_of
from fastfid.features.names import BATCH_SIZE
from fastfid.images.source import ImageBlock, ImageSource, counted
from fastfid.runtime import distributed
from fastfid.runtime.hashes import sha256
from fastfid.runtime.mapped_arrays import room

SHARD_IMAGES = BATCH_SIZE  # 2 MiB of 2048 float32 features
PROGRESS_DELAY = 2.0  # seconds before a progress bar shows itself: what ends sooner needs none
FIRST_ROWS = 4096  # room for features of a source of unknown length, doubled whenever it is full


@dataclass
class Extracted:
    """What one network gave for one source.

    outputs        features [n, d] and, where the network has them, logits [n, C], spatial [n, s]; float32, mapped
                   from a temporary file where they are large (large_arrays.py), empty if only moments were asked for
    moments        FeatureMoments of the features
    spatial        those of the spatial features, or None
    names          of the images, n
    indices        their numbers in the source, n; skipped images are missing
    labels         their classes, n, or None
    source_sha256  digest of the content of all images, hexadecimal
    skipped        a sentence for every unreadable image that was left out
    """

    outputs: dict[str, Tensor]
    moments: FeatureMoments
    spatial: FeatureMoments | None
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    labels: list[str] | None = None
    source_sha256: str = ""
    skipped: list[str] = field(default_factory=list)


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
    keep             False: only moments are kept, no rows

    ValueError names an unfit image, or the first whose features are not finite; shards before it stay in the cache.
    All ranks of a process group call it together; those above 0 get an empty list, or the same error.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size is {batch_size}; it must be at least 1")
    part = (0, None) if source.once else distributed.owned(len(source), SHARD_IMAGES)
    expected = source.expected if source.once else part[1] - part[0]
    gathered = [_Gatherer(extractor, expected, keep) for extractor in extractors]
    with distributed.agreement(), progress_bar(source, expected, progress) as bar:
        run = _Run(source, gathered, cache, batch_size, bar)
        run.through(source.blocks(SHARD_IMAGES, *part))
    seen = _Seen.of_all_ranks(run)
    collected = [gatherer.of_all_ranks() for gatherer in gathered]
    with distributed.agreement():
        return [seen.extracted(*found) for found in collected] if distributed.is_main() else []


def progress_bar(source: ImageSource, expected: int | None, shown: bool):
    """A tqdm bar over the images of `source`, on rank 0; silent below PROGRESS_DELAY seconds or unless `shown`."""
    from tqdm import tqdm

    hidden = not (shown and distributed.is_main())
    name = Path(source.name).name
    return tqdm(total=expected, unit="image", desc=name, file=sys.stderr, delay=PROGRESS_DELAY, disable=hidden)


# --- one rank's shards -------------------------------------------------------------------------------------------


class _Run:
    """One pass over a rank's part of a source."""

    def __init__(self, source: ImageSource, gathered: list[_Gatherer], cache, batch_size: int, bar):
        self.source, self.gathered, self.cache, self.batch_size, self.bar = source, gathered, cache, batch_size, bar
        self.shape: tuple | None = None  # of every image, [C, H, W]
        self.digests: list[str] = []
        self.names: list[str] = []
        self.indices: list[int] = []
        self.labels: list[str] | None = []

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
        self._note(block, kept)

    def _note(self, block: ImageBlock, kept: list[int]) -> None:
        self.names += [block.names[i] for i in kept]
        self.indices += [block.start + i for i in kept]
        self.digests.append(block.digest)
        if block.labels is None:
            self.labels = None
        elif self.labels is not None:
            self.labels += [block.labels[i] for i in kept]
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
    """Collects one network's outputs of this rank, as rows or as moments only."""

    def __init__(self, extractor: FeatureExtractor, expected: int | None, keep: bool):
        self.extractor, self.keep = extractor, keep
        self.expected = FIRST_ROWS if expected is None else expected
        self.count = 0
        self.stores: dict[str, Tensor] = {}
        self.moments: dict[str, FeatureMoments] = {}

    def add(self, outputs: dict[str, Tensor]) -> None:
        for name, values in outputs.items():
            if self.keep:
                self._store(name, values)
            elif name != "logits":
                self.moments.setdefault(name, FeatureMoments.empty(values.shape[1])).update(values)
        self.count += len(outputs["features"])

    def _store(self, name: str, values: Tensor) -> None:
        needed = self.count + len(values)
        if name not in self.stores:
            self.stores[name] = _rows(max(self.expected, needed), values.shape[1])
        if needed > len(self.stores[name]):
            grown = _rows(2 * needed, values.shape[1])
            grown[: self.count] = self.stores[name][: self.count]
            self.stores[name] = grown
        self.stores[name][self.count : needed] = values

    def of_all_ranks(self) -> tuple[dict[str, Tensor], dict[str, FeatureMoments]]:
        """Rows by name, on rank 0, or moments by name, of all ranks together."""
        here = {name: x.shape[1] for name, x in self.stores.items()} | {n: m.dim for n, m in self.moments.items()}
        widths = {name: width for there in distributed.gather_objects(here) for name, width in there.items()}
        if self.keep:
            return {name: distributed.gather_rows(self._filled(name, width)) for name, width in widths.items()}, {}
        if distributed.world_size() == 1:  # also one that works for itself beside others: nothing is reduced
            return {}, self.moments
        moments = {name: self.moments.get(name) or FeatureMoments.empty(width) for name, width in widths.items()}
        group = distributed.host_group()
        return {}, {name: found.all_reduce(group) for name, found in moments.items()}

    def _filled(self, name: str, width: int) -> Tensor:
        return self.stores[name][: self.count] if name in self.stores else torch.empty(0, width)


def _rows(count: int, width: int) -> Tensor:
    """float32 [count, width] to fill, in memory or, above LARGE bytes, in a mapped file."""
    return torch.from_numpy(room((count, width), np.float32))


# --- all ranks' shards -------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What the ranks saw, in the order of the source: everything of `Extracted` that is the same for all networks."""

    source: ImageSource
    names: list[str]
    indices: list[int]
    labels: list[str] | None
    digests: list[str]
    skipped: list[str]
    shapes: list[tuple[tuple, str]]  # of each rank's images, with the name of its first

    @classmethod
    def of_all_ranks(cls, run: _Run) -> _Seen:
        shape = [(run.shape, run.names[0])] if run.names else []
        here = (run.names, run.indices, run.labels, run.digests, list(run.source.skipped), shape)
        names, indices, labels, digests, skipped, shapes = (
            None if None in parts else [item for part in parts for item in part]
            for parts in zip(*distributed.gather_objects(here), strict=True)
        )
        return cls(run.source, names, indices, labels, digests, skipped, shapes)

    def extracted(self, outputs: dict[str, Tensor], moments: dict[str, FeatureMoments]) -> Extracted:
        """The record of one network, of the rows or moments `_Gatherer.of_all_ranks` gave."""
        if len(self.names) < 2:
            usable = counted(len(self.names), "usable image")
            raise ValueError(f"{self.source.name} holds {usable}; a covariance needs at least 2")
        for shape, name in self.shapes:
            if shape != self.shapes[0][0]:
                raise ValueError(
                    f"{name} in {self.source.name} has shape {shape}, {self.shapes[0][1]} has {self.shapes[0][0]}; "
                    "resize all images to one size and convert them to one mode"
                )
        moments = moments or {
            name: FeatureMoments.from_features(rows) for name, rows in outputs.items() if name != "logits"
        }
        digest = sha256(self.digests)
        return Extracted(
            outputs, moments["features"], moments.get("spatial"), self.names, self.indices, self.labels or None,
            digest, self.skipped,
        )  # fmt: skip
