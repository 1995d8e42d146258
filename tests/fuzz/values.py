"""Values that are changed as values: an entry of a table or list, of another kind, missing, or one more.

A file that holds them is whole, so that its reader gets beyond the first check of its form.
"""

import io
import json

import numpy as np
import torch

from tests.fuzz.seeds import npy, npz, torch_file

PLAIN = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**70, 10**400,
    "", "x", "a" * 3000, "\x1b[2J", "a\0b", "\ud800", "../x", "/dev/zero", "1e-4", "none", "fd", [], {}, [[]], [None],
    {"x": 1}, {"": ""}, [1, 2, 3], ["x"], [0.1, "x"],
]  # fmt: skip
DTYPES = ["i1", "u1", "<i8", ">i8", "<f2", ">f4", "<f8", ">f8", "g", "c16", "b1", "S3", "U2", "M8[s]", "V3", "O"]
SHAPES = [(), (0,), (1,), (3,), (0, 3), (3, 0), (1, 3), (3, 3), (2, 3, 3), (1, 1, 1, 1), (4, 8, 8), (2, 3, 8, 8)]
TENSORS = [
    lambda: torch.zeros(()), lambda: torch.zeros(0, 3), lambda: torch.full((3, 3), torch.nan),
    lambda: torch.zeros(3, 3, dtype=torch.bfloat16), lambda: torch.zeros(3, dtype=torch.bool),
    lambda: torch.zeros(3, 3, dtype=torch.complex64), lambda: torch.eye(3).to_sparse(),
    lambda: torch.zeros(3, 3, device="meta"), lambda: torch.zeros(3, 3, requires_grad=True),
    lambda: torch.ones(1, 3).expand(1000, 3), lambda: torch.zeros(3, 3).to(torch.float8_e4m3fn),
    lambda: torch.full((4,), -(2**63)), lambda: torch.zeros(4, dtype=torch.uint8), lambda: torch.ones(4, 6).T,
]  # fmt: skip
MOST_CHANGES = 3


def changed_value(value, rng):
    """A copy of a value with one to three changes."""
    for _ in range(rng.randint(1, MOST_CHANGES)):
        value = _changed(value, rng)
    return value


def _changed(value, rng):
    """Walk down to a random place and change what is there."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if kind < 0.2:
            return value | {rng.choice(["x", "", "\x1b[2J", 3, key]): _other(value[key], rng)}
        return value | {key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.2:
            return value[:place] + value[place + 1 :]
        if kind < 0.4:
            return value[:place] + [value[place]] * rng.choice((2, 3, 1000)) + value[place + 1 :]
        return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    return _other(value, rng)


def _other(value, rng):
    if isinstance(value, np.ndarray | np.generic) and rng.random() < 0.9:
        return _other_array(np.asarray(value), rng)
    if isinstance(value, torch.Tensor) and rng.random() < 0.9:
        return rng.choice(TENSORS)()
    return rng.choice(PLAIN)


def _other_array(array, rng):
    """Another type, shape, order or value."""
    kind = rng.random()
    with np.errstate(all="ignore"):
        try:
            if kind < 0.4:
                return array.astype(rng.choice(DTYPES), order=rng.choice("CF"))
            if kind < 0.7:
                return np.resize(array, rng.choice(SHAPES))
            changed = np.array(array)
            changed.flat[rng.randrange(max(1, changed.size))] = rng.choice([np.nan, np.inf, -1, 1e300, 1e-300, 2**62])
            return changed
        except (ValueError, TypeError, IndexError, OverflowError, RuntimeError):  # no such conversion
            return np.zeros(rng.choice(SHAPES))


def written(kind, value, rng):
    """A file of a kind that holds a value."""
    if kind.endswith((".json", ".yaml")):
        return _json(value)
    if kind.endswith(".jsonl"):
        return b"\n".join(_json(line) for line in value) if isinstance(value, list) else _json(value)
    if kind == ".npz":
        arrays = {str(name).replace("\0", "0"): each for name, each in value.items()} if isinstance(value, dict) else {}
        return npz(rng.random() < 0.5, **{name or "x": _array(each) for name, each in arrays.items() if name != "file"})
    if kind.endswith(".npy"):
        return npy(_array(value))
    if kind == ".pt":
        try:
            return torch_file(value, rng.random() < 0.7)
        except (RuntimeError, NotImplementedError):  # a tensor that the older form cannot hold
            return torch_file(value)
    return _pickled(value, rng)


def _json(value):
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def _array(value):
    try:
        return np.asarray(value)
    except (ValueError, OverflowError):  # a ragged list
        return np.zeros(0)


def _pickled(value, rng):
    import pickle

    file = io.BytesIO()
    pickle.dump(value, file, protocol=rng.choice((0, 2, 4, 5)))
    return file.getvalue()
