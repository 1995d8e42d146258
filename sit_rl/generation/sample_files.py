"""Files of samples: a folder of PNG files, or one .npz as ADM's evaluator reads it.

Both take batches in any order from any rank, if all ranks share a file system. A file gets its name only when it is
complete. So after a kill, complete files are kept and missing ones are made again. A JSON record beside the images says
how they are made; images of another recipe are refused.

Legend: n images of a batch, C channels, H×W pixels.
"""

from __future__ import annotations

import re
import shutil
import struct
import zipfile
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.input_files import json_of, read_text, reading
from fastfid.runtime.mapped_arrays import open_numpy
from sit_rl.files.atomic import write_json

# PNG (ISO/IEC 15948): a signature, then the IHDR chunk, which begins with width and height. IEND is the last chunk.
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB\x60\x82"
PNG_HEADER_BYTES = 24  # signature 8, length 4, "IHDR" 4, width 4, height 4
# Most bytes of a PNG file beyond its pixels: chunk headers, one filter byte per row, headers of zlib's stored blocks,
# and rounding up to the file system's blocks of 4 KiB, which is the largest part.
PNG_OVERHEAD = 4096
# Bytes left free on the disk, for labels (8 bytes per image), the record, and other programs.
DISK_MARGIN = 64e6


class SampleFiles(ABC):
    """Images 0 … count − 1 of shape (C, H, W) on disk, with their record."""

    record_path: Path

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]):
        self.path, self.count, self.shape = path, count, shape

    @abstractmethod
    def foreign(self) -> Path | None:
        """A file at the output path that this command did not write, or None."""

    @abstractmethod
    def has(self, rows: range) -> bool:
        """Whether all images of a batch are there and complete."""

    @abstractmethod
    def write(self, rows: range, images: torch.Tensor) -> None:
        """Write images uint8 [n, C, H, W] with the global numbers `rows`; complete images are not written again."""

    @abstractmethod
    def finish(self, labels: torch.Tensor) -> None:
        """Write the labels int64 [count], after all batches are there."""

    @abstractmethod
    def bytes_needed(self, missing: int) -> float:
        """Most bytes that `missing` more images and `finish` can need."""

    @abstractmethod
    def first(self, n: int) -> npt.NDArray[np.uint8]:
        """The first n finished images, uint8 [n, H, W, C]."""

    @abstractmethod
    def open(self) -> None:
        """Make the folder for the batches, and delete temporary files of a killed run."""

    def read_record(self) -> dict[str, Any] | None:
        """The record of an earlier run, or None; ValueError if it cannot be read."""
        if not self.record_path.exists():
            return None
        with reading(self.record_path, "choose another --out"):
            record = json_of(read_text(self.record_path))
            if not isinstance(record, dict):
                raise ValueError(f"{self.record_path} is not a record of samples; choose another --out")
            return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace the record."""
        write_json(self.record_path, record)

    def check_space(self, missing: int) -> None:
        """OSError, before any work, if the disk has no room for `missing` more images."""
        needed = self.bytes_needed(missing) + DISK_MARGIN
        free = shutil.disk_usage(self.path.parent).free
        if missing and free < needed:
            raise OSError(
                f"--out {self.path} needs up to {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; make room, "
                "choose another disk, or lower --images"
            )


class PngFolder(SampleFiles):
    """NNNNNN.png named by the global number of the image, labels.npy (int64 [count]) and sampling.json."""

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]):
        super().__init__(path, count, shape)
        self.digits = max(6, len(str(count - 1)))
        self.record_path, self.labels_path = path / "sampling.json", path / "labels.npy"

    def image_path(self, i: int) -> Path:
        """Path of image i."""
        return self.path / f"{i:0{self.digits}d}.png"

    def foreign(self) -> Path | None:  # noqa: D102
        if not self.path.is_dir():
            return self.path if self.path.exists() else None
        known = {self.record_path.name, self.labels_path.name}
        recorded, image = self.read_record() is not None, re.compile(rf"\d{{{self.digits}}}\.png")
        for entry in sorted(self.path.iterdir()):
            ours = recorded and image.fullmatch(entry.name) and int(entry.stem) < self.count
            if not (ours or entry.name in known or _is_temporary(entry.name)):
                return entry
        return None

    def open(self) -> None:  # noqa: D102
        self.path.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(self.path)

    def has(self, rows: range) -> bool:  # noqa: D102
        return all(self._complete(i) for i in rows)

    def _complete(self, i: int) -> bool:
        """Whether the file begins as a PNG of the right size and ends as one, which a truncated file does not."""
        try:
            with open(self.image_path(i), "rb") as file:
                head = file.read(PNG_HEADER_BYTES)
                file.seek(-len(PNG_END), 2)
                end = file.read()
        except OSError:
            return False
        _, height, width = self.shape
        return head[:8] == PNG_SIGNATURE and head[16:] == struct.pack(">II", width, height) and end == PNG_END

    def write(self, rows: range, images: torch.Tensor) -> None:  # noqa: D102
        for i, image in zip(rows, images.movedim(1, 3).numpy(), strict=True):
            if self._complete(i):
                continue
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            write_atomically(self.image_path(i), partial(picture.save, format="PNG"))

    def finish(self, labels: torch.Tensor) -> None:  # noqa: D102
        write_atomically(self.labels_path, lambda file: np.save(file, labels.numpy()))

    def bytes_needed(self, missing: int) -> float:  # noqa: D102
        return missing * (float(np.prod(self.shape)) + PNG_OVERHEAD)

    def first(self, n: int) -> npt.NDArray[np.uint8]:  # noqa: D102
        images = [np.asarray(Image.open(self.image_path(i))) for i in range(n)]
        return np.stack(images).reshape(n, *self.shape[1:], self.shape[0])


class AdmNpz(SampleFiles):
    """FILE.npz with arr_0 uint8 [count, H, W, C] and arr_1 int64 [count], as guided-diffusion's image_sample.py.

    Batches are kept in FILE.npz.parts/ until all are there; the record is FILE.npz.json. The arrays are joined batch by
    batch, so memory does not grow with their number, but the disk holds them twice for a short time.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]):
        super().__init__(path, count, shape)
        self.record_path, self.parts = path.with_name(path.name + ".json"), path.with_name(path.name + ".parts")

    def part_path(self, start: int, stop: int) -> Path:
        """Path of the batch of images start … stop − 1."""
        return self.parts / f"{start:08d}-{stop:08d}.npy"

    def foreign(self) -> Path | None:  # noqa: D102
        made = self.read_record() is not None
        for path in (self.path, self.parts):
            if path.exists() and not made:
                return path
        return None

    def open(self) -> None:  # noqa: D102
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._joined():
            self.parts.mkdir(exist_ok=True)
            _remove_temporaries(self.parts)

    def _joined(self) -> bool:
        """Whether the .npz is complete: the directory of a zip file is at its end, so a truncated file has none."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                sizes = {member.filename: member.file_size for member in archive.infolist()}
        except Exception:  # damaged files raise nearly anything; this one is made again
            return False
        return "arr_1.npy" in sizes and sizes.get("arr_0.npy", 0) > self.count * int(np.prod(self.shape))

    def has(self, rows: range) -> bool:  # noqa: D102
        if self._joined():
            return True
        try:
            part = open_numpy(self.part_path(rows.start, rows.stop))
        except Exception:  # damaged files raise nearly anything; this one is made again
            return False
        expected = (len(rows), *self.shape[1:], self.shape[0])
        return isinstance(part, np.ndarray) and part.shape == expected and part.dtype == np.uint8

    def write(self, rows: range, images: torch.Tensor) -> None:  # noqa: D102
        array = np.ascontiguousarray(images.movedim(1, 3).numpy())
        write_atomically(self.part_path(rows.start, rows.stop), lambda file: np.save(file, array))

    def finish(self, labels: torch.Tensor) -> None:  # noqa: D102
        if self._joined():
            shutil.rmtree(self.parts, ignore_errors=True)
            return
        shape = (self.count, *self.shape[1:], self.shape[0])
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}

        def join(file: IO[bytes]) -> None:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, head)
                    for part in sorted(self.parts.glob("*.npy")):
                        member.write(np.load(part, allow_pickle=False).data)
                with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, labels.numpy(), allow_pickle=False)

        write_atomically(self.path, join)
        shutil.rmtree(self.parts)

    def bytes_needed(self, missing: int) -> float:  # noqa: D102
        whole = float(np.prod(self.shape))
        return missing * whole + self.count * (whole + 8)  # the missing parts, then the file itself

    def first(self, n: int) -> npt.NDArray[np.uint8]:  # noqa: D102
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
            np.lib.format.read_magic(member)
            (_, *shape), _, _ = np.lib.format.read_array_header_1_0(member)
            return np.frombuffer(member.read(n * int(np.prod(shape))), np.uint8).reshape(n, *shape)


def open_files(path: Path, count: int, shape: tuple[int, int, int]) -> SampleFiles:
    """PngFolder, or AdmNpz for a name that ends in .npz; ValueError for other file names or numbers of channels."""
    if shape[0] not in (1, 3):
        raise ValueError(f"samples have {shape[0]} channels, images 1 or 3; a model of latents needs --vae")
    if path.suffix.lower() == ".npz":
        return AdmNpz(path, count, shape)
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".zip", ".tar", ".npy", ".pt", ".safetensors", ".json"):
        raise ValueError(f"--out {path} is neither a folder nor a .npz; choose a name without {path.suffix}")
    return PngFolder(path, count, shape)


def _is_temporary(name: str) -> bool:
    """Whether this is a temporary file of `write_atomically`, left by a killed process."""
    return re.fullmatch(r"\.(\d+\.png|[\d-]+\.npy|labels\.npy)\.\w+", name) is not None


def _remove_temporaries(folder: Path) -> None:
    for entry in folder.iterdir():
        if _is_temporary(entry.name):
            entry.unlink()
