"""The npz file of moments, written by fastfid or another tool.

mu, sigma    mean [d] and covariance [d, d], any float type; pytorch-fid, clean-fid, EDM and ADM use these names
count        number of rows (fastfid)
provenance   JSON object (fastfid)
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid.identity import Provenance
from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.errors import first_line
from fastfid.runtime.mapped_arrays import NoRoom, npz_array, writable

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)

Array = npt.NDArray[Any]  # an array of any type that a file can hold


class StoredMoments(NamedTuple):
    """The moments in a file: mean float64 [d], cov float64 [d, d], and the number of rows, None if unknown."""

    rows: int | None
    mean: Tensor
    cov: Tensor
    provenance: Provenance


class NumPyRefusal(Exception):
    """NumPy cannot read an entry, because it is damaged or holds pickled objects."""


def write_moments(
    path: str | os.PathLike[str],
    moments: StoredMoments,
    more: Mapping[str, Array] | None = None,
) -> None:
    """Write moments, the version of fastfid and the arrays `more` to one npz, without pickle.

    The file appears whole or not at all.
    """
    from fastfid import __version__

    arrays: dict[str, Any] = {"mu": as_array(moments.mean), "sigma": as_array(moments.cov)}
    if moments.rows is not None:
        arrays["count"] = np.int64(moments.rows)
    arrays["provenance"] = np.array(json.dumps({"version": f"fastfid {__version__}", **moments.provenance}))
    arrays.update(more or {})
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read_moments(path: Path, arrays: np.lib.npyio.NpzFile) -> StoredMoments:
    """The moments of an open npz; ValueError that names the file if it holds none."""
    names = arrays.files
    missing = sorted({"mu", "sigma"} - set(names))
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)} (only {', '.join(names) or 'nothing'}); statistics need mu and "
            "sigma"
        )
    provenance: Provenance = _read_provenance(path, entry(path, arrays, "provenance")) if "provenance" in names else {}
    rows = int(entry(path, arrays, "count")) if "count" in names else None
    return moments_of_arrays(path, entry(path, arrays, "mu"), entry(path, arrays, "sigma"), rows, provenance)


def moments_of_arrays(path: Path, mu: object, sigma: object, rows: int | None, provenance: Provenance) -> StoredMoments:
    """Moments in float64 of mu [d] and sigma [d, d] of any number types; ValueError that names the file otherwise."""
    mean, cov = (torch.from_numpy(writable(real_numbers(path, x))) for x in (mu, sigma))
    if mean.dim() != 1 or cov.shape != (len(mean), len(mean)):
        shapes = f"mu {tuple(mean.shape)} and sigma {tuple(cov.shape)}"
        raise ValueError(f"{path} has {shapes}; they must be [d] and [d, d]")
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError(f"{path} holds NaN or infinity in mu or sigma; compute the statistics again")
    return StoredMoments(rows, mean.double(), cov.double(), provenance)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what NumPy and zipfile raise for damaged files into one ValueError that names the file."""
    try:
        yield
    except NoRoom:
        raise
    except (OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NumPyRefusal) as damaged:
        raise ValueError(f"{path} cannot be read by NumPy ({first_line(damaged)}); save it again") from None


def open_arrays(path: Path) -> Array | np.lib.npyio.NpzFile:
    """The array of an npy file, mapped, or an open npz; NumPyRefusal for other content."""
    try:
        content: Array | np.lib.npyio.NpzFile = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as refusal:
        raise NumPyRefusal(first_line(refusal)) from None
    return content


def entry(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> Array:
    """One array of an open npz; NumPyRefusal if it cannot be read."""
    try:
        return npz_array(path, arrays, name)
    except ValueError as refusal:
        raise NumPyRefusal(f"{name}: {first_line(refusal)}") from None


def real_numbers(path: Path, values: object) -> Array:
    """The values as an array; ValueError that names the file unless they are real numbers."""
    array = as_array(values) if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds an array of {array.dtype}, not of real numbers; save float arrays")
    return array


def as_array(tensor: Tensor) -> Array:
    """The tensor's values in host memory, without gradient; float32 of floats that NumPy lacks, such as bfloat16."""
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.dtype not in NUMPY_FLOATS:
        values = values.float()  # exact: they are narrower
    array: Array = values.numpy()
    return array


def _read_provenance(path: Path, recorded: Array) -> Provenance:
    try:
        provenance = json.loads(str(recorded))
    except json.JSONDecodeError as damaged:
        raise ValueError(f"the provenance in {path} is no JSON ({damaged}); write the file again") from None
    if not isinstance(provenance, dict):
        raise ValueError(f"the provenance in {path} is a {type(provenance).__name__}; it must be a JSON object")
    return {str(key): value if value is None else str(value) for key, value in provenance.items()}
