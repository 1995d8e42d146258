"""Npz files of caches: arrays with a SHA-256 that reveals a damaged or exchanged file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.hashes import sha256
from fastfid.runtime.input_files import file_bytes

Arrays = Mapping[str, npt.NDArray[Any]]
SUM = "sha256"  # name of the entry with the hash


def save_checked(path: str | os.PathLike[str], key: str, arrays: Arrays) -> None:
    """Write arrays and their hash to one npz, whole or not at all.

    key  identifies the arrays, such as the hash of their inputs; it is part of the hash
    """
    entries: dict[str, Any] = {SUM: np.array(_hash(key, arrays)), **arrays}
    write_atomically(path, lambda file: np.savez(file, **entries))


def load_checked(path: str | os.PathLike[str], key: str) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays that `save_checked` wrote for `key`; None if the file is missing, damaged or of another key."""
    try:
        size = file_bytes(path)  # refuses pipes and devices
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            return None  # `save_checked` compresses nothing, so that nothing grows
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        stated = str(arrays.pop(SUM))
    except Exception:  # NumPy and zipfile raise a dozen kinds for damaged files
        return None
    return arrays if stated == _hash(key, arrays) else None


def _hash(key: str, arrays: Arrays) -> str:
    """SHA-256 of the key and of the arrays' names, shapes, dtypes and values, sorted by name."""
    return sha256(
        part
        for name, value in sorted(arrays.items())
        for part in (f"{key}{name}{value.shape}{value.dtype}", value.tobytes())
    )
