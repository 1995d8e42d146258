"""What is large lies in mapped files and not in memory, and every number stays the same."""

import errno
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastfid import FeatureExtractor, evaluate, open_images
from fastfid.features import extraction
from fastfid.features.extraction import extract
from fastfid.runtime import mapped_arrays
from fastfid.runtime.mapped_arrays import NoRoom, room, writable
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import read_statistics

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Wide(nn.Module):
    """Sixteen pixels → 512 features."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 512, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return torch.relu(x.flatten(1) @ self.weight)


@pytest.fixture
def all_large(monkeypatch, tmp_path):
    """Everything is too large for memory; temporary files go to a folder of their own."""
    monkeypatch.setattr(mapped_arrays, "LARGE", 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # which remembers the one before


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), np.uint8)


def batches(n, seed=0):
    return iter(torch.from_numpy(pixels(n, seed)).movedim(3, 1).split(100))


def file_behind(tensor):
    """Name of the mapped file that a tensor lies in, "" for memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(end, 16) for end in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < stop:
            return " ".join(line.split()[5:])


def own_memory():
    """Bytes of this process that are no file's."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


# --- features ----------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("known", [True, False])  # a stream's room is doubled whenever it is full
def test_features_of_many_images_are_in_no_memory(all_large, known):
    network = FeatureExtractor.from_module(Wide(), 512, name="wide")
    n = 50_000  # 102 MB of features
    source = open_images(pixels(n)) if known else open_images(batches(n))
    before = own_memory()
    (found,) = extract(source, [network])
    assert found.outputs["features"].shape == (n, 512) and "(deleted)" in file_behind(found.outputs["features"])
    assert own_memory() - before < 30e6  # a shard, its names, and what the allocator keeps of blocks


@linux
def test_every_score_is_the_same_from_files(tmp_path, all_large, monkeypatch):
    samples = pixels(700, 1)

    def scores():
        network = FeatureExtractor.from_module(Wide(), 512, name="wide")
        result = evaluate(samples, batches(800, 2), features=network, cache=tmp_path / "cache", kid_subset_size=500)
        return [(s.metric, s.value, s.standard_error) for s in result.scores], result.outliers, result.neighbours

    monkeypatch.setattr(extraction, "FIRST_ROWS", 10)
    from_files = scores()
    monkeypatch.setattr(mapped_arrays, "LARGE", 1 << 30)
    assert from_files == scores()
    assert {"fd", "kid", "mmd", "precision", "coverage"} <= {metric for metric, *_ in from_files[0]}


# --- files of images and features --------------------------------------------------------------------------------


def test_a_compressed_npz_is_inflated_into_a_file(tmp_path, all_large):
    images = np.random.default_rng(0).integers(0, 4, (40, 6, 5, 3), np.uint8)
    np.savez_compressed(tmp_path / "c.npz", arr_0=images, arr_1=np.arange(40) % 3)
    np.savez_compressed(tmp_path / "fortran.npz", arr_0=np.asfortranarray(images))
    left = set(tmp_path.iterdir())
    for name in ("c", "fortran"):
        source = open_images(tmp_path / f"{name}.npz")
        array = source.array
        while type(array) is np.ndarray:
            array = array.base
        assert isinstance(array, np.memmap)
        assert torch.equal(torch.cat(list(source.batches(7))), torch.from_numpy(images).movedim(3, 1))
        assert torch.equal(source.image(33), torch.from_numpy(images[33]).movedim(2, 0))
    assert set(tmp_path.iterdir()) == left  # temporary files have no name
    damaged = bytearray((tmp_path / "c.npz").read_bytes())
    damaged[600] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged.npz cannot be read by NumPy \(.*; save it again"):
        open_images(tmp_path / "damaged.npz")


@linux
def test_features_of_files_larger_than_memory(tmp_path, all_large):
    features = np.random.default_rng(0).normal(size=(2500, 8)).astype(np.float32)
    np.savez(tmp_path / "stored.npz", features=features)
    np.savez_compressed(tmp_path / "compressed.npz", features=features)
    np.savez(tmp_path / "foreign.npz", features=features.astype(">f4"))
    np.save(tmp_path / "array.npy", features)
    for name in ("stored.npz", "compressed.npz", "foreign.npz", "array.npy"):
        found = read_statistics(tmp_path / name).features
        assert torch.equal(found, torch.from_numpy(features)) and "(deleted)" in file_behind(found), name
        found[0] = 0  # a copy of its own: the file stays as it is
        assert np.array_equal(read_statistics(tmp_path / name).features, features)
    features[1700, 3] = np.nan
    np.save(tmp_path / "nan.npy", features)
    with pytest.raises(ValueError, match="nan.npy holds NaN or infinity in row 1700"):
        read_statistics(tmp_path / "nan.npy")


@pytest.mark.parametrize(("bit", "words"), [(6, "is encrypted"), (8, "compression method is not supported")])
def test_members_that_zipfile_does_not_open_are_named(tmp_path, bit, words):
    """Bit 0 of the flags, or an unknown method, in both headers (APPNOTE.TXT 4.3.7, 4.3.12)."""
    np.savez(tmp_path / "x.npz", arr_0=pixels(3))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    for header, at in ((b"PK\3\4", bit), (b"PK\1\2", bit + 2)):
        content[content.index(header) + at] |= 1 if bit == 6 else 93
    (tmp_path / "x.npz").write_bytes(content)
    assert not holds_statistics(tmp_path / "x.npz")
    for read in (open_images, read_statistics):
        with pytest.raises(ValueError, match=f"x.npz cannot be read by NumPy .*{words}"):
            read(tmp_path / "x.npz")


def test_what_a_file_holds_is_told_by_its_header(tmp_path, monkeypatch):
    """An npz of 50,000 images is not read to see that it holds no features."""
    np.savez(tmp_path / "images.npz", arr_0=pixels(3))
    np.savez(tmp_path / "features.npz", x=np.zeros((3, 2)))
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("the array was read"))
    assert not holds_statistics(tmp_path / "images.npz")
    assert holds_statistics(tmp_path / "features.npz")


# --- the room ----------------------------------------------------------------------------------------------------


def test_only_large_arrays_are_in_files(monkeypatch):
    monkeypatch.setattr(mapped_arrays, "LARGE", 80)
    assert type(room((10,), np.float64)) is np.ndarray
    array = room((11,), np.float64)
    assert isinstance(array, np.memmap)
    array[:] = np.arange(11)
    assert array.sum() == 55
    assert writable(array) is array


def test_a_full_disk_is_told_before_anything_is_written(all_large, tmp_path, monkeypatch):
    """A file with holes would end the process when a page of it finds no room."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    words = "has no room for an array of 2.0 GiB (No space left on device); set TMPDIR to a folder that has"
    with pytest.raises(NoRoom, match=re.escape(f"{tmp_path} {words}")):
        room((1 << 28,), np.float64)
    np.savez_compressed(tmp_path / "c.npz", arr_0=pixels(3), features=np.zeros((3, 2)))
    for read in (open_images, read_statistics):
        with pytest.raises(NoRoom, match="set TMPDIR to a folder that has"):
            read(tmp_path / "c.npz")


@pytest.mark.parametrize("given", [True, False])
def test_where_temporary_files_lie(monkeypatch, given):
    monkeypatch.setenv("TMPDIR", "/somewhere") if given else monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/var/tmp")
    assert mapped_arrays._folder() == (None if given else "/var/tmp")
