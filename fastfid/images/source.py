"""The interface of every source of images: numbered images of one shape, in blocks that are decoded when needed.

Legend: n images, C channels, H×W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import UnidentifiedImageError
from torch import Tensor

from fastfid.runtime.errors import first_line
from fastfid.runtime.hashes import images_sha256


@dataclass(frozen=True)
class ImageBlock:
    """Consecutive images that are decoded only when asked for.

    start     number of the first image in its source
    names     file or array position of every image, for messages
    digest    SHA-256 of their content, hexadecimal: of the encoded files, or of the pixels of arrays
    decode    call(expected shape [C, H, W] or None) → uint8 [m, C, H, W], positions kept (all but skipped ones)
    prefetch  start decoding in the background
    labels    class of every image as text, None where there are no classes
    decode_each  call() → images uint8 [C, H, W] of any shapes, positions kept; None where all have one shape
    """

    start: int
    names: list[str]
    digest: str
    decode: Callable[[tuple[int, ...] | None], tuple[Tensor, list[int]]]
    prefetch: Callable[[], None]
    labels: list[str] | None = None
    decode_each: Callable[[], tuple[list[Tensor], list[int]]] | None = None


class ImageSource(ABC):
    """Images of one origin: `name` for messages, `len()` images, `batches(size)` of uint8 [n, 1 or 3, H, W].

    skipped  a sentence for every unreadable image that was left out, which only happens on request
    notes    sentences on what was found beside the images and not read
    once     the images pass by a single time, as those of an iterator: no `len()`, no `image(index)`
    """

    name: str
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()
    once: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time, the last batch shorter; ValueError names an unfit image."""

    @property
    def expected(self) -> int | None:
        """Number of images to expect, for progress and memory; None if unknown."""
        return len(self)

    @property
    def dataset_size(self) -> int | None:
        """How many images there are where those that come may be others in number; None where they cannot."""
        return None

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[ImageBlock]:
        """Yield the images from `start` to `stop`, multiples of `size` or the end, as blocks of `size` in order."""
        first, stop = 0, len(self) if stop is None else stop
        for batch in self.batches(size):
            if start <= first < stop:
                names = [self.image_name(first + i) for i in range(len(batch))]
                yield decoded_block(batch, first, names, self.labels(first, first + len(batch)))
            first += len(batch)

    def labels(self, start: int, stop: int) -> list[str] | None:
        """Classes of the images from `start` to `stop` as text, None where there are none."""
        return None

    def image_name(self, index: int) -> str:
        """What image number `index` is called in messages and reports."""
        return f"image {index}"

    def image(self, index: int) -> Tensor:
        """Image number `index`, uint8 [C, H, W]."""
        for block in self.blocks(1):
            if block.start == index:
                return block.decode(None)[0][0]
        raise ValueError(f"{self.name} has {len(self)} images, no number {index}; count from 0")


def decoded_block(images: Tensor, start: int, names: list[str], labels: list[str] | None) -> ImageBlock:
    """The block of images that are in memory already, uint8 [m, C, H, W]."""
    return ImageBlock(
        start, names, images_sha256(images), lambda _: (images, list(range(len(images)))), lambda: None, labels
    )


def checked_size(size: int) -> int:
    """The batch size, or ValueError below 1."""
    if size < 1:
        raise ValueError(f"the batch size is {size}; it must be at least 1")
    return size


def class_names(labels: Any) -> list[str]:
    """Class labels of any kind, names or numbers, as text: 3, 3.0 and "3" are one class.

    ValueError for what is not one name or number an image.
    """
    if not hasattr(labels, "tolist") and not isinstance(labels, Iterable):
        raise ValueError(f"labels are given as a {type(labels).__name__}; give a name or a number for each image")
    plain = labels.tolist() if hasattr(labels, "tolist") else [getattr(x, "item", lambda x=x: x)() for x in labels]
    if not isinstance(plain, list) or any(isinstance(x, list | tuple | dict) for x in plain):
        raise ValueError("labels are no list of names or numbers, one for each image; flatten them")
    return [str(int(x)) if isinstance(x, float) and x.is_integer() else str(x) for x in plain]


def reason_of(error: Exception) -> str:
    """What an exception of a reader says, in one line; its kind where it says nothing."""
    if isinstance(error, UnidentifiedImageError):
        return "no image format"  # Pillow names the buffer it was given, by its address
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return first_line(error)


def counted(count: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
