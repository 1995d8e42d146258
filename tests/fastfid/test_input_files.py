"""Whatever a file holds, its reader tells what is wrong in one sentence with its name, soon, in little memory."""

import os
import pickle
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, open_images
from fastfid.features.weight_files import read_state
from fastfid.runtime import input_files
from fastfid.runtime.errors import first_line
from fastfid.runtime.input_files import NoRoom, json_of, read_text, reading
from fastfid.runtime.mapped_arrays import open_numpy
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import read_statistics
from tests.support.hostile_files import npy, sentence, zipped

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MU, SIGMA = np.zeros(3), np.eye(3)


# --- the boundary ------------------------------------------------------------------------------------------------


class Panic(BaseException):
    """As Rust's, which is no Exception."""


ANY = [
    zlib.error("Error -3"), RecursionError("deep"), SyntaxError("s"), Panic("rust"), KeyError("x"), TypeError(),
    RuntimeError("a\nb"),
]  # fmt: skip


@pytest.mark.parametrize("raised", ANY, ids=repr)
def test_any_exception_becomes_one_sentence(tmp_path, raised):
    path = tmp_path / "x.bin"
    path.write_bytes(b"x")

    def read(path):
        with reading(path, "fetch it again", how="by Z"):
            raise raised

    assert sentence(read, path).startswith(f"{path} cannot be read by Z (")
    assert sentence(read, path).endswith("; fetch it again")


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        zlib.error("Error -4 while decompressing data: out of memory"),
    ],
)
def test_too_little_memory_is_not_the_files_fault(tmp_path, raised):
    path = tmp_path / "x.bin"
    path.write_bytes(b"x")
    with pytest.raises(NoRoom, match=r"x.bin needs more memory than .*\(ulimit -v\)"), reading(path, "fetch it again"):
        raise raised


def test_what_the_system_refuses_and_what_passes(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"x")
    with pytest.raises(OSError, match=r"x.bin cannot be read \(Input/output error\); check"), reading(path, ""):
        raise OSError(5, "Input/output error")
    with pytest.raises(ValueError, match="^the .*x.bin is odd$"), reading(path, ""):
        raise ValueError(f"the {path} is odd")
    with pytest.raises(KeyboardInterrupt), reading(path, ""):
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match="absent does not exist"), reading(tmp_path / "absent", ""):
        pass


def test_words_of_a_file_cannot_drive_a_terminal():
    assert first_line(ValueError("a\x1b[2Jb")) == r"a\x1b[2Jb" and first_line(ValueError("\n")) == "ValueError"
    assert len(first_line(ValueError("x" * 10**6))) == 200


# --- regular files only ------------------------------------------------------------------------------------------


READERS = {
    "x.npz": (read_statistics, open_images, FeatureMoments.load), "x.npy": (read_statistics, open_images),
    "x.pkl": (read_statistics,), "x.pt": (read_statistics, read_state), "x.safetensors": (read_state,),
    "x.zip": (open_images,),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_pipes_devices_and_folders_are_refused(tmp_path, name):
    """A pipe would wait for ever, /dev/zero never end."""
    os.mkfifo(tmp_path / name)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to("/dev/zero")
    for read in READERS[name]:
        assert "is a pipe, not a file" in sentence(read, tmp_path / name)
        assert "is a device, not a file" in sentence(read, tmp_path / "link" / name)
    assert not holds_statistics(tmp_path / name) or name in ("x.pkl", "x.pt")


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="the system does not tell where holes are")
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pt", "x.safetensors", "x.zip"])
def test_a_file_of_holes_is_refused(tmp_path, name):
    """It takes no room on the disk, and claims to hold 100 GB, which a reader would go through."""
    (tmp_path / name).write_bytes(npy("(3125000, 4000)"))
    os.truncate(tmp_path / name, 128 + 10**11)
    for read in READERS[name]:
        assert "has 100,000,000,128 bytes, of which nearly all are holes" in sentence(read, tmp_path / name)


def test_a_file_with_some_holes_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "FREE_BYTES", 1 << 20)
    x = np.zeros((3000, 300))
    x[::50] = 1
    np.save(tmp_path / "x.npy", x)
    os.truncate(tmp_path / "x.npy", 1 << 23)  # zeros at its end, a twentieth of it
    assert read_statistics(tmp_path / "x.npy").dim == 300


def test_text_is_bounded(tmp_path):
    (tmp_path / "x.json").write_bytes(b" " * 11)
    assert read_text(tmp_path / "x.json", 11) == " " * 11
    assert "has 11 bytes, more than the 10" in sentence(lambda path: read_text(path, 10), tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "x.json")
    (tmp_path / "y").symlink_to("/dev/zero")
    assert "is a device" in sentence(read_text, tmp_path / "y")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, b"[" * 200_000, "9" * 5000, "", "nul", b"\xff"])
def test_json_of_others_raises_one_kind_of_error(text):
    with pytest.raises(ValueError):
        json_of(text)


# Where JSON is this program's own.
OWN_JSON = {
    "fastfid/runtime/input_files.py", "sit_rl/evaluate.py", "sit_rl/files/tensor_files.py",
    "sit_rl/generation/record.py", "sit_rl/pretraining/options.py",
}  # fmt: skip


def test_json_of_others_is_read_in_one_place():
    """json.loads raises RecursionError as well, which readers forget."""
    root = Path(input_files.__file__).parents[2]
    for path in [*(root / "fastfid").rglob("*.py"), *(root / "sit_rl").rglob("*.py")]:
        name = path.relative_to(root).as_posix()
        assert "json.load" not in path.read_text(encoding="utf-8") or name in OWN_JSON, name


# --- headers -----------------------------------------------------------------------------------------------------

HEADERS = {
    "no bytes an item": npy("(-1,)", "'|S0'"),
    "no bytes an item, as text": npy("(5,)", "'<U0'"),
    "negative": npy("(-1,)"),
    "negative twice": npy("(-2, -3)", data=bytes(48)),
    "more than there is": npy("(1000000000, 1000000000)", data=bytes(64)),
    "beyond 64 bits": npy("(4294967296, 4294967296)"),
    "objects": npy("(1,)", "'|O'", bytes(8)),
    "wide item": npy("(2,)", "('<f8', (1000000000,))"),
    "open bracket": npy("((((((("),
    "deep": npy("-" * 3000 + "1", length=4000),
    "string without an end": npy("'"),
    "no dict": b"\x93NUMPY\x01\x00\x02\x00[\n",
    "cut": npy("(3,)")[:40],
    "version": b"\x93NUMPY\x09\x00\x02\x00[\n",
    "magic alone": b"\x93NUMPY",
    "nothing": b"",
    "text": b"1.0 2.0 3.0\n",
}
HEADERS_TOLD = {"more than there is": "its header claims 8,000,000,000,000,000,000 bytes and it holds 64"}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_are_checked_before_anything_is_mapped(tmp_path, kind):
    (tmp_path / "x.npy").write_bytes(HEADERS[kind])
    zipped(tmp_path / "x.npz", {"mu.npy": HEADERS[kind], "sigma.npy": HEADERS[kind], "arr_0.npy": HEADERS[kind]})
    zipped(tmp_path / "y.npz", {"features.npy": HEADERS[kind]}, zipfile.ZIP_DEFLATED)
    for name in ("x.npy", "x.npz", "y.npz"):
        assert HEADERS_TOLD.get(kind, "") in sentence(read_statistics, tmp_path / name)
    if HEADERS[kind].startswith(np.lib.format.MAGIC_PREFIX):
        with pytest.raises(ValueError):  # without the boundary, too
            open_numpy(tmp_path / "x.npy")
    for name in ("x.npy", "x.npz"):
        assert "cannot be read by NumPy" in sentence(open_images, tmp_path / name)


def test_damaged_deflate_and_foreign_compression(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, mu=np.random.default_rng(0).normal(size=300), sigma=np.eye(300))
    whole = path.read_bytes()
    for at in (60, 70, 100, len(whole) - 30):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        sentence(read_statistics, path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        zipped(path, {"mu.npy": npy("(3,)", data=bytes(24))}, method)
        assert "compression method is not supported" in sentence(FeatureMoments.load, zipped(
            path, {"mu.npy": npy("(3,)", data=bytes(24)), "sigma.npy": npy("(3, 3)", data=bytes(72))}, method
        ))  # fmt: skip


# --- odd content -------------------------------------------------------------------------------------------------

KINDS = {
    "mu of lists": {"mu": np.array([[0.0], [0.0]]), "sigma": np.eye(2)},
    "no dimensions": {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
    "scalars": {"mu": np.array(1.0), "sigma": np.array(1.0)},
    "times": {"mu": np.zeros(3, "m8[s]"), "sigma": np.eye(3)},
    "text": {"mu": np.array(["a"] * 3), "sigma": np.eye(3)},
    "fields": {"mu": np.zeros(3, [("x", "f8")]), "sigma": np.eye(3)},
    "complex mu": {"mu": MU + 1j, "sigma": SIGMA},
    "complex sigma": {"mu": MU, "sigma": SIGMA + 1j},
    "truth": {"mu": MU > 0, "sigma": SIGMA > 0},
    "count of two": {"mu": MU, "sigma": SIGMA, "count": [1, 2]},
    "count below 0": {"mu": MU, "sigma": SIGMA, "count": -5},
    "count with a fraction": {"mu": MU, "sigma": SIGMA, "count": 1.5},
    "count of nan": {"mu": MU, "sigma": SIGMA, "count": np.nan},
    "count of text": {"mu": MU, "sigma": SIGMA, "count": "many"},
    "count of truth": {"mu": MU, "sigma": SIGMA, "count": True},
    "deep provenance": {"mu": MU, "sigma": SIGMA, "provenance": "[" * 100_000},
    "long number": {"mu": MU, "sigma": SIGMA, "provenance": '{"a": ' + "9" * 5000 + "}"},
    "invalid characters": {"mu": MU, "sigma": SIGMA, "provenance": np.array([2**31], "<u4").view("<U1")[0:1]},
    "wide features": {"features": np.zeros((2, 40_000), np.float32)},
}
KINDS_TOLD = {
    "no dimensions": "has a mu and a sigma without entries, d = 0", "wide features": "claims to hold 12,800,000,000",
    "count below 0": "has a count -5",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_odd_statistics_are_one_sentence(tmp_path, kind):
    np.savez(tmp_path / "x.npz", **KINDS[kind])
    assert KINDS_TOLD.get(kind, "") in sentence(read_statistics, tmp_path / "x.npz")


@pytest.mark.parametrize("count", [40, np.int64(40), np.float64(40), np.array([40]), np.array(40, ">i2")])
def test_whole_counts_of_any_type_are_read(tmp_path, count):
    np.savez(tmp_path / "x.npz", mu=MU, sigma=SIGMA, count=count)
    assert read_statistics(tmp_path / "x.npz").count == 40


@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f8", ">f4", "<g", "<i4", ">u8"])
def test_moments_of_every_real_type_are_float64(tmp_path, kind):
    mu, sigma = np.arange(3).astype(kind), (2 * np.eye(3)).astype(kind)
    np.savez(tmp_path / "x.npz", mu=mu, sigma=sigma)
    for read in (read_statistics(tmp_path / "x.npz").moments, FeatureMoments.load(tmp_path / "x.npz")):
        assert torch.equal(read.mean, torch.arange(3.0, dtype=torch.float64))
        assert torch.equal(read.cov, 2 * torch.eye(3, dtype=torch.float64))


def test_long_double_features_are_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 3))
    np.save(tmp_path / "x.npy", x.astype(np.longdouble))
    assert torch.equal(read_statistics(tmp_path / "x.npy").features, torch.from_numpy(x))


@pytest.mark.parametrize("count", [[1], [1, 2], "x", None, {"a": 1}, 1e400, -1])
def test_odd_counts_of_pickles(tmp_path, count):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"num_images": count, "fid": {"mu": MU, "sigma": SIGMA}}))
    if count is None:
        assert read_statistics(tmp_path / "x.pkl").count is None
    else:
        assert "a count is one whole number from 0" in sentence(read_statistics, tmp_path / "x.pkl")


def test_lists_are_no_arrays(tmp_path):
    """A list that holds one twice, thirty deep, would be a billion numbers."""
    values = [0.0]
    for _ in range(30):
        values = [values, values]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"fid": {"mu": values, "sigma": SIGMA}}))
    assert "holds a list where an array is wanted" in sentence(read_statistics, tmp_path / "x.pkl")
    torch.save({"mu": values, "sigma": torch.eye(3)}, tmp_path / "x.pt")
    assert "holds a list where an array is wanted" in sentence(read_statistics, tmp_path / "x.pt")


TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.zeros(3, 3, device="meta"),
    "float8": lambda: torch.zeros(3, 3).to(torch.float8_e4m3fn),
    "quantised": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
    "complex": lambda: torch.zeros(3, 3, dtype=torch.complex64),
    "truth": lambda: torch.ones(3, 3, dtype=torch.bool),
    "expanded": lambda: torch.ones(1, 4).expand(10**10, 4),
    "expanded both ways": lambda: torch.ones(1, 1).expand(10**5, 10**5),
}


REMEDIES = {
    "sparse": "save its .to_dense()", "csr": "save its .to_dense()", "meta": "without values",
    "float8": "save its .float()", "expanded": "claims to hold", "expanded both ways": "claims to hold",
}  # fmt: skip


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore")  # torch's, of sparse and quantised tensors
def test_odd_tensors_are_one_sentence(tmp_path, kind):
    torch.save(TENSORS[kind](), tmp_path / "x.pt")
    assert REMEDIES.get(kind, "") in sentence(read_statistics, tmp_path / "x.pt")
    torch.save({"mu": TENSORS[kind](), "sigma": TENSORS[kind]()}, tmp_path / "x.pt")
    sentence(read_statistics, tmp_path / "x.pt")
    if kind.startswith("expanded"):
        assert "claims to hold" in sentence(read_state, tmp_path / "x.pt")


def test_tensors_with_a_gradient_and_bfloat16_are_read(tmp_path):
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    torch.save(x.clone().requires_grad_(), tmp_path / "x.pt")
    features = read_statistics(tmp_path / "x.pt").features
    assert torch.equal(features, x) and not features.requires_grad
    torch.save(torch.nn.Parameter(x.bfloat16()), tmp_path / "x.pt")
    assert torch.equal(read_statistics(tmp_path / "x.pt").features, x.bfloat16())
    torch.save({"mu": x[0].clone().requires_grad_(), "sigma": torch.eye(3)}, tmp_path / "x.pt")
    assert torch.equal(read_statistics(tmp_path / "x.pt").moments.mean, x[0].double())
