"""Files of caches against damage: what is loaded is what was saved, or nothing."""

import numpy as np

from fastfid.runtime.checked_arrays import load_checked, save_checked

ARRAYS = {"features": np.arange(12, dtype=np.float32).reshape(4, 3), "image_shape": np.array([3, 8, 8])}


def same(found):
    """Whether the saved arrays have been found."""
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[k], ARRAYS[k]) for k in found)


def test_every_byte_of_a_file_may_change(tmp_path):
    """Also those of the zip directory, for which zipfile and NumPy raise a dozen kinds of errors."""
    path = tmp_path / "a.npz"
    save_checked(path, "key", ARRAYS)
    good, lost = path.read_bytes(), 0
    for i in range(len(good)):
        for bit in (i % 7, 7) if i % 4 else (3,):  # bit 3 makes "stored" into "deflated"
            path.write_bytes(good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :])
            found = load_checked(path, "key")
            assert found is None or same(found), (i, bit)
            lost += found is None
    assert lost > len(good) / 2  # the rest are dates, attributes and padding
    path.write_bytes(good)
    assert same(load_checked(path, "key"))


def test_a_compressed_file_is_none_before_it_is_inflated(tmp_path, monkeypatch):
    """`save_checked` compresses nothing; 2 MB of zeros stand for gigabytes."""
    np.savez_compressed(tmp_path / "x.npz", sha256=np.array("0" * 64), features=np.zeros(1 << 18))
    monkeypatch.setattr(np, "load", None)  # is not reached
    assert load_checked(tmp_path / "x.npz", "key") is None


def test_a_file_of_another_key_is_none_and_so_is_no_file(tmp_path):
    save_checked(tmp_path / "a.npz", "key", ARRAYS)
    assert load_checked(tmp_path / "a.npz", "other") is None and load_checked(tmp_path / "b.npz", "key") is None
    np.savez(tmp_path / "a.npz", **ARRAYS)  # without a hash
    assert load_checked(tmp_path / "a.npz", "key") is None


def test_arrays_of_another_name_shape_or_dtype_have_another_hash(tmp_path):
    values = np.arange(6, dtype=np.int32)
    sums = set()
    others = {"b": values}, {"a": values.reshape(2, 3)}, {"a": values.view(np.uint32)}
    for i, arrays in enumerate(({"a": values}, *others)):
        save_checked(tmp_path / f"{i}.npz", "key", arrays)
        sums.add(str(np.load(tmp_path / f"{i}.npz")["sha256"]))
    assert len(sums) == 4
