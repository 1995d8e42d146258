"""Readers of statistics files of this and other tools.

A file is recognised by its content, not by its name:

    npz  mu, sigma                        pytorch-fid, clean-fid, EDM, FD-loss, fastfid (with count and provenance)
    npz  mu, sigma, mu_s, sigma_s         ADM's evaluator, with or without the images arr_0
    npz  feats                            clean-fid's KID statistics: features
    npz  reps, model, hparams             dgm-eval: features
    npy, npz of one array [n, d]          features
    pkl  {num_images, fid: {mu, sigma}…}  EDM2 (safe_pickle.py)
    pt   tensor [n, d] or {mu, sigma}     torch-fidelity's cache (safe_pickle.py)

Any float dtype is accepted, because the tools differ (torch-fidelity keeps mu in float32 and sigma in float64).
Moments are always float64.

Legend: n images, d feature dimension.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.distances.moments_file import (
    count_of,
    entry,
    moments_of_arrays,
    read_moments,
    reading_arrays,
    real_numbers,
)
from fastfid.distances.rows import BLOCK_ROWS
from fastfid.features.registry import preprocessing_of
from fastfid.identity import Provenance
from fastfid.images.open import ARRAY_NAMES
from fastfid.protocols import PROTOCOLS
from fastfid.runtime.errors import shown
from fastfid.runtime.input_files import check_growth, reading
from fastfid.runtime.mapped_arrays import npz_shape, open_numpy, writable
from fastfid.runtime.torch_file_checks import check_tensors
from fastfid.statistics.safe_pickle import load_pickle, load_torch

FEATURE_NAMES = ("features", "feats", "reps")  # fastfid; clean-fid; dgm-eval

PICKLES = (".pkl", ".pickle")

TORCH_FILES = (".pt", ".pth")

# Types of a tensor that are features; 8-bit floats have two or three digits and no arithmetic.
FEATURE_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# EDM2 keeps one entry a network; these are the networks' names here.
EDM2_ENTRIES = {"fid": "inception", "fd_dinov2": "dinov2"}


class FileContent(NamedTuple):
    """What a file holds: moments, features, or both.

    form        the tool that wrote it
    provenance  of the features, as far as the file states it
    moments     FeatureMoments, None in a file of features alone
    features    [n, d] float, or None
    spatial     FeatureMoments of the spatial features (sFID), or None
    images      whether the file also holds images
    """

    form: str
    provenance: Provenance
    moments: FeatureMoments | None = None
    features: Tensor | None = None
    spatial: FeatureMoments | None = None
    images: bool = False


def read_file(path: Path, network: str | None = None) -> FileContent:
    """The content of a statistics file; arguments and errors as in `read_statistics`."""
    if not path.exists():
        raise FileNotFoundError(f"no statistics file at {path}; pass an .npz, .npy, .pkl or .pt file")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        with reading_arrays(path):
            return _from_numpy(path)
    with reading(path, "save it again"):
        if suffix in PICKLES:
            return _from_edm2(path, load_pickle(path), network)
        if suffix in TORCH_FILES:
            return _from_torch(path)
    raise ValueError(f"{path} is no .npz, .npy, .pkl or .pt file; statistics are read from these")


def holds_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file that `read_statistics` is meant for, rather than images; reads headers only."""
    path = Path(path)
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    if suffix in PICKLES or suffix in TORCH_FILES:
        return True
    if suffix not in (".npz", ".npy"):
        return False
    try:
        content = open_numpy(path)
        if isinstance(content, np.ndarray):
            return bool(content.ndim == 2 and content.dtype.kind == "f")
        with content as arrays:
            names = set(arrays.files)
            if {"mu", "sigma"} <= names or names & set(FEATURE_NAMES):
                return True
            return len(names) == 1 and len(npz_shape(arrays, arrays.files[0])) == 2
    except Exception:  # damaged files raise nearly anything; open_images says what is wrong with this one
        return False


def _from_numpy(path: Path) -> FileContent:
    content = open_numpy(path)
    if isinstance(content, np.ndarray):
        return FileContent("features", {}, features=_checked_features(path, content))
    with content:
        return _from_npz(path, content)


def _from_npz(path: Path, arrays: np.lib.npyio.NpzFile) -> FileContent:
    names = set(arrays.files)
    if {"mu", "sigma"} <= names:
        return _from_moments_npz(path, arrays, names)
    for name in FEATURE_NAMES:
        if name in names:
            form = {"features": "fastfid", "feats": "clean-fid", "reps": "dgm-eval"}[name]
            told = name == "reps" and "model" in names
            provenance = _made_by("dgm-dinov2", str(entry(path, arrays, "model"))) if told else {}
            return FileContent(form, provenance, features=_checked_features(path, entry(path, arrays, name)))
    if len(names) == 1 and not names & {"mu", "sigma"}:
        array = entry(path, arrays, arrays.files[0])
        if array.ndim == 2 or not names & set(ARRAY_NAMES):  # arr_0 is np.savez(path, features), too
            return FileContent("features", {}, features=_checked_features(path, array))
    missing = sorted({"mu", "sigma"} - names)
    raise ValueError(
        f"{path} has no {' and no '.join(missing)} (only {shown(', '.join(arrays.files)) or 'nothing'}); "
        "statistics need mu and sigma, features the name features, feats or reps"
    )


def _from_moments_npz(path: Path, arrays: np.lib.npyio.NpzFile, names: set[str]) -> FileContent:
    stored = read_moments(path, arrays)
    of_adm = {"mu_s", "sigma_s"} <= names and not stored.provenance
    if of_adm:
        stored = stored._replace(provenance=_made_by("adm", "inception"))  # its evaluator knows no other network
    spatial = None
    if {"mu_s", "sigma_s"} <= names:
        mu_s, sigma_s = entry(path, arrays, "mu_s"), entry(path, arrays, "sigma_s")
        spatial = FeatureMoments(*moments_of_arrays(path, mu_s, sigma_s, stored.rows, {}))
    features = _checked_features(path, entry(path, arrays, "features")) if "features" in names else None
    form = "fastfid" if "provenance" in names else "ADM" if of_adm else "mu, sigma (pytorch-fid, clean-fid, EDM)"
    images = bool(names & set(ARRAY_NAMES))
    return FileContent(form, stored.provenance, FeatureMoments(*stored), features, spatial, images)


def _made_by(protocol: str, network: str) -> Provenance:
    """Provenance of a file whose form shows its program, which prepares images for a network in one way."""
    prepared = {}
    if network in ("inception", "dinov2"):
        prepared["preprocessing"] = preprocessing_of(network, PROTOCOLS[protocol])
    return {"extractor": network, **prepared}


def _checked_features(path: Path, array: np.ndarray | Tensor) -> Tensor:
    """Features [n ≥ 2, d] of a finite float dtype, or ValueError naming the file."""
    if isinstance(array, Tensor):
        features = _plain(path, array)
    else:
        features = torch.from_numpy(writable(real_numbers(path, array)))
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(
            f"{path} holds an array {tuple(features.shape)} of {str(features.dtype).removeprefix('torch.')}; features "
            "are [n, d] of a float type"
        )
    if len(features) < 2 or features.shape[1] == 0:
        raise ValueError(f"{path} holds {len(features)} feature rows of d = {features.shape[1]}; two rows are needed")
    check_growth(path, 8 * features.shape[1] ** 2)  # of their covariance
    for start, rows in zip(range(0, len(features), BLOCK_ROWS), features.split(BLOCK_ROWS), strict=True):
        bad = ~torch.isfinite(rows).all(dim=1)
        if bad.any():
            raise ValueError(f"{path} holds NaN or infinity in row {start + int(bad.nonzero()[0])}; compute it again")
    return features


def _plain(path: Path, tensor: Tensor) -> Tensor:
    """The tensor without gradient; ValueError unless it is one of plain numbers, all of which the file holds."""
    if tensor.is_floating_point() and tensor.dtype not in FEATURE_TYPES:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{path} holds a tensor of {dtype}; save its .float()")
    check_tensors(path, [tensor])
    return tensor.detach()


def _from_edm2(path: Path, content: object, network: str | None) -> FileContent:
    """One entry of {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}}."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; EDM2 statistics are a dict with fid or fd_dinov2")
    entries = {k: v for k, v in content.items() if isinstance(v, dict) and {"mu", "sigma"} <= set(v)}
    if not entries:
        raise ValueError(f"{path} has no entry with mu and sigma (only {_names(content)}); EDM2's are fid, fd_dinov2")
    key = _edm2_entry(path, list(entries), network)
    provenance = _made_by("edm2", EDM2_ENTRIES.get(key, str(key)))
    count = content.get("num_images")
    count = None if count is None else count_of(path, count)
    stored = moments_of_arrays(path, entries[key]["mu"], entries[key]["sigma"], count, provenance)
    return FileContent(f"EDM2 ({key})", provenance, FeatureMoments(*stored))


def _edm2_entry(path: Path, keys: list[str], network: str | None) -> str:
    if network is None and len(keys) == 1:
        return keys[0]
    wanted = [key for key in keys if network in (key, EDM2_ENTRIES.get(key))]
    if wanted:
        return wanted[0]
    told = "" if network is None else f", none of the network {network}"
    raise ValueError(
        f"{path} holds statistics of {shown(', '.join(EDM2_ENTRIES.get(k, str(k)) for k in keys))}{told}; "
        "say which with network= (--network)"
    )


def _from_torch(path: Path) -> FileContent:
    """torch-fidelity's cache: features, one tensor or a dict with one, or statistics {mu, sigma}."""
    content = load_torch(path)
    if isinstance(content, dict) and {"mu", "sigma"} <= set(content):
        mu, sigma = (_plain(path, x) if isinstance(x, Tensor) else x for x in (content["mu"], content["sigma"]))
        stored = moments_of_arrays(path, mu, sigma, None, {})
        return FileContent("torch-fidelity statistics", {}, FeatureMoments(*stored))
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        held = _names(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {held}; a torch-fidelity cache is a tensor [n, d] or a dict with mu and sigma")
    return FileContent("torch-fidelity features", {}, features=_checked_features(path, content))


def _names(content: dict[Any, Any]) -> str:
    return shown(", ".join(str(key) for key in content)) or "nothing"
