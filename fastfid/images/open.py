"""Folder, zip, tar, npz, npy, tensor, array, data loader or iterator → uint8 images [n, 1 or 3, H, W], in order.

Nothing is resized or guessed: mixed sizes, mixed channel counts and floats of unknown range are errors that name the
file and the remedy.  folders_and_zips.py, tars.py, arrays.py and streams.py describe what each source can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastfid.images.arrays import ARRAY_NAMES, ArrayImages, open_array_file
from fastfid.images.folders_and_zips import files_below, open_folder, open_zip
from fastfid.images.formats import passed_over, split_by_name
from fastfid.images.source import ImageBlock, ImageSource
from fastfid.images.streams import StreamImages
from fastfid.images.tars import open_tars
from fastfid.runtime.input_files import file_bytes
from fastfid.runtime.shard_patterns import files_of

TAR = ".tar"

__all__ = ["ARRAY_NAMES", "ImageBlock", "ImageSource", "open_images"]


def open_images(
    source: Any,
    value_range: tuple[float, float] | None = None,
    skip_corrupt: bool = False,
    workers: int | None = None,
    name: str | None = None,
    class_folders: bool = False,
) -> ImageSource:
    """Open images without reading them all.

    source        folder (searched recursively), .zip, .tar, .npz, .npy, tensor or array, or a pair of such images and
                  their labels; arrays are uint8 or float, [n, H, W], [n, C, H, W] or [n, H, W, C].  A DataLoader,
                  generator or other iterable of batches, of (images, labels) or of dicts is read once.  The shards of
                  a WebDataset are a folder of .tar files, or one path with braces, as shard-{0000..0012}.tar
    value_range   (0, 1) or (-1, 1)…, required for floats, which are rounded to the nearest of 256 levels
    skip_corrupt  leave unreadable image files out and list them in `.skipped`, instead of stopping at the first
    workers       threads that decode files (default: one for each usable core, up to 8)
    name          what messages call images in memory
    class_folders folders that look like parts of a set (00000, chunk_3, a7, train) are classes, too

    Labels come from the folders of a class tree, labels.npy in a folder of `sit_rl.sample`, .cls members of a tar,
    arr_1 or labels of an npz, pairs and dicts.

    FileNotFoundError for a missing path, ValueError for an empty, unreadable or unsuitable one.
    """
    if value_range is not None:
        check_range(value_range)
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, Tensor | np.ndarray):
        return ArrayImages(name or "the array", source, value_range)
    if _is_labelled_array(source):
        return ArrayImages(name or "the array", source[0], value_range, source[1])
    if isinstance(source, Iterable) and not isinstance(source, str | Path):
        return StreamImages(name or "the iterator", source, value_range)
    if not isinstance(source, str | Path):
        raise ValueError(
            f"images are given as a {type(source).__name__}; pass a path, a tensor, an array or an iterable of batches "
            "(a dataset goes through torch.utils.data.DataLoader)"
        )
    if not str(source):
        raise ValueError("images are given as an empty path; pass a folder, .zip, .tar, .npz or .npy ('.' is a folder)")
    path = Path(source)
    if path.is_dir():
        tars, beside = _shards_in(path)
        if tars:
            return open_tars(str(path), tars, skip_corrupt, workers, class_folders, beside)
        return open_folder(path, skip_corrupt, workers, class_folders)
    files = files_of(path)
    if files != [path]:
        return open_tars(str(path), _tars_of(path, files), skip_corrupt, workers, class_folders)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; pass a folder, .zip, .tar, .npz or .npy of images")
    file_bytes(path)
    if path.suffix.lower() == ".zip":
        return open_zip(path, skip_corrupt, workers, class_folders)
    if path.suffix.lower() == TAR:
        return open_tars(str(path), [path], skip_corrupt, workers, class_folders)
    if path.suffix.lower() in (".npz", ".npy"):
        return open_array_file(path, value_range)
    raise ValueError(f"{path} is not a folder, .zip, .tar, .npz or .npy; put single images into a folder")


def _shards_in(folder: Path) -> tuple[list[Path], str]:
    """The .tar files directly in a folder that holds no images beside them, by name, else none; and what is beside."""
    tars = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() == TAR and path.is_file())
    if not tars:
        return [], ""
    images, others = split_by_name(files_below(folder)[0])
    others[TAR] -= len(tars)
    return ([] if images else tars), passed_over(str(folder), +others)


def _tars_of(pattern: Path, files: list[Path]) -> list[Path]:
    """The files of a path with braces; FileNotFoundError or ValueError for one that is no .tar file."""
    for path in files:
        if path.suffix.lower() != TAR:
            raise ValueError(f"{pattern} stands for {path}, which is no .tar; braces are for shards of a WebDataset")
        if not path.exists():
            raise FileNotFoundError(f"{pattern} stands for {path}, which does not exist; correct the braces")
        file_bytes(path)
    return files


def check_range(value_range: Any) -> None:
    """ValueError unless these are two finite numbers in ascending order."""
    numbers = isinstance(value_range, tuple | list) and all(isinstance(end, int | float) for end in value_range)
    ordered = numbers and len(value_range) == 2 and value_range[0] < value_range[1]
    if not (ordered and math.isfinite(value_range[1] - value_range[0])):
        raise ValueError(f"value_range is {value_range!r}; pass two numbers (low, high) with low < high")


def _is_labelled_array(source: Any) -> bool:
    """Whether this is one (images, labels) pair rather than an iterable of batches: labels have one axis."""
    if not (isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor | np.ndarray)):
        return False
    return getattr(source[1], "ndim", 1) == 1
