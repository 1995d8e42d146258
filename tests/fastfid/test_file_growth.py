"""A small file takes little memory and time, whatever it claims to hold."""

import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, open_images
from fastfid.features.weight_files import read_state
from fastfid.runtime import input_files, torch_file_checks
from fastfid.runtime.input_files import NoRoom, check_growth, file_bytes, memory_bytes
from fastfid.statistics.statistics import read_statistics
from tests.support.hostile_files import npy, sentence, zipped

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MU, SIGMA = np.zeros(3), np.eye(3)


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


def test_the_memory_is_no_more_than_the_limit_of_the_process(tmp_path, monkeypatch):
    """The least of the machine's memory, of `ulimit -v`, and of the control group's, which may be "max"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    assert memory_bytes() > 1 << 26
    monkeypatch.setattr(input_files, "_machine_memory", lambda: 1 << 42)
    monkeypatch.setattr(input_files, "GROUP_LIMITS", (tmp_path / "absent", tmp_path / "memory.max"))
    (tmp_path / "memory.max").write_text("max\n")
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, hard))
    try:
        assert memory_bytes() == 1 << 36
        (tmp_path / "memory.max").write_text(f"{1 << 35}\n")
        assert memory_bytes() == 1 << 35
        monkeypatch.setattr(input_files, "_machine_memory", lambda: 1 << 34)
        assert memory_bytes() == 1 << 34
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
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was inflated"))
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
    monkeypatch.setattr(torch_file_checks, "MOST_OPERATIONS", 1000)
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
