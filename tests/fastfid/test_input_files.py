"""Whatever a file holds, its reader tells what is wrong in one sentence with its name, soon, in little memory."""

import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, open_images
from fastfid.features.weight_files import read_state
from fastfid.runtime import input_files, pickle_checks
from fastfid.runtime.errors import first_line
from fastfid.runtime.input_files import NoRoom, check_growth, file_bytes, memory_bytes, read_text, reading
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import read_statistics

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MU, SIGMA = np.zeros(3), np.eye(3)


def sentence(read, path):
    """The one sentence that a reader ends with, which names the file."""
    with pytest.raises((ValueError, OSError)) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 600
    return text


def npy(shape, descr="'<f8'", data=b"", length=118):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(length - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


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


def test_text_is_bounded(tmp_path):
    (tmp_path / "x.json").write_bytes(b" " * 11)
    assert read_text(tmp_path / "x.json", 11) == " " * 11
    assert "has 11 bytes, more than the 10" in sentence(lambda path: read_text(path, 10), tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "x.json")
    (tmp_path / "y").symlink_to("/dev/zero")
    assert "is a device" in sentence(read_text, tmp_path / "y")


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


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_are_checked_before_anything_is_mapped(tmp_path, kind):
    (tmp_path / "x.npy").write_bytes(HEADERS[kind])
    zipped(tmp_path / "x.npz", {"mu.npy": HEADERS[kind], "sigma.npy": HEADERS[kind], "arr_0.npy": HEADERS[kind]})
    zipped(tmp_path / "y.npz", {"features.npy": HEADERS[kind]}, zipfile.ZIP_DEFLATED)
    for name in ("x.npy", "x.npz", "y.npz"):
        sentence(read_statistics, tmp_path / name)
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


@pytest.mark.parametrize("kind", KINDS)
def test_odd_statistics_are_one_sentence(tmp_path, kind):
    np.savez(tmp_path / "x.npz", **KINDS[kind])
    sentence(read_statistics, tmp_path / "x.npz")


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


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore")  # torch's, of sparse and quantised tensors
def test_odd_tensors_are_one_sentence(tmp_path, kind):
    torch.save(TENSORS[kind](), tmp_path / "x.pt")
    sentence(read_statistics, tmp_path / "x.pt")
    torch.save({"mu": TENSORS[kind](), "sigma": TENSORS[kind]()}, tmp_path / "x.pt")
    sentence(read_statistics, tmp_path / "x.pt")


def test_tensors_with_a_gradient_and_bfloat16_are_read(tmp_path):
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    torch.save(x.clone().requires_grad_(), tmp_path / "x.pt")
    assert torch.equal(read_statistics(tmp_path / "x.pt").features, x)
    torch.save(torch.nn.Parameter(x.bfloat16()), tmp_path / "x.pt")
    assert torch.equal(read_statistics(tmp_path / "x.pt").features, x.bfloat16())
    torch.save({"mu": x[0].clone().requires_grad_(), "sigma": torch.eye(3)}, tmp_path / "x.pt")
    assert torch.equal(read_statistics(tmp_path / "x.pt").moments.mean, x[0].double())


# --- what a file may become --------------------------------------------------------------------------------------


def test_a_bound_by_the_files_size_and_the_machines_memory(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(1000))
    most = input_files.FREE_BYTES + 1000 * input_files.MOST_GROWTH
    check_growth(path, most)
    assert f"has 1,000 bytes and claims to hold {most + 1:,}" in sentence(lambda p: check_growth(p, most + 1), path)
    monkeypatch.setattr(input_files, "memory_bytes", lambda: 1 << 20)
    with pytest.raises(NoRoom, match="x.bin holds 0.0 GiB and this process may have 0.0 GiB of memory"):
        check_growth(path, (1 << 20) + 1)
    assert file_bytes(path) == 1000


def test_the_memory_is_no_more_than_the_limit_of_the_process():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    assert memory_bytes() > 1 << 26
    resource.setrlimit(resource.RLIMIT_AS, (1 << 42, hard))
    try:
        assert memory_bytes() < 1 << 42
        resource.setrlimit(resource.RLIMIT_AS, (1 << 36, hard))
        assert memory_bytes() <= 1 << 36
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_arrays_that_inflate_beyond_proportion(tmp_path, monkeypatch):
    """3 MB of zeros are 3 kB."""
    zeros = npy("(375000,)", data=bytes(3_000_000))
    zipped(tmp_path / "x.npz", {"mu.npy": zeros, "sigma.npy": zeros, "arr_0.npy": zeros}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(input_files, "FREE_BYTES", 1 << 20)
    for read in (read_statistics, FeatureMoments.load, open_images):
        assert "and claims to hold 3,000,000" in sentence(read, tmp_path / "x.npz")
    monkeypatch.undo()
    np.savez_compressed(tmp_path / "y.npz", mu=np.zeros(600), sigma=np.eye(600))  # 2.9 MB, six-hundredfold
    assert read_statistics(tmp_path / "y.npz").dim == 600


def test_torch_files_that_inflate_beyond_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "FREE_BYTES", 1 << 20)
    torch.save(torch.zeros(2, 375_000), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    zipped(tmp_path / "y.pt", members, zipfile.ZIP_DEFLATED)
    for read in (read_statistics, read_state):
        assert "claims to hold" in sentence(read, tmp_path / "y.pt")


HASHES = b"\x80\x04)" + b"2\x86" * 40 + b"N"  # () in a pair with itself, forty times, which takes hours to hash
PICKLES = {
    "memo": b"Nr\xff\xff\xff\x0f.",
    "memo as text": b"Np268435455\n.",
    "hash": b"\x80\x04}" + HASHES[2:] + b"s.",
    "hash by the memo": b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 40 + b"h\x00Ns.",
    "hash in a set": b"\x80\x04\x8f(" + HASHES[2:-1] + b"\x90.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b".",
    "long frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "long number": b"\x8b\xff\xff\xff\x7f.",
    "digits": b"I" + b"9" * 10_000 + b"\n.",
    "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
    "empty": b"",
    "stack": b"0.",
}


def measured(code, path):
    """Output of a process of its own that reads `path`, and its largest memory in bytes; an error after 60 s."""
    peak = "import re\nprint(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\n{peak}"],
        env={**os.environ, "FILE": str(path)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    *lines, peak = found.stdout.splitlines()
    return lines, 1024 * int(peak)


READ_ALL = """
import os, pathlib
from fastfid.statistics.statistics import read_statistics
for path in sorted(pathlib.Path(os.environ["FILE"]).iterdir()):
    try:
        read_statistics(path)
        print("read", path)
    except (ValueError, OSError) as error:
        print(str(error).count("\\n"), str(path) in str(error))
"""


def test_pickles_of_endless_operations_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_checks, "MOST_OPERATIONS", 1000)
    (tmp_path / "x.pkl").write_bytes(b"N0" * 500 + b"N.")
    assert "has more than 1,000 operations" in sentence(read_statistics, tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"fid": {"mu": MU, "sigma": SIGMA}}))
    assert read_statistics(tmp_path / "x.pkl").dim == 3


@linux
def test_small_pickles_are_read_soon_and_in_little_memory(tmp_path):
    for kind, content in PICKLES.items():
        (tmp_path / f"{kind}.pkl").write_bytes(content)
        (tmp_path / f"{kind}.pt").write_bytes(content)
        zipped(tmp_path / f"{kind} zip.pt", {"archive/data.pkl": content, "archive/version": b"3\n"})
    lines, peak = measured(READ_ALL, tmp_path)
    assert lines == ["0 True"] * 3 * len(PICKLES)
    assert peak < 1e9


LIMITED = """
import os, resource
from fastfid.statistics.statistics import read_statistics
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20),) * 2)
try:
    read_statistics(os.environ["FILE"])
except OSError as error:
    print(error)
"""


@linux
def test_under_a_limit_of_memory_the_file_is_not_to_blame(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(3000), sigma=np.eye(3000))
    lines, _ = measured(LIMITED, tmp_path / "x.npz")
    assert len(lines) == 1 and "x.npz" in lines[0] and "memory" in lines[0] and "(ulimit -v)" in lines[0]
    assert "save it again" not in lines[0]
