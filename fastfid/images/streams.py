"""Images that are read once: torch DataLoaders, generators, any iterable of batches; memory holds one block of them.

A batch is a tensor or array of images, an (images, labels) pair, or a dict with one of IMAGE_KEYS and optionally one of
LABEL_KEYS.  Batches are cut and joined into the caller's blocks, so the loader's batch size has no effect.  Under a
process group every rank reads its own stream, for example a DataLoader with a DistributedSampler.  That
sampler repeats images to give every rank as many; the repeated ones are left out, with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from fastfid.images.arrays import check_batch_axis, to_uint8
from fastfid.images.source import ImageBlock, ImageSource, checked_size, class_names, counted, decoded_block

IMAGE_KEYS = ("images", "image", "pixel_values", "img", "x")  # what dicts of a batch call them
LABEL_KEYS = ("labels", "label", "y", "class", "classes", "targets")


class StreamImages(ImageSource):
    """The images of an iterable of batches, read once and in order."""

    once = True

    def __init__(self, name: str, batches: Iterable[Any], value_range: tuple[float, float] | None):
        self.name, self.incoming, self.value_range = name, batches, value_range
        self.begun = False
        self.own, note = _own_of_rank(name, batches)  # images of this rank, None for all it gets
        self.notes = [note] if note else []

    def __len__(self) -> int:
        raise TypeError(f"{self.name} is read once, and how many images it holds is known at its end only")

    @property
    def expected(self) -> int | None:
        """Batches times batch size where the loader tells both: the last batch may be shorter."""
        size = getattr(self.incoming, "batch_size", None)
        try:
            return len(self.incoming) * size if isinstance(size, int) and isinstance(self.incoming, Sized) else None
        except TypeError:  # a loader over an iterable dataset has no length
            return None

    @property
    def dataset_size(self) -> int | None:
        """Images in the dataset of a loader that makes batches of them; None if unknown."""
        dataset = getattr(self.incoming, "dataset", None)
        batched = getattr(self.incoming, "batch_sampler", None) is not None
        return len(dataset) if batched and isinstance(dataset, Sized) else None

    def image(self, index: int) -> Tensor:
        """Raises ValueError: the images of a stream are not kept."""
        raise ValueError(f"{self.name} was read once, its image {index} is gone; pass a folder or an array")

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time, the last batch shorter."""
        for block in self.blocks(size):
            yield block.decode(None)[0]

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[ImageBlock]:
        """Blocks of exactly `size`, the last one shorter, for batches of any size."""
        checked_size(size)
        if self.begun:
            raise ValueError(f"{self.name} was read already, and an iterator gives its images once; make a new one")
        self.begun, first, held = True, 0, _Held(self.name)
        for batch in self.incoming:
            images, labels = _images_and_labels(self.name, batch)
            if first + len(held) == 0:
                check_batch_axis(self.name, tuple(images.shape))
            if self.own is not None and first + len(held) + len(images) > self.own:
                images = images[: self.own - first - len(held)]
                labels = None if labels is None else labels[: len(images)]
            held.add(to_uint8(self.name, images, self.value_range, first + len(held)), labels)
            while len(held) >= size:
                yield held.take(size, first)
                first += size
        if len(held):
            yield held.take(len(held), first)
        elif first == 0 and self.own != 0:
            raise ValueError(f"{self.name} gave no images; an exhausted iterator gives none a second time")


def _own_of_rank(name: str, loader: object) -> tuple[int | None, str]:
    """How many images a loader with a DistributedSampler gives before it repeats some, and a sentence on those.

    The sampler deals out its dataset in turn and appends the repeated images, so that they are the last of a rank.
    None without such a sampler, or where workers may change the order.
    """
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None) or getattr(loader, "sampler", None)
    ordered = getattr(loader, "in_order", True) or not getattr(loader, "num_workers", 0)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or not ordered:
        return None, ""
    size, ranks = len(cast(Sized, sampler.dataset)), sampler.num_replicas
    own = len(range(sampler.rank, size, ranks))
    repeated = ranks * len(range(0, size, ranks)) - size  # by all ranks, so that all tell the same
    if not repeated:
        return own, ""
    return own, f"left out of {name}: {counted(repeated, 'image')} that its DistributedSampler gives a second time"


class _Held:
    """Images that do not fill a block yet, with their labels."""

    def __init__(self, name: str):
        self.name = name
        self.images: Tensor | None = None
        self.labels: list[str] | None = None

    def __len__(self) -> int:
        return 0 if self.images is None else len(self.images)

    def add(self, images: Tensor, labels: list[str] | None) -> None:
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{self.name} gave {len(images)} images with {len(labels)} labels; give one for each")
        if self.images is None:
            self.images, self.labels = images.cpu(), labels
            return
        if images.shape[1:] != self.images.shape[1:]:
            old, new = tuple(self.images.shape[1:]), tuple(images.shape[1:])
            raise ValueError(f"{self.name} gave images of shape {old}, then of {new}; resize all images to one size")
        if (labels is None) != (self.labels is None):
            raise ValueError(f"{self.name} gave labels with some batches only; give them with all or with none")
        self.images = torch.cat([self.images, images.cpu()])
        self.labels = None if labels is None or self.labels is None else self.labels + labels

    def take(self, count: int, first: int) -> ImageBlock:
        """The first `count` images as a block that begins with image number `first`."""
        assert self.images is not None  # its caller has seen that `count` images are held
        images, self.images = self.images[:count], self.images[count:]
        labels = None if self.labels is None else self.labels[:count]
        self.labels = None if self.labels is None else self.labels[count:]
        return decoded_block(images, first, [f"image {first + i}" for i in range(len(images))], labels)


def _images_and_labels(name: str, batch: Any) -> tuple[Tensor | np.ndarray, list[str] | None]:
    """The images [n, …] of a batch and their labels as text; ValueError for anything else, saying what is read."""
    images, labels = batch, None
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in IMAGE_KEYS if key in batch), None)
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
        if images is None:
            raise ValueError(f"{name} gave a dict of {', '.join(map(str, batch))}; call the images {IMAGE_KEYS[0]}")
    elif isinstance(batch, list | tuple):
        if not 1 <= len(batch) <= 2:
            raise ValueError(f"{name} gave a {type(batch).__name__} of {len(batch)}; give images, or images and labels")
        images, labels = batch[0], batch[1] if len(batch) == 2 else None
    if not isinstance(images, Tensor | np.ndarray):
        raise ValueError(
            f"{name} gave a {type(images).__name__}; give batches of images as tensors or arrays, [n, C, H, W] or "
            "[n, H, W, C] (a dataset of single images goes through torch.utils.data.DataLoader)"
        )
    return images, None if labels is None else class_names(labels)
