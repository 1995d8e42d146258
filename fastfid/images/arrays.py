"""Images of tensors, NumPy arrays, npz and npy files, converted a batch at a time.

Floats are never guessed at: they need a stated range, and values outside it are an error with the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfid.images.source import ImageBlock, ImageSource, checked_size, class_names, counted, decoded_block
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.errors import shown
from fastfid.runtime.input_files import reading
from fastfid.runtime.mapped_arrays import npz_array, npz_shape, open_numpy

ARRAY_NAMES = ("arr_0", "images")  # what an npz of images calls them: ADM's evaluator, and everybody else
LABEL_NAMES = ("arr_1", "labels")  # and what it calls their classes

RANGE_SLACK = 1e-3  # a quarter of one uint8 step on [0, 1]: what interpolation and float16 overshoot


class ArrayImages(ImageSource):
    """Images of one array [n, …], with classes [n] or None."""

    def __init__(
        self, name: str, array: Tensor | np.ndarray, value_range: tuple[float, float] | None, classes: Any = None
    ):
        self.name, self.array, self.value_range = name, array, value_range
        check_batch_axis(name, tuple(array.shape), axes=(2,))  # three grey images make an array, if no batch
        self.layout = _layout(name, tuple(array.shape))
        if len(array) == 0:
            raise ValueError(f"{name} holds no images")
        if 0 in array.shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, images without pixels")
        _check_number_type(name, array, value_range)
        self.classes = None if classes is None else class_names(classes)
        if self.classes is not None and len(self.classes) != len(array):
            raise ValueError(f"{name} holds {len(array)} images and {len(self.classes)} labels; give one for each")

    def __len__(self) -> int:
        return len(self.array)

    def labels(self, start: int, stop: int) -> list[str] | None:
        """Classes of the images from `start` to `stop`, None where there are none."""
        return self.classes and self.classes[start:stop]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time, the last batch shorter."""
        for start in range(0, len(self), checked_size(size)):
            yield self._uint8(start, start + size)

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[ImageBlock]:
        """Blocks of the part that is asked for; nothing else is converted."""
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, checked_size(size)):
            last = min(first + size, stop)
            names = [self.image_name(i) for i in range(first, last)]
            yield decoded_block(self._uint8(first, last), first, names, self.labels(first, last))

    def image(self, index: int) -> Tensor:
        """Image number `index`, uint8 [C, H, W]."""
        return self._uint8(index, index + 1)[0].cpu()

    def _uint8(self, start: int, stop: int) -> Tensor:
        return to_uint8(self.name, self.array[start:stop], self.value_range, start, self.layout)


def to_uint8(
    name: str,
    images: Tensor | np.ndarray,
    value_range: tuple[float, float] | None,
    start: int = 0,
    layout: str | None = None,
) -> Tensor:
    """Images of any layout as uint8 [n, C, H, W]; floats in value_range (lo, hi) → 255(x − lo)/(hi − lo), rounded.

    start   number of the first, for messages
    layout  "NHW", "NHWC" or "NCHW"; found from the shape unless given

    ValueError for a shape or number type that no image has, and for values outside the range.
    """
    layout = layout or _layout(name, tuple(images.shape))
    _check_number_type(name, images, value_range)
    if isinstance(images, np.ndarray):  # np.array copies, so a batch never aliases a read-only memory map
        images = np.array(images, images.dtype.newbyteorder("="))
    x = as_tensor(images, name).detach()
    x = _channels_first(x, layout)
    if not x.is_floating_point():
        return x.contiguous()
    assert value_range is not None  # _check_number_type wants one for floats
    lo, hi = value_range
    slack = RANGE_SLACK * (hi - lo)
    low, high = (x.min().item(), x.max().item()) if len(x) else (lo, hi)
    if not (low >= lo - slack and high <= hi + slack):  # also when they are NaN
        raise ValueError(
            f"{name} has values from {low:.4g} to {high:.4g} in images {start} to {start + len(x) - 1}, "
            f"outside value_range=({lo}, {hi}); pass the range the images really have, or clip them"
        )
    return ((x.float() - lo) * (255 / (hi - lo))).round().clamp(0, 255).to(torch.uint8).contiguous()


def open_array_file(path: Path, value_range: tuple[float, float] | None) -> ArrayImages:
    """The images of an npz by their usual name, with its labels, or of an npy; mapped rather than read.

    Compressed ones (np.savez_compressed) are inflated; above LARGE bytes into a temporary file (mapped_arrays.py).
    """
    with reading(path, "save it again with np.savez or np.save", how="by NumPy"):
        content = open_numpy(path)
        if isinstance(content, np.ndarray):
            return ArrayImages(str(path), content, value_range)
        images, labels, unread = _images_of_npz(path, content)
        if images is None:
            held = shown(", ".join(content.files))
            raise ValueError(f"{path} has neither {' nor '.join(ARRAY_NAMES)} (only {held}); save the images as arr_0")
        # An arr_1 that is not a list of classes is ignored: one-hot rows, latents, a single number.
        labelled = labels is not None and labels.shape == images.shape[:1]
        source = ArrayImages(str(path), images, value_range, labels if labelled else None)
        source.notes = _notes(path, len(images), None if labelled else labels, unread)
        return source


def _notes(path: Path, count: int, labels: np.ndarray | None, unread: list[str]) -> list[str]:
    """Sentences on labels that are not one for each image, and on the images that are not read."""
    notes = []
    if labels is not None and labels.ndim == 2 and len(labels) == count:
        notes.append(
            f"{path} holds labels of shape {labels.shape}; a class is one number or name, so they are not read"
        )
    if labels is not None and labels.ndim == 1:
        held = f"{counted(len(labels), 'label')} and {counted(count, 'image')}"
        notes.append(f"{path} holds {held}; the labels are not read as classes")
    if unread:
        others = counted(len(unread), "array")
        notes.append(f"passed over {others} of images in {path}: {shown(', '.join(unread))}; one is read")
    return notes


def _images_of_npz(path: Path, content: np.lib.npyio.NpzFile) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """The arrays of images and of labels by their usual names, None where there are none; names of other images."""
    with content:
        found = [next((n for n in names if n in content.files), None) for names in (ARRAY_NAMES, LABEL_NAMES)]
        images, labels = (None if name is None else npz_array(path, content, name) for name in found)
        others = [] if images is None else [name for name in content.files if name != found[0]]
        unread = [name for name in others if images is not None and _has_shape(content, name, images.shape[1:])]
    return images, labels, unread


def _has_shape(content: np.lib.npyio.NpzFile, name: str, shape: tuple[int, ...]) -> bool:
    """Whether an array of an npz holds items of this shape, by its header; False for a damaged one."""
    try:
        return npz_shape(content, name)[1:] == shape
    except Exception:
        return False


def _layout(name: str, shape: tuple[int, ...]) -> str:
    """Axis order by where the 1 or 3 channels stand; the last axis wins, as npz files of images have it."""
    if len(shape) == 3:
        return "NHW"
    if len(shape) == 4 and shape[3] in (1, 3):
        return "NHWC"
    if len(shape) == 4 and shape[1] in (1, 3):
        return "NCHW"
    raise ValueError(
        f"{name} has shape {shape}; images are [n, H, W], [n, H, W, C] or [n, C, H, W] with 1 or 3 channels"
    )


def check_batch_axis(name: str, shape: tuple[int, ...], axes: tuple[int, ...] = (0, 2)) -> None:
    """ValueError for a single colour image, 3 channels on one of `axes`, which would pass for a batch of grey ones."""
    if len(shape) == 3 and 3 in (shape[axis] for axis in axes):
        raise ValueError(
            f"{name} has shape {shape}, which is one colour image or {shape[0]} grey ones; give batches: image[None] "
            "for one image, images[:, None] for grey ones"
        )


def _channels_first(block: Tensor, layout: str) -> Tensor:
    if layout == "NHW":
        return block[:, None]
    return block.movedim(3, 1) if layout == "NHWC" else block


def _check_number_type(name: str, array: Tensor | np.ndarray, value_range: tuple[float, float] | None) -> None:
    if isinstance(array, Tensor):
        dtype = str(as_tensor(array, name).dtype).removeprefix("torch.")
    else:
        dtype = str(array.dtype.newbyteorder("="))
    if dtype.startswith(("float", "bfloat")):
        if value_range is None:
            raise ValueError(
                f"{name} is {dtype} and does not tell its range; pass value_range=(0, 1) or (-1, 1) "
                "(--value-range 0,1), or save it as uint8"
            )
    elif dtype != "uint8":
        raise ValueError(f"{name} is {dtype}; images are uint8, or float with a value_range")
