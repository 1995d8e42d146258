"""The npz files of caches: arrays with a SHA-256, which a damaged or an exchanged file does not match."""

from __future__ import annotations

import os
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

    key  what the arrays belong to, such as the hash of what they were computed from; part of the hash
    """
    entries: dict[str, Any] = {SUM: np.array(_hash(key, arrays)), **arrays}
    write_atomically(path, lambda file: np.savez(file, **entries))


def load_checked(path: str | os.PathLike[str], key: str) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays that `save_checked` has written for `key`; None for no file, a damaged one, and another key's."""
    try:
        file_bytes(path)  # no pipe and no device, for which reading would wait
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
