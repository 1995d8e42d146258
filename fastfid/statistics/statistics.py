"""Statistics that say what they are of, and a reader for every peer's files.

What is recognised, by content rather than by name:

    npz  mu, sigma                        pytorch-fid, clean-fid, EDM, FD-loss, our own (with count and provenance)
    npz  mu, sigma, mu_s, sigma_s         ADM's evaluator, with or without the images arr_0
    npz  feats                            clean-fid's KID statistics: features
    npz  reps, model, hparams             dgm-eval: features
    npy, npz of one array [n, d]          features
    pkl  {num_images, fid: {mu, sigma}…}  EDM2, read by an unpickler that knows arrays and plain containers only
    pt   tensor [n, d] or {mu, sigma}     torch-fidelity's cache

Any float dtype is accepted, since peers differ (torch-fidelity keeps mu in float32 and sigma in float64); everything is
computed in float64.

Legend: n images, d feature dimension, s spatial feature dimension.
"""

from __future__ import annotations

import codecs
import collections
import io
import json
import os
import pickle
import re
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.distances.rows import BLOCK_ROWS
from fastfid.images.open import ARRAY_NAMES
from fastfid.protocols import PROTOCOLS
from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.mapped_arrays import NoRoom, npz_array, npz_shape, writable

# What has to agree before two sets of statistics can be compared, in the order in which a difference is told.
MUST_AGREE = ("extractor", "weights_sha256", "preprocessing")
FEATURE_NAMES = ("features", "feats", "reps")  # fastfid; clean-fid; dgm-eval
PICKLES = (".pkl", ".pickle")
TORCH_FILES = (".pt", ".pth")
UNREADABLE_ARRAYS = (  # what damaged npz and npy raise; MemoryError is a header that claims more than there is
    ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile,
)  # fmt: skip

NUMBER_CODES = re.compile(r"[biufc]\d{1,2}")  # NumPy's codes of booleans, integers, floats and complex numbers

# EDM2 keeps one entry a network; these are the networks' names here.
EDM2_ENTRIES = {"fid": "inception", "fd_dinov2": "dinov2"}


@dataclass
class Statistics:
    """Moments of a set of images in one network's features, with their provenance and, where kept, the features.

    moments   FeatureMoments, float64; its provenance holds extractor, weights_sha256, preprocessing, protocol, dtype,
              source, source_sha256 and version, as far as they are known
    name      file or source, for messages
    features  [n, d] float, or None: KID, MMD and the neighbours need them
    spatial   FeatureMoments of the spatial features (sFID), or None
    form      whose file it was read from, "fastfid" for our own
    """

    moments: FeatureMoments
    name: str = "statistics"
    features: Tensor | None = None
    spatial: FeatureMoments | None = None
    form: str = "fastfid"
    images: bool = field(default=False, repr=False)  # the file also holds images, as ADM's references do

    @property
    def count(self) -> int | None:
        """Number of images n, None where the file does not tell."""
        return self.moments.count

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.moments.dim

    @property
    def provenance(self) -> dict:
        """What is known of the features' origin, by name; strings."""
        return self.moments.provenance

    @classmethod
    def from_features(
        cls, features: Tensor, provenance: dict | None = None, *, name: str = "features", spatial: Tensor | None = None
    ) -> Statistics:
        """Statistics that keep `features` [n ≥ 2, d], any float dtype; `spatial` [n, s] adds moments for sFID."""
        features = as_tensor(features)
        moments = FeatureMoments.from_features(features, provenance)
        dtype = str(features.dtype).removeprefix("torch.")
        moments.provenance.setdefault("dtype", dtype)
        return cls(moments, name, features, None if spatial is None else FeatureMoments.from_features(spatial))

    def cpu(self) -> Statistics:
        """The same with every tensor in host memory."""
        features = None if self.features is None else self.features.cpu()
        spatial = None if self.spatial is None else self.spatial.to("cpu")
        return replace(self, moments=self.moments.to("cpu"), features=features, spatial=spatial)

    def save(self, path: str | os.PathLike, keep_features: bool = True) -> None:
        """Write one npz: mu, sigma (which pytorch-fid reads), count, provenance as JSON, mu_s, sigma_s, features.

        No pickle; the file appears whole or not at all.  ValueError unless `path` ends in .npz, as NumPy would add it.
        """
        from fastfid import __version__

        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise ValueError(f"{path} does not end in .npz; statistics are written as one .npz")
        arrays = {"mu": _array(self.moments.mean), "sigma": _array(self.moments.cov)}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        arrays["provenance"] = np.array(json.dumps({"version": f"fastfid {__version__}", **self.provenance}))
        if self.spatial is not None:
            arrays |= {"mu_s": _array(self.spatial.mean), "sigma_s": _array(self.spatial.cov)}
        if keep_features and self.features is not None:
            arrays["features"] = _array(self.features)
        write_atomically(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Statistics:
        """The same as `read_statistics(path)`."""
        return read_statistics(path)


def read_statistics(path: str | os.PathLike, network: str | None = None) -> Statistics:
    """Read statistics or features of fastfid or of any peer, float64 moments inside.

    network  which entry of a file that holds several (EDM2: "inception" or "dinov2"); needed only there

    FileNotFoundError for a missing file; ValueError in one sentence for one that holds something else, is damaged, or
    is a pickle that wants more than arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no statistics file at {path}; pass an .npz, .npy, .pkl or .pt file")
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return _from_edm2(path, _unpickle(path), network)
    if suffix in TORCH_FILES:
        return _from_torch(path)
    if suffix in (".npz", ".npy"):
        return _from_numpy(path)
    raise ValueError(f"{path} is no .npz, .npy, .pkl or .pt file; statistics are read from these")


def holds_statistics(path: str | os.PathLike) -> bool:
    """Whether `path` is a file that `read_statistics` is meant for, rather than images; reads headers only."""
    path = Path(path)
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    if suffix in PICKLES or suffix in TORCH_FILES:
        return True
    try:
        if suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return array.ndim == 2 and array.dtype.kind == "f"
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                names = set(arrays.files)
                if {"mu", "sigma"} <= names or names & set(FEATURE_NAMES):
                    return True
                return len(names) == 1 and len(npz_shape(arrays, arrays.files[0])) == 2
    except UNREADABLE_ARRAYS:  # open_images says in its own words what is wrong with it
        return False
    return False


# --- comparing ---------------------------------------------------------------------------------------------------


def mismatch(a: Statistics, b: Statistics) -> str | None:
    """One sentence naming both sides if their provenance contradicts each other; None if nothing known does."""
    for key in MUST_AGREE:
        ours, theirs = a.provenance.get(key), b.provenance.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            return (
                f"the {key.replace('_', ' ')} of {a.name} is {ours}, that of {b.name} is {theirs}: "
                "extract both with the same network and preprocessing (--protocol sets it)"
            )
    return None


def check_comparable(a: Statistics, b: Statistics, force: bool = False) -> list[str]:
    """ValueError naming both sides if they cannot be compared; with `force` a contradiction becomes a warning.

    Returns the warnings.  A difference of dimension is an error always: there is no distance between such sets.
    """
    if a.dim != b.dim:
        raise ValueError(
            f"{a.name} has d = {a.dim} features, {b.name} has d = {b.dim}: features of d = {a.dim} and d = {b.dim} "
            "cannot be compared, use one network for both"
        )
    found = mismatch(a, b)
    if found and not force:
        raise ValueError(f"{found}, or pass force=True (--force) to compare them regardless")
    return [f"compared regardless of a mismatch: {found}"] if found else []


def without_provenance(moments: FeatureMoments) -> FeatureMoments:
    """The same moments with no provenance, for arithmetic on sides that `check_comparable` has let pass."""
    return FeatureMoments(moments.count, moments.mean, moments.cov, {})


# --- NumPy files -------------------------------------------------------------------------------------------------


def _from_numpy(path: Path) -> Statistics:
    try:
        content = _loaded(path)
        if isinstance(content, np.ndarray):
            return _from_feature_array(path, content, "features", {})
        with content:
            return _from_npz(path, content)
    except NoRoom:
        raise
    except (OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, _NumPyRefusal) as damaged:
        raise ValueError(f"{path} cannot be read by NumPy ({_first_line(damaged)}); save it again") from None


class _NumPyRefusal(Exception):
    """NumPy would not read an entry: a damaged one, or one that holds pickled objects."""


def _loaded(path: Path) -> np.ndarray | np.lib.npyio.NpzFile:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # which maps an npy
    except ValueError as refusal:
        raise _NumPyRefusal(_first_line(refusal)) from None


def _entry(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return npz_array(path, arrays, name)
    except ValueError as refusal:
        raise _NumPyRefusal(f"{name}: {_first_line(refusal)}") from None


def _from_npz(path: Path, arrays: np.lib.npyio.NpzFile) -> Statistics:
    names = set(arrays.files)
    if {"mu", "sigma"} <= names:
        return _from_moments_npz(path, arrays, names)
    for name in FEATURE_NAMES:
        if name in names:
            form = {"features": "fastfid", "feats": "clean-fid", "reps": "dgm-eval"}[name]
            told = name == "reps" and "model" in names
            provenance = _made_by("dgm-dinov2", str(_entry(path, arrays, "model"))) if told else {}
            return _from_feature_array(path, _entry(path, arrays, name), form, provenance)
    if len(names) == 1 and not names & {"mu", "sigma"}:
        array = _entry(path, arrays, arrays.files[0])
        if array.ndim == 2 or not names & set(ARRAY_NAMES):  # arr_0 is np.savez(path, features), too
            return _from_feature_array(path, array, "features", {})
    missing = sorted({"mu", "sigma"} - names)
    raise ValueError(
        f"{path} has no {' and no '.join(missing)} (only {', '.join(arrays.files) or 'nothing'}); statistics need mu "
        "and sigma, features the name features, feats or reps"
    )


def _from_moments_npz(path: Path, arrays: np.lib.npyio.NpzFile, names: set[str]) -> Statistics:
    provenance = _read_provenance(path, _entry(path, arrays, "provenance")) if "provenance" in names else {}
    adm = {"mu_s", "sigma_s"} <= names and not provenance
    if adm:
        provenance = _made_by("adm", "inception")  # its evaluator knows no other network
    count = int(_entry(path, arrays, "count")) if "count" in names else None
    moments = _moments(path, _entry(path, arrays, "mu"), _entry(path, arrays, "sigma"), count, provenance)
    spatial = None
    if {"mu_s", "sigma_s"} <= names:
        spatial = _moments(path, _entry(path, arrays, "mu_s"), _entry(path, arrays, "sigma_s"), count, {})
    features = _checked_features(path, _entry(path, arrays, "features")) if "features" in names else None
    form = "fastfid" if "provenance" in names else "ADM" if adm else "mu, sigma (pytorch-fid, clean-fid, EDM)"
    return Statistics(moments, str(path), features, spatial, form, images=bool(names & set(ARRAY_NAMES)))


def _made_by(protocol: str, network: str) -> dict:
    """Provenance of a file whose form tells who made it: that program prepares images for a network in one way."""
    from fastfid.features.registry import preprocessing_of

    prepared = {}
    if network in ("inception", "dinov2"):
        prepared["preprocessing"] = preprocessing_of(network, PROTOCOLS[protocol])
    return {"extractor": network, **prepared}


def _read_provenance(path: Path, recorded: np.ndarray) -> dict:
    try:
        provenance = json.loads(str(recorded))
    except json.JSONDecodeError as damaged:
        raise ValueError(f"the provenance in {path} is no JSON ({damaged}); write the file again") from None
    if not isinstance(provenance, dict):
        raise ValueError(f"the provenance in {path} is a {type(provenance).__name__}; it must be a JSON object")
    return {str(key): value if value is None else str(value) for key, value in provenance.items()}


def _from_feature_array(path: Path, array: np.ndarray, form: str, provenance: dict) -> Statistics:
    features = _checked_features(path, array)
    statistics = Statistics.from_features(features, provenance, name=str(path))
    statistics.form = form
    return statistics


def _checked_features(path: Path, array: np.ndarray | Tensor) -> Tensor:
    """Features [n ≥ 2, d] of a finite float dtype, or ValueError naming the file."""
    features = array if isinstance(array, Tensor) else torch.from_numpy(writable(_numbers(path, array)))
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(
            f"{path} holds an array {tuple(features.shape)} of {str(features.dtype).removeprefix('torch.')}; features "
            "are [n, d] of a float type"
        )
    if len(features) < 2 or features.shape[1] == 0:
        raise ValueError(f"{path} holds {len(features)} feature rows of d = {features.shape[1]}; two rows are needed")
    for start, rows in zip(range(0, len(features), BLOCK_ROWS), features.split(BLOCK_ROWS), strict=True):
        bad = ~torch.isfinite(rows).all(dim=1)
        if bad.any():
            raise ValueError(f"{path} holds NaN or infinity in row {start + int(bad.nonzero()[0])}; compute it again")
    return features


def _moments(path: Path, mu, sigma, count: int | None, provenance: dict) -> FeatureMoments:
    """Moments in float64, whatever float types mu [d] and sigma [d, d] have."""
    mu, sigma = (torch.from_numpy(writable(_numbers(path, x))) for x in (mu, sigma))
    if mu.dim() != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path} has mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)}; they must be [d] and [d, d]")
    if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
        raise ValueError(f"{path} holds NaN or infinity in mu or sigma; compute the statistics again")
    return FeatureMoments(count, mu.double(), sigma.double(), provenance)


def _numbers(path: Path, array) -> np.ndarray:
    """The array; ValueError unless it holds real numbers."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds an array of {array.dtype}, not of real numbers; save float arrays")
    return array


# --- pickles -----------------------------------------------------------------------------------------------------


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as old pickles keep them (as latin1 text); the only codec they need."""
    if encoding != "latin1":
        raise _Refusal(f"the codec {encoding}")
    return codecs.latin_1_encode(text)[0]


class _Type:
    """What a pickle says of an array's type, if that is plain numbers: a real np.dtype would take any state.

    numpy.ndarray and numpy.dtype are no safe targets of a pickle: called with the right arguments they make arrays
    whose bytes are taken for addresses of objects.  So the names they have in pickles stand for these classes here.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not isinstance(code, str) or not NUMBER_CODES.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        """(version, byte order, None, None, None, …), as NumPy writes it for a type without fields."""
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array with fields, not of numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array that a pickle builds from its bytes, shape and type; np.asarray takes it."""

    def __init__(self, array: np.ndarray | None = None):
        self.array = array

    def __setstate__(self, state: tuple) -> None:
        """(version, shape, type, Fortran order, bytes), as NumPy writes it."""
        _, shape, kind, fortran, raw = state
        self.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.array, dtype)


def _reconstructed(subtype: object, shape: tuple, code: bytes) -> _Array:
    return _Array()  # its state follows


def _scalar(kind: _Type, raw: bytes) -> float | int:
    return np.frombuffer(raw, kind.dtype)[0].item()


def _from_buffer(buffer, kind: _Type, shape: tuple, order: str, axis_order: tuple | None = None) -> _Array:
    array = np.frombuffer(buffer, kind.dtype)
    if axis_order is not None and order == "K":
        return _Array(array.reshape(shape).transpose(axis_order))
    return _Array(array.reshape(shape, order=order))


def _array_builders() -> dict[tuple[str, str], object]:
    """Names a pickle of arrays and plain containers uses, under NumPy 1 and NumPy 2, and what builds them here."""
    allowed = {
        ("numpy", "ndarray"): None,  # an argument of _reconstruct, never called
        ("numpy", "dtype"): _Type,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _latin1,
    }
    for package in ("numpy.core", "numpy._core"):
        allowed[f"{package}.multiarray", "_reconstruct"] = _reconstructed
        allowed[f"{package}.multiarray", "scalar"] = _scalar
        allowed[f"{package}.numeric", "_frombuffer"] = _from_buffer
    return allowed


class _Refusal(pickle.UnpicklingError):
    """The pickle asks for a name that is no array and no plain container."""


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays, numbers, strings and plain containers; any other name in the pickle is refused."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.allowed = _array_builders()

    def find_class(self, module: str, name: str):
        if (module, name) not in self.allowed:
            raise _Refusal(f"{module}.{name}")
        return self.allowed[module, name]


def _unpickle(path: Path):
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file).load()
    except _Refusal as refused:
        raise ValueError(
            f"{path} is a pickle that asks for {_first_line(refused)}, which is refused because it could run code; "
            "only arrays and plain containers are read, save mu and sigma with np.savez instead"
        ) from None
    except Exception as damaged:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path} is not a readable pickle ({_first_line(damaged)}); fetch it again") from None


def _from_edm2(path: Path, content, network: str | None) -> Statistics:
    """One entry of {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}}."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; EDM2 statistics are a dict with fid or fd_dinov2")
    entries = {k: v for k, v in content.items() if isinstance(v, dict) and {"mu", "sigma"} <= set(v)}
    if not entries:
        raise ValueError(f"{path} has no entry with mu and sigma (only {_names(content)}); EDM2's are fid, fd_dinov2")
    key = _edm2_entry(path, list(entries), network)
    provenance = _made_by("edm2", EDM2_ENTRIES.get(key, str(key)))
    count = content.get("num_images")
    moments = _moments(
        path, entries[key]["mu"], entries[key]["sigma"], None if count is None else int(count), provenance
    )
    return Statistics(moments, str(path), form=f"EDM2 ({key})")


def _edm2_entry(path: Path, keys: list[str], network: str | None) -> str:
    if network is None and len(keys) == 1:
        return keys[0]
    wanted = [key for key in keys if network in (key, EDM2_ENTRIES.get(key))]
    if wanted:
        return wanted[0]
    told = "" if network is None else f", none of the network {network}"
    raise ValueError(
        f"{path} holds statistics of {', '.join(EDM2_ENTRIES.get(k, str(k)) for k in keys)}{told}; "
        "say which with network= (--network)"
    )


def _from_torch(path: Path) -> Statistics:
    """torch-fidelity's cache: features, one tensor or a dict with one, or statistics {mu, sigma}."""
    content = _torch_load(path)
    if isinstance(content, dict) and {"mu", "sigma"} <= set(content):
        return Statistics(
            _moments(path, content["mu"], content["sigma"], None, {}), str(path), form="torch-fidelity statistics"
        )
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        held = _names(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {held}; a torch-fidelity cache is a tensor [n, d] or a dict with mu and sigma")
    statistics = Statistics.from_features(_checked_features(path, content), name=str(path))
    statistics.form = "torch-fidelity features"
    return statistics


def _torch_load(path: Path):
    """torch.load restricted to tensors, NumPy arrays and plain containers."""
    allowed = [(value, f"{module}.{name}") for (module, name), value in _array_builders().items()]
    allowed += [_Type, _Array]  # whose state torch sets only where it knows the class
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as unreadable:  # a damaged file raises nearly anything
        if "unsupported" not in str(unreadable).lower():  # torch's word for a name that is not on its list
            reason = _first_line(unreadable)
            raise ValueError(f"{path} is not a readable torch file ({reason}); save it again") from None
        raise ValueError(
            f"{path} asks for more than tensors and arrays, which is refused because it could run code; save the "
            "features alone with torch.save"
        ) from None


# --- small things ------------------------------------------------------------------------------------------------


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _names(content: dict) -> str:
    return ", ".join(str(key) for key in content) or "nothing"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
