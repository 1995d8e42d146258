"""Folder, zip, npz, npy, tensor or array → batches of uint8 images [n, 1 or 3, H, W], in an order that never changes.

Files are sorted by their path below the root as text, so a folder and a zip of it give the same images in the same
order.  Nothing is resized and nothing guessed: mixed sizes, mixed channel counts and floats of unstated range are
errors that name the file and the remedy.

Legend: n images, C channels, H×W pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})  # compared in lower case
ARRAY_NAMES = ("arr_0", "images")  # what an npz of images calls them: ADM's evaluator, and everybody else
GREY_MODES = frozenset({"1", "L", "LA"})  # Pillow modes read as one channel, alpha dropped
DEEP_MODES = ("I", "F")  # beginnings of the modes with more than 8 bits a channel
RANGE_SLACK = 1e-3  # a quarter of one uint8 step on [0, 1]: what interpolation and float16 overshoot
DECODERS = min(8, os.cpu_count() or 1)  # threads: Pillow and zlib let go of the interpreter while they decode
BLOCKS_AHEAD = 1  # encoded blocks read before they are asked for: memory does not grow with the number of images

UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)  # what damaged files raise


@dataclass(frozen=True)
class ImageBlock:
    """Consecutive images that are decoded only when asked for.

    start     number of the first image in its source
    names     file or array position of every image, for messages
    digest    SHA-256 of their content, hexadecimal: of the encoded files, or of the pixels of arrays
    decode    call(expected shape [C, H, W] or None) → uint8 [m, C, H, W], positions kept (all but skipped ones)
    prefetch  start decoding in the background
    """

    start: int
    names: list[str]
    digest: str
    decode: Callable[[tuple | None], tuple[Tensor, list[int]]]
    prefetch: Callable[[], None]


class ImageSource(ABC):
    """Images of one origin: `name` for messages, `len()` images, `batches(size)` of uint8 [n, 1 or 3, H, W].

    `skipped` lists a sentence for every unreadable image that was left out, which only happens on request.
    """

    name: str
    skipped: tuple | list = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time, the last batch shorter; ValueError names an unfit image."""

    def blocks(self, size: int) -> Iterator[ImageBlock]:
        """Yield all images in order as blocks of `size` with the digest of their content."""
        start = 0
        for batch in self.batches(size):
            names = [self.image_name(start + i) for i in range(len(batch))]
            digest = hashlib.sha256(f"{tuple(batch.shape)}".encode() + batch.cpu().numpy().tobytes()).hexdigest()
            yield ImageBlock(start, names, digest, _already_decoded(batch), lambda: None)
            start += len(batch)

    def image_name(self, index: int) -> str:
        """What image number `index` is called in messages and reports."""
        return f"image {index}"

    def image(self, index: int) -> Tensor:
        """Image number `index`, uint8 [C, H, W]."""
        for block in self.blocks(1):
            if block.start == index:
                return block.decode(None)[0][0]
        raise ValueError(f"{self.name} has {len(self)} images, no number {index}; count from 0")


def _already_decoded(batch: Tensor) -> Callable:
    return lambda expected: (batch, list(range(len(batch))))


def open_images(source, value_range: tuple[float, float] | None = None, skip_corrupt: bool = False) -> ImageSource:
    """Open images without reading them all.

    source        folder (searched recursively), .zip, .npz, .npy, tensor or array; arrays are uint8 or float,
                  [n, H, W], [n, C, H, W] or [n, H, W, C]
    value_range   (0, 1) or (-1, 1)…, required for float arrays, which are rounded to the nearest of 256 levels
    skip_corrupt  leave unreadable image files out and list them in `.skipped`, instead of stopping at the first

    FileNotFoundError for a missing path, ValueError for an empty, unreadable or unsuitable one.
    """
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, Tensor | np.ndarray):
        return _ArrayImages("the array", source, value_range)
    path = Path(source)
    if path.is_dir():
        return _folder(path, skip_corrupt)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; pass a folder, .zip, .npz or .npy of images")
    if path.suffix.lower() == ".zip":
        return _zip(path, skip_corrupt)
    if path.suffix.lower() in (".npz", ".npy"):
        return _ArrayImages(str(path), _load_array(path), value_range)
    raise ValueError(f"{path} is not a folder, .zip, .npz or .npy; put single images into a folder")


# --- image files -------------------------------------------------------------------------------------------------


class _FileImages(ImageSource):
    """Encoded images: sorted member names and a function from a name to its bytes."""

    def __init__(self, name: str, members: list[str], read: Callable[[str], bytes], skip_corrupt: bool = False):
        if not members:
            raise ValueError(f"{name} holds no images; expected files ending in {', '.join(sorted(EXTENSIONS))}")
        self.name, self.members, self.read = name, sorted(members), read
        self.skip_corrupt, self.skipped = skip_corrupt, []

    def __len__(self) -> int:
        return len(self.members)

    def image_name(self, index: int) -> str:
        return self.members[index]

    def image(self, index: int) -> Tensor:
        encoded = _read_encoded(self.read, self.members[index])
        return torch.from_numpy(self._decode(self.members[index], encoded).copy())

    def batches(self, size: int) -> Iterator[Tensor]:
        expected = None
        for block in self.blocks(size):
            images, _ = block.decode(expected)
            expected = expected or tuple(images.shape[1:])
            yield images

    def blocks(self, size: int) -> Iterator[ImageBlock]:
        """Blocks of files read and decoded by threads, the next block's bytes while one is worked on."""
        starts, ahead = range(0, len(self), _checked_size(size)), deque()
        self.skipped = []
        pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")  # its threads end when no block holds it
        try:
            for start in starts:
                members = self.members[start : start + size]
                ahead.append((start, members, [pool.submit(_read_encoded, self.read, m) for m in members]))
                if len(ahead) > BLOCKS_AHEAD:
                    yield self._block(pool, *ahead.popleft())
            while ahead:
                yield self._block(pool, *ahead.popleft())
        finally:  # abandoned half-way: nobody wants what is still to be read
            for *_, reads in ahead:
                for read in reads:
                    read.cancel()

    def _block(self, pool: ThreadPoolExecutor, start: int, members: list[str], reads: list[Future]) -> ImageBlock:
        encoded = [read.result() for read in reads]
        digests = [hashlib.sha256(e).digest() if isinstance(e, bytes) else b"unreadable" for e in encoded]
        decoding: list[Future] = []

        def prefetch() -> None:
            if not decoding:
                decoding.extend(pool.submit(self._decode, *pair) for pair in zip(members, encoded, strict=True))

        def decode(expected: tuple | None) -> tuple[Tensor, list[int]]:
            prefetch()
            return self._collect(members, decoding, expected)

        return ImageBlock(start, members, hashlib.sha256(b"".join(digests)).hexdigest(), decode, prefetch)

    def _collect(self, members: list[str], decoding: list[Future], expected: tuple | None) -> tuple[Tensor, list[int]]:
        """Decoded images [m, C, H, W] of one shape, and which of `members` they are."""
        images, kept = [], []
        for position, (member, result) in enumerate(zip(members, decoding, strict=True)):
            try:
                image = result.result()
            except ValueError as unreadable:
                if not self.skip_corrupt:
                    raise
                self.skipped.append(str(unreadable))
                continue
            expected = expected or image.shape
            self._check_shape(member, image.shape, expected)
            images.append(image)
            kept.append(position)
        if not images:
            return torch.empty(0, *(expected or (3, 1, 1)), dtype=torch.uint8), []
        return torch.from_numpy(np.stack(images)), kept

    def _decode(self, member: str, encoded: bytes | Exception) -> np.ndarray:
        """One image, uint8 [C, H, W]."""
        from PIL import Image

        try:
            if isinstance(encoded, Exception):
                raise encoded
            with Image.open(io.BytesIO(encoded)) as image:
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


def _read_encoded(read: Callable[[str], bytes], member: str) -> bytes | Exception:
    """Bytes of a file, or what reading it raised: it is told when the image is decoded, in order."""
    try:
        return read(member)
    except Exception as unreadable:  # whatever a file system or a damaged archive raises
        return unreadable


def _folder(path: Path, skip_corrupt: bool) -> ImageSource:
    files = (Path(root, file) for root, _, names in os.walk(path) for file in names)
    members = [file.relative_to(path).as_posix() for file in files if _is_image(file.name)]
    return _FileImages(str(path), members, lambda member: (path / member).read_bytes(), skip_corrupt)


def _zip(path: Path, skip_corrupt: bool) -> ImageSource:
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as bad:
        raise ValueError(f"{path} is not a readable zip ({bad}); pack it again") from None
    members = [info.filename for info in archive.infolist() if not info.is_dir()]
    for member in members:
        # Nothing is unpacked, but an archive that tries to leave its folder is not one of images.
        if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member.replace("\\", "/")).parts:
            raise ValueError(f"{path} holds the path {member}, which leaves the archive; pack it again without it")
    return _FileImages(str(path), [member for member in members if _is_image(member)], archive.read, skip_corrupt)


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

    def image(self, index: int) -> Tensor:
        block = self.array[index : index + 1]
        block = block.detach().cpu() if isinstance(block, Tensor) else torch.from_numpy(np.array(block))
        block = _channels_first(block, self.layout)
        return (self._quantize(block, index) if block.is_floating_point() else block)[0].contiguous()

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
