"""Folder, zip, npz, npy, tensor or array → batches of uint8 images [n, 1 or 3, H, W], in an order that never changes.

Files are sorted by their path below the root as text, so a folder and a zip of it give the same images in the same
order.  Nothing is resized and nothing guessed: mixed sizes, mixed channel counts and floats of unstated range are
errors that name the file and the remedy.

Legend: n images, C channels, H×W pixels.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})  # compared in lower case
ARRAY_NAMES = ("arr_0", "images")  # what an npz of images calls them: ADM's evaluator, and everybody else
GREY_MODES = frozenset({"1", "L", "LA"})  # Pillow modes read as one channel, alpha dropped
DEEP_MODES = ("I", "F")  # beginnings of the modes with more than 8 bits a channel
RANGE_SLACK = 1e-3  # a quarter of one uint8 step on [0, 1]: what interpolation and float16 overshoot


UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)  # what damaged files raise


class ImageSource(ABC):
    """Images of one origin: `name` for messages, `len()` images, `batches(size)` of uint8 [n, 1 or 3, H, W]."""

    name: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time, the last batch shorter; ValueError names an unfit image."""


def open_images(source, value_range: tuple[float, float] | None = None) -> ImageSource:
    """Open images without reading them all.

    source       folder (searched recursively), .zip, .npz, .npy, tensor or array; arrays are uint8 or float,
                 [n, H, W], [n, C, H, W] or [n, H, W, C]
    value_range  (0, 1) or (-1, 1)…, required for float arrays, which are rounded to the nearest of 256 levels

    FileNotFoundError for a missing path, ValueError for an empty, unreadable or unsuitable one.
    """
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, Tensor | np.ndarray):
        return _ArrayImages("the array", source, value_range)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; pass a folder, .zip, .npz or .npy of images")
    if path.suffix.lower() == ".zip":
        return _zip(path)
    if path.suffix.lower() in (".npz", ".npy"):
        return _ArrayImages(str(path), _load_array(path), value_range)
    raise ValueError(f"{path} is not a folder, .zip, .npz or .npy; put single images into a folder")


# --- image files -------------------------------------------------------------------------------------------------


class _FileImages(ImageSource):
    """Encoded images: sorted member names and a function from a name to its bytes."""

    def __init__(self, name: str, members: list[str], read: Callable[[str], bytes]):
        if not members:
            raise ValueError(f"{name} holds no images; expected files ending in {', '.join(sorted(EXTENSIONS))}")
        self.name, self.members, self.read = name, sorted(members), read

    def __len__(self) -> int:
        return len(self.members)

    def batches(self, size: int) -> Iterator[Tensor]:
        expected = None
        for start in range(0, len(self), _checked_size(size)):
            images = []
            for member in self.members[start : start + size]:
                image = self._decode(member)
                expected = expected or image.shape
                self._check_shape(member, image.shape, expected)
                images.append(image)
            yield torch.from_numpy(np.stack(images))

    def _decode(self, member: str) -> np.ndarray:
        """One image, uint8 [C, H, W]."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.read(member))) as image:
                if image.mode.startswith(DEEP_MODES):
                    raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
                pixels = np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
        # Pillow raises these for damaged or enormous images, zipfile RuntimeError for locked and BadZipFile for
        # corrupt members.
        except (*UNREADABLE, SyntaxError, RuntimeError, Image.DecompressionBombError) as bad:
            raise ValueError(
                f"{member} in {self.name} cannot be read as an 8-bit image ({bad}); write it again or remove it"
            ) from None
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _check_shape(self, member: str, shape: tuple, expected: tuple) -> None:
        if shape[1:] != expected[1:]:
            raise ValueError(
                f"{member} in {self.name} is {shape[2]}x{shape[1]} pixels, {self.members[0]} is "
                f"{expected[2]}x{expected[1]}; resize all images to one size"
            )
        if shape[0] != expected[0]:
            raise ValueError(
                f"{member} in {self.name} has {shape[0]} channels, {self.members[0]} has {expected[0]}; "
                "convert all images to RGB or all to grey"
            )


def _folder(path: Path) -> ImageSource:
    files = (Path(root, file) for root, _, names in os.walk(path) for file in names)
    members = [file.relative_to(path).as_posix() for file in files if _is_image(file.name)]
    return _FileImages(str(path), members, lambda member: (path / member).read_bytes())


def _zip(path: Path) -> ImageSource:
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as bad:
        raise ValueError(f"{path} is not a readable zip ({bad}); pack it again") from None
    members = [info.filename for info in archive.infolist() if not info.is_dir()]
    for member in members:
        # Nothing is unpacked, but an archive that tries to leave its folder is not one of images.
        if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member.replace("\\", "/")).parts:
            raise ValueError(f"{path} holds the path {member}, which leaves the archive; pack it again without it")
    return _FileImages(str(path), [member for member in members if _is_image(member)], archive.read)


def _is_image(name: str) -> bool:
    """By extension; hidden files (macOS writes ._x.png beside x.png) are not images."""
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


# --- arrays ------------------------------------------------------------------------------------------------------


class _ArrayImages(ImageSource):
    """Images of one array, converted a batch at a time."""

    def __init__(self, name: str, array: Tensor | np.ndarray, value_range: tuple[float, float] | None):
        self.name, self.array, self.value_range = name, array, value_range
        self.layout = _layout(name, tuple(array.shape))
        if len(array) == 0:
            raise ValueError(f"{name} holds no images")
        _check_number_type(name, str(array.dtype).removeprefix("torch."), value_range)

    def __len__(self) -> int:
        return len(self.array)

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self), _checked_size(size)):
            block = self.array[start : start + size]
            # np.array copies, so a batch never aliases a read-only memory map
            block = block.detach() if isinstance(block, Tensor) else torch.from_numpy(np.array(block))
            block = _channels_first(block, self.layout)
            yield (self._quantize(block, start) if block.is_floating_point() else block).contiguous()

    def _quantize(self, x: Tensor, start: int) -> Tensor:
        """Floats in value_range (lo, hi) → uint8, 255(x − lo)/(hi − lo) rounded to nearest."""
        lo, hi = self.value_range
        slack = RANGE_SLACK * (hi - lo)
        low, high = x.min().item(), x.max().item()
        if not (low >= lo - slack and high <= hi + slack):  # also when they are NaN
            raise ValueError(
                f"{self.name} has values from {low:.4g} to {high:.4g} in images {start} to {start + len(x) - 1}, "
                f"outside value_range=({lo}, {hi}); pass the range the images really have, or clip them"
            )
        return ((x.float() - lo) * (255 / (hi - lo))).round().clamp(0, 255).to(torch.uint8)


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


def _channels_first(block: Tensor, layout: str) -> Tensor:
    if layout == "NHW":
        return block[:, None]
    return block.movedim(3, 1) if layout == "NHWC" else block


def _check_number_type(name: str, dtype: str, value_range: tuple[float, float] | None) -> None:
    if dtype.startswith(("float", "bfloat")):
        if value_range is None:
            raise ValueError(f"{name} is {dtype} and does not tell its range; pass value_range=(0, 1) or (-1, 1)")
    elif dtype != "uint8":
        raise ValueError(f"{name} is {dtype}; images are uint8, or float with a value_range")


def _load_array(path: Path) -> np.ndarray:
    """The images of an npz by their usual name, or the array of an npy, mapped rather than read."""
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = content.files
            for name in ARRAY_NAMES:
                if name in names:
                    return content[name]
    except UNREADABLE as bad:
        raise ValueError(f"{path} cannot be read by NumPy ({bad}); save it again with np.savez or np.save") from None
    raise ValueError(
        f"{path} has neither {' nor '.join(ARRAY_NAMES)} (only {', '.join(names)}); save the images as arr_0"
    )


def _checked_size(size: int) -> int:
    if size < 1:
        raise ValueError(f"the batch size is {size}; it must be at least 1")
    return size
