"""Full float32 on every device, and tensors from arrays of other libraries.

On a GPU, float32 products and convolutions may run in TF32, with 10 bits of mantissa (convolutions do by default), and
in bfloat16 under autocast.  Features and distances are computed without either, so they agree on all devices up to
the rounding of float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfid.runtime.errors import first_line

MOST_FLOAT_BYTES = 8  # of torch's floats; long doubles have more


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within this block float32 products and convolutions on `device` are float32: no autocast, no TF32.

    torch's settings are saved and restored.  They belong to the process, autocast to the thread.  Blocks of several
    threads may overlap; the last one restores the settings.
    """
    _settings.put_aside()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _settings.restore()


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision(precision) within this block: "highest", "high" (TF32) or "medium"."""
    undo = _set_products(precision)
    try:
        yield
    finally:
        undo()


class _Settings:
    """TF32 switched off for as long as at least one block needs it."""

    def __init__(self) -> None:
        self.lock, self.blocks = threading.Lock(), 0
        self.undo: list[Callable[[], None]] = []

    def put_aside(self) -> None:
        with self.lock:
            if not self.blocks:
                self.undo = [_set_products("highest"), _set_convolutions_exact()]
            self.blocks += 1

    def restore(self) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks:
                for undo in self.undo:
                    undo()


_settings = _Settings()

# torch ≥ 2.9 keeps these settings twice, for each back end as `fp32_precision` ("none" follows a more general one) and
# under older names, which set both.  Where a caller has set the former, reading an older name raises RuntimeError.


def _set_products(precision: str) -> Callable[[], None]:
    """Set the precision of float32 matrix products; returns what undoes it."""
    backends: Any = torch.backends
    parts = backends.cuda.matmul, backends.mkldnn.matmul
    undo = _remembered(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, parts)
    torch.set_float32_matmul_precision(precision)
    return undo


def _set_convolutions_exact() -> Callable[[], None]:
    """Forbid TF32 in cuDNN's convolutions; returns what undoes it."""
    cudnn: Any = torch.backends.cudnn
    allow = partial(setattr, cudnn, "allow_tf32")
    undo = _remembered(lambda: cudnn.allow_tf32, allow, (cudnn.conv, cudnn.rnn))
    allow(False)
    cudnn.conv.fp32_precision = "ieee"
    return undo


def _remembered(read: Callable[[], Any], write: Callable[[Any], None], parts: tuple[Any, ...]) -> Callable[[], None]:
    """A function that brings back what the older name tells, if it does, and what the back ends' own names tell."""
    try:
        older = [read()]
    except RuntimeError:
        older = []
    values = [part.fp32_precision for part in parts]

    def restore() -> None:
        for value in older:
            write(value)
        for part, value in zip(parts, values, strict=True):
            part.fp32_precision = value

    return restore


def chosen_device(name: str) -> str:
    """The name of a device; "auto" is a CUDA device where there is one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def dense(x: Tensor, name: str = "an argument") -> Tensor:
    """The tensor, which keeps an element for each place of its shape; ValueError for a sparse one."""
    if x.layout != torch.strided:
        kind = str(x.layout).removeprefix("torch.")
        raise ValueError(f"{name} is a {kind} tensor of shape {tuple(x.shape)}; pass it as .to_dense()")
    return x.resolve_neg()  # computes a lazy negation, such as the imaginary part of a conjugate


def as_tensor(value: Any, name: str = "an argument", meta: bool = False) -> Tensor:
    """`value` as a tensor that shares its memory where its maker allows: torch, NumPy, CuPy and others by DLPack.

    Device arrays come by DLPack, which makes torch's stream wait for the one that computes them;
    `__cuda_array_interface__`, by which torch takes those that have nothing else, does not.  An array is copied where
    torch has no such tensor: of another byte order than the machine's, read backwards, or of strides that are no
    multiple of its items.  float8 becomes float32, long doubles float64; Python's own floats are float64, in lists as
    well.

    ValueError, in one sentence with `name`, for a sparse tensor, for one on the device meta unless `meta` allows it,
    and for what is no array of numbers.
    """
    try:
        x = _as_tensor(value, name)
    except (TypeError, RuntimeError, BufferError, OverflowError) as error:
        reason = first_line(error)
        raise ValueError(f"{name} cannot be read as a tensor ({reason}); pass a tensor or a numeric array") from error
    if x.device.type == "meta" and not meta:
        raise ValueError(f"{name} is a tensor of shape {tuple(x.shape)} on the device meta, which has no values")
    return x


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        x = dense(value, name)
        return x.float() if x.is_floating_point() and x.dtype.itemsize == 1 else x  # torch computes nothing of float8
    if isinstance(value, np.ma.MaskedArray) and value.mask.any():
        raise ValueError(f"{name} is an array with masked values; pass the values that count, or .filled(…)")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.itemsize > MOST_FLOAT_BYTES:
        value = value.astype(np.float64)
    if isinstance(value, np.ndarray) and not _as_torch_has_it(value):
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    device_array = hasattr(value, "__cuda_array_interface__")
    if hasattr(value, "__dlpack__") and (device_array or not hasattr(value, "__array__")):
        return torch.utils.dlpack.from_dlpack(value)
    try:
        x = torch.as_tensor(value)
    except ValueError as ragged:  # rows of several lengths, of which the message does not name the argument
        raise TypeError(first_line(ragged)) from None
    # torch takes Python's floats for its default type, float32, which keeps seven of their sixteen digits
    return torch.as_tensor(value, dtype=torch.float64) if x.is_floating_point() and _holds_floats(value) else x


def _holds_floats(value: Any) -> bool:
    """Whether this is a number of Python, or a list that begins with one; those of NumPy and torch have their type."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, int | float)


def _as_torch_has_it(array: np.ndarray) -> bool:
    """Whether a tensor can have the array's byte order and strides."""
    size = max(1, array.itemsize)
    return array.dtype.isnative and all(stride >= 0 and stride % size == 0 for stride in array.strides)
