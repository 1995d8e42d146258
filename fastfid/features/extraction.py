"""One pass over a source: every image is read and decoded once, and every network sees it.

Images are handled in shards of SHARD_IMAGES.  While one shard is in the networks, the next is looked up in the cache
and decoded.  A shard is saved as soon as its features are computed, so a bad image or an interruption loses nothing.

Features are kept as rows (for intervals, KID and neighbours), in memory up to a GiB and above that in a temporary file.
Or they go to accumulators, such as moments, and no row is kept.

Under a process group the shards are divided among the ranks, and rank 0 receives the result (runtime/distributed.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastfid.features.cache import FeatureCache
from fastfid.features.extractor import FeatureExtractor, outputs_of
from fastfid.features.names import BATCH_SIZE
from fastfid.images.source import ImageBlock, ImageSource, counted
from fastfid.runtime import distributed
from fastfid.runtime.hashes import sha256
from fastfid.runtime.mapped_arrays import room
from fastfid.runtime.terminal import printable

if TYPE_CHECKING:
    from tqdm import tqdm

SHARD_IMAGES = BATCH_SIZE  # 2 MiB of 2048 float32 features
PROGRESS_DELAY = 2.0  # seconds before a progress bar appears; shorter work needs none
FIRST_ROWS = 4096  # first rows of the array for a source of unknown length; doubled when full

Shape = tuple[int, ...]
MIXED: Shape = (0, 0, 0)  # stands for the shape of images of several shapes
Shard = tuple[dict[str, Tensor], Shape]  # outputs by name, and the shape [C, H, W] of the images


class Accumulator(Protocol):
    """An accumulator of feature rows [m, d] that does not keep them, such as FeatureMoments."""

    @property
    def dim(self) -> int:
        """Width d of the rows."""

    def update(self, x: Tensor) -> object:
        """Add rows [m, d], m ≥ 0."""

    def all_reduce(self: A, group: Any) -> A:
        """The sum over all ranks of the torch.distributed `group`, which has no type in torch's stubs."""


A = TypeVar("A", bound=Accumulator)


@dataclass
class Extracted(Generic[A]):
    """The outputs of one network for one source.

    outputs        features [n, d] and, if the network has them, logits [n, C] and spatial [n, s]; float32, mapped
                   from a temporary file if they are large (runtime/mapped_arrays.py).  Empty if rows are not kept
    accumulated    accumulators of the features and the spatial features, by name.  Empty if rows are kept
    names          of the images, n
    indices        their numbers in the source, n; numbers of skipped images are missing
    labels         their classes, n, or None
    source_sha256  SHA-256 of the content of all images, hexadecimal
    skipped        one sentence for every unreadable image that was left out
    notes          sentences on what was found beside the images and not read
    shape          [C, H, W] of the images; MIXED where they have several
    """

    outputs: dict[str, Tensor]
    accumulated: dict[str, A]
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    labels: list[str] | None = None
    source_sha256: str = ""
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shape: Shape | None = None


def extract(
    source: ImageSource,
    extractors: list[FeatureExtractor],
    cache: FeatureCache | None = None,
    batch_size: int = SHARD_IMAGES,
    progress: bool = False,
    accumulate: Callable[[int], A] | None = None,
    mixed_sizes: bool = False,
) -> list[Extracted[A]]:
    """Features of all images of `source` in every network; each image is read and decoded once.

    batch_size  256    images a network sees at once, at most SHARD_IMAGES
    progress    False  a bar on stderr for what takes longer than two seconds
    accumulate  None   function of d that makes an empty accumulator, such as FeatureMoments.empty; None keeps rows
    mixed_sizes False  images may have several shapes: each is prepared on its own

    ValueError names an unsuitable image, or the first image whose features are not finite; shards before it stay in the
    cache.  All ranks of a process group call it together; those above 0 get an empty list, or the same error.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size is {batch_size}; it must be at least 1")
    part: tuple[int, int | None] = (0, None) if source.once else distributed.owned(len(source), SHARD_IMAGES)
    expected = source.expected if part[1] is None else part[1] - part[0]
    gathered = [_Gatherer(extractor, expected, accumulate) for extractor in extractors]
    with distributed.agreement(), progress_bar(source, expected, progress) as bar:
        run = _Run(source, gathered, cache, batch_size, bar, mixed_sizes)
        run.through(source.blocks(SHARD_IMAGES, *part))
    seen = _SharedFields.of_all_ranks(run)
    collected = [gatherer.of_all_ranks() for gatherer in gathered]
    with distributed.agreement():
        return [seen.extracted(*found) for found in collected] if distributed.is_main() else []


def progress_bar(source: ImageSource, expected: int | None, shown: bool) -> tqdm[Any]:
    """A tqdm bar over the images of `source`, on rank 0, after PROGRESS_DELAY seconds; silent unless `shown`."""
    from tqdm import tqdm

    hidden = not (shown and distributed.is_main())
    name = printable(Path(source.name).name)
    return tqdm(total=expected, unit="image", desc=name, file=sys.stderr, delay=PROGRESS_DELAY, disable=hidden)


# --- one rank's shards -------------------------------------------------------------------------------------------


class _Run(Generic[A]):
    """One pass over a rank's part of a source."""

    def __init__(
        self,
        source: ImageSource,
        gathered: list[_Gatherer[A]],
        cache: FeatureCache | None,
        batch_size: int,
        bar: tqdm[Any],
        mixed_sizes: bool,
    ):
        self.mixed_sizes = mixed_sizes
        self.source, self.gathered, self.cache, self.batch_size, self.bar = source, gathered, cache, batch_size, bar
        self.shape: Shape | None = None  # of every image, [C, H, W]
        self.digests: list[str] = []
        self.names: list[str] = []
        self.indices: list[int] = []
        self.labels: list[str] | None = []

    def through(self, blocks: Iterable[ImageBlock]) -> None:
        """Work through all blocks; each is looked up and decoded while the one before it is in the networks."""
        upcoming: Iterator[ImageBlock] = iter(blocks)
        waiting: tuple[ImageBlock, list[Shard | None]] | None = None
        while True:
            try:
                block = next(upcoming, None)
            except Exception:
                if waiting:  # reading a later block failed: finish this one first
                    self._work(*waiting)
                raise
            looked_up = None if block is None else (block, self._look_up(block))
            if waiting:
                self._work(*waiting)
            if looked_up is None:
                return
            waiting = looked_up

    def _look_up(self, block: ImageBlock) -> list[Shard | None]:
        """The block's cached shard in every network, None where it has to be extracted."""
        count = len(block.names)
        found: list[Shard | None] = [None] * len(self.gathered)
        if self.cache is not None:
            found = [self.cache.load(gatherer.extractor, block.digest, count) for gatherer in self.gathered]
        if None in found:
            block.prefetch()
        return found

    def _work(self, block: ImageBlock, found: list[Shard | None]) -> None:
        kept = list(range(len(block.names)))
        images: Tensor | list[Tensor] | None = None
        if any(shard is None or not self._fits(shard[1]) for shard in found):
            images, kept, shape = self._decoded(block)
            self.shape = self._joined(shape)
        for gatherer, shard in zip(self.gathered, found, strict=True):
            if shard is None:
                assert images is not None  # decoded above
                gatherer.add(self._extract_shard(gatherer.extractor, block, images, kept))
            else:
                outputs, shape = shard
                self.shape = self._joined(shape)
                gatherer.add(outputs)
        self._note(block, kept)

    def _fits(self, shape: Shape) -> bool:
        """Whether a cached shard of images of this shape may stand beside the images so far."""
        return self.mixed_sizes or (shape != MIXED and shape == (self.shape or shape))

    def _joined(self, shape: Shape | None) -> Shape | None:
        """The shape of the images so far together with images of this one; None: no image."""
        return shape if self.shape is None or shape == self.shape else MIXED if shape else self.shape

    def _decoded(self, block: ImageBlock) -> tuple[Tensor | list[Tensor], list[int], Shape | None]:
        """The images of a block, which of them could be read, and their shape.

        Unless sizes may be mixed, ValueError names the first image of another shape than those before it.
        """
        if not self.mixed_sizes or block.decode_each is None:
            images, kept = block.decode(None if self.mixed_sizes else self.shape)
            return images, kept, tuple(images.shape[1:]) if len(images) else None
        each, kept = block.decode_each()
        shapes = {tuple(image.shape) for image in each}
        if len(shapes) > 1:
            return each, kept, MIXED
        return torch.stack(each) if each else torch.empty(0), kept, shapes.pop() if shapes else None

    def _extract_shard(
        self, extractor: FeatureExtractor, block: ImageBlock, images: Tensor | list[Tensor], kept: list[int]
    ) -> dict[str, Tensor]:
        """The outputs of one network for the images of a block, cached if none was left out."""
        outputs = self._extract(extractor, images, [block.names[i] for i in kept])
        if self.cache is not None and len(images) and len(kept) == len(block.names):
            shape = tuple(images.shape[1:]) if isinstance(images, Tensor) else MIXED
            self.cache.save(extractor, block.digest, outputs, shape)
        return outputs

    def _note(self, block: ImageBlock, kept: list[int]) -> None:
        self.names += [block.names[i] for i in kept]
        self.indices += [block.start + i for i in kept]
        self.digests.append(block.digest)
        if block.labels is None:
            self.labels = None
        elif self.labels is not None:
            self.labels += [block.labels[i] for i in kept]
        self.bar.update(len(block.names))

    def _extract(
        self, extractor: FeatureExtractor, images: Tensor | list[Tensor], names: list[str]
    ) -> dict[str, Tensor]:
        if not len(images):
            return {"features": torch.empty(0, extractor.dim)}
        size = min(self.batch_size, SHARD_IMAGES)
        parts = [outputs_of(extractor, images[start : start + size]) for start in range(0, len(images), size)]
        outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, values in outputs.items():
            finite = torch.isfinite(values).all(dim=1)
            if not finite.all():
                raise ValueError(
                    f"the {name} of {names[int((~finite).nonzero()[0])]} in {self.source.name} by {extractor.name} "
                    "hold NaN or infinity; check the weights and the image"
                )
        return outputs


class _Gatherer(Generic[A]):
    """Collects one network's outputs of this rank, as rows or in accumulators."""

    def __init__(self, extractor: FeatureExtractor, expected: int | None, accumulate: Callable[[int], A] | None):
        self.extractor, self.accumulate = extractor, accumulate
        self.expected = FIRST_ROWS if expected is None else expected
        self.count = 0
        self.stores: dict[str, Tensor] = {}
        self.accumulated: dict[str, A] = {}

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Add the outputs of one shard, by name."""
        for name, values in outputs.items():
            if self.accumulate is None:
                self._store(name, values)
            elif name != "logits":
                if name not in self.accumulated:
                    self.accumulated[name] = self.accumulate(values.shape[1])
                self.accumulated[name].update(values)
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

    def of_all_ranks(self) -> tuple[dict[str, Tensor], dict[str, A]]:
        """Rows by name, on rank 0, or accumulators by name, of all ranks together."""
        here = {name: x.shape[1] for name, x in self.stores.items()}
        here |= {name: found.dim for name, found in self.accumulated.items()}
        widths = {name: width for there in distributed.gather_objects(here) for name, width in there.items()}
        if self.accumulate is None:
            rows = {name: distributed.gather_rows(self._filled(name, width)) for name, width in widths.items()}
            return {name: gathered for name, gathered in rows.items() if gathered is not None}, {}
        if distributed.world_size() == 1:  # no process group: nothing to reduce
            return {}, self.accumulated
        for name, width in widths.items():
            if name not in self.accumulated:
                self.accumulated[name] = self.accumulate(width)
        group = distributed.host_group()
        return {}, {name: self.accumulated[name].all_reduce(group) for name in widths}

    def _filled(self, name: str, width: int) -> Tensor:
        return self.stores[name][: self.count] if name in self.stores else torch.empty(0, width)


def _rows(count: int, width: int) -> Tensor:
    """float32 [count, width] to fill, in memory or, if large, in a mapped file."""
    return torch.from_numpy(room((count, width), np.float32))


# --- all ranks' shards -------------------------------------------------------------------------------------------


@dataclass
class _SharedFields:
    """What all networks share of `Extracted`, from all ranks, in the order of the source."""

    source: ImageSource
    names: list[str]
    indices: list[int]
    labels: list[str] | None
    digests: list[str]
    skipped: list[str]
    notes: list[str]
    shapes: list[tuple[Shape | None, str]]  # of each rank's images, with the name of its first
    mixed_sizes: bool

    @classmethod
    def of_all_ranks(cls, run: _Run[Any]) -> _SharedFields:
        """The concatenation over the ranks; labels only if every rank has them."""
        shape = [(run.shape, run.names[0])] if run.names else []
        told = [*run.source.skipped], [*run.source.notes]
        here = (run.names, run.indices, run.labels, run.digests, *told, shape)
        names, indices, labels, digests, skipped, notes, shapes = (
            None if None in parts else [item for part in parts for item in part]
            for parts in zip(*distributed.gather_objects(here), strict=True)
        )
        notes = list(dict.fromkeys(notes or []))  # every rank has the same files beside its images
        given, there = len(names or ()) + len(skipped or ()), run.source.dataset_size
        if there not in (None, given):
            notes.append(f"{run.source.name} gave {given} images of a dataset of {there}; its sampler chooses them")
        found = names or [], indices or [], labels, digests or [], skipped or [], notes, shapes or []
        return cls(run.source, *found, run.mixed_sizes)

    def extracted(self, outputs: dict[str, Tensor], accumulated: dict[str, A]) -> Extracted[A]:
        """The `Extracted` of one network from the result of `_Gatherer.of_all_ranks`."""
        if len(self.names) < 2:
            usable = counted(len(self.names), "usable image")
            raise ValueError(f"{self.source.name} holds {usable}; a covariance needs at least 2")
        several = {shape for shape, _ in self.shapes}
        for shape, name in [] if self.mixed_sizes else self.shapes:
            if shape != self.shapes[0][0]:
                raise ValueError(
                    f"{name} in {self.source.name} has shape {shape}, {self.shapes[0][1]} has {self.shapes[0][0]}; "
                    "resize all images to one size and convert them to one mode"
                )
        labels = self.labels or None
        digest = sha256(self.digests)
        shape = MIXED if len(several) > 1 else self.shapes[0][0]
        return Extracted(
            outputs, accumulated, self.names, self.indices, labels, digest, self.skipped, self.notes, shape
        )
