"""The npz file of moments, written by fastfid or another tool.

mu, sigma    mean [d] and covariance [d, d], any float type; pytorch-fid, clean-fid, EDM and ADM use these names
count        number of rows (fastfid)
provenance   JSON object (fastfid)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid.identity import Provenance
from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.errors import first_line, shown
from fastfid.runtime.input_files import check_growth, json_of, reading
from fastfid.runtime.mapped_arrays import npz_array, writable

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)

Array = npt.NDArray[Any]  # an array of any type that a file can hold
MOST_ROWS = 2**53  # up to which float64 and JSON keep every count


class StoredMoments(NamedTuple):
    """The moments in a file: mean float64 [d], cov float64 [d, d], and the number of rows, None if unknown."""

    rows: int | None
    mean: Tensor
    cov: Tensor
    provenance: Provenance


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
            f"{path} has no {' and no '.join(missing)} (only {shown(', '.join(names)) or 'nothing'}); "
            "statistics need mu and sigma"
        )
    provenance: Provenance = _read_provenance(path, entry(path, arrays, "provenance")) if "provenance" in names else {}
    rows = count_of(path, entry(path, arrays, "count")) if "count" in names else None
    return moments_of_arrays(path, entry(path, arrays, "mu"), entry(path, arrays, "sigma"), rows, provenance)


def moments_of_arrays(path: Path, mu: object, sigma: object, rows: int | None, provenance: Provenance) -> StoredMoments:
    """Moments in float64 of mu [d] and sigma [d, d] of any number types; ValueError that names the file otherwise."""
    mean_array, cov_array = real_numbers(path, mu), real_numbers(path, sigma)
    dim = mean_array.size
    if mean_array.ndim != 1 or cov_array.shape != (dim, dim):
        shapes = f"mu {mean_array.shape} and sigma {cov_array.shape}"
        raise ValueError(f"{path} has {shapes}; they must be [d] and [d, d]")
    if dim == 0:
        raise ValueError(f"{path} has a mu and a sigma without entries, d = 0; compute the statistics again")
    check_growth(path, 8 * dim * dim)  # of the float64 that it becomes
    mean, cov = (torch.from_numpy(writable(x)) for x in (mean_array, cov_array))
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError(f"{path} holds NaN or infinity in mu or sigma; compute the statistics again")
    return StoredMoments(rows, mean.double(), cov.double(), provenance)


def reading_arrays(path: Path) -> AbstractContextManager[None]:
    """The boundary around a reader of npz and npy files; errors as in `reading`."""
    return reading(path, "save it again", how="by NumPy")


def entry(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> Array:
    """One array of an open npz; a ValueError about the entry says its name."""
    try:
        return npz_array(path, arrays, name)
    except ValueError as refusal:
        if str(path) in str(refusal):
            raise
        raise ValueError(f"{name}: {first_line(refusal)}") from None


def real_numbers(path: Path, values: object) -> Array:
    """The values as an array that torch can hold, long doubles as float64.

    ValueError that names the file unless `values` is an array, or something that NumPy takes for one, of real numbers.
    """
    if isinstance(values, list | tuple | dict | str | bytes):  # lists that hold a list twice grow without an end
        raise ValueError(f"{path} holds a {type(values).__name__} where an array is wanted; save float arrays")
    array = as_array(values) if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds an array of {array.dtype}, not of real numbers; save float arrays")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long double, which torch does not know
        with np.errstate(over="ignore"):  # infinity is refused where it matters
            return array.astype(np.float64)
    return array


def count_of(path: Path, value: object) -> int:
    """A number of images or rows; ValueError that names the file unless it is one whole number from 0."""
    array = np.asarray(value) if not isinstance(value, list | tuple | dict) else np.empty(0)
    number = array.item() if array.size == 1 and array.dtype.kind in "iuf" else None
    if number is None or not 0 <= number <= MOST_ROWS or number != int(number):
        told = f"{number}" if number is not None else f"of type {type(value).__name__}, shape {np.shape(array)}"
        raise ValueError(f"{path} has a count {told}; a count is one whole number from 0")
    return int(number)


def as_array(tensor: Tensor) -> Array:
    """The tensor's values in host memory, without gradient; float32 of floats that NumPy lacks, such as bfloat16."""
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.dtype not in NUMPY_FLOATS:
        values = values.float()  # exact: they are narrower
    array: Array = values.numpy()
    return array


def _read_provenance(path: Path, recorded: Array) -> Provenance:
    try:
        provenance = json_of(str(recorded))
    except ValueError as damaged:
        raise ValueError(f"the provenance in {path} is no JSON ({first_line(damaged)}); write the file again") from None
    if not isinstance(provenance, dict):
        raise ValueError(f"the provenance in {path} is a {type(provenance).__name__}; it must be a JSON object")
    return {str(key): value if value is None else str(value) for key, value in provenance.items()}
