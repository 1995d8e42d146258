"""Pickles of arrays and plain containers, read without running code."""

from __future__ import annotations

import codecs
import collections
import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastfid.runtime.errors import first_line
from fastfid.runtime.input_files import reading
from fastfid.runtime.torch_file_checks import check_pickle, check_torch_file

NUMBER_CODES = re.compile(r"[biufc]\d{1,2}")  # NumPy's codes of booleans, integers, floats and complex numbers


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Bytes that an old pickle stores as latin1 text, the only codec that it needs."""
    if encoding != "latin1":
        raise _Refusal(f"the codec {encoding}")
    return codecs.latin_1_encode(text)[0]


class _Type:
    """The number type of an array in a pickle; it replaces np.dtype, which would accept any state.

    A hostile pickle can call numpy.ndarray and numpy.dtype so that the bytes of an array become addresses of objects.
    So pickles get this class and `_Array` in place of them.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not isinstance(code, str) or not NUMBER_CODES.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, None, None, None, …), as NumPy writes it for a type without fields."""
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array with fields, not of numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array that a pickle builds from its bytes, shape and type; np.asarray accepts it."""

    def __init__(self, array: np.ndarray | None = None):
        self.array = array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, shape, type, Fortran order, bytes), as NumPy writes it."""
        _, shape, kind, fortran, raw = state
        self.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype)


def _reconstructed(subtype: object, shape: tuple[int, ...], code: bytes) -> _Array:
    return _Array()  # its state follows


def _scalar(kind: _Type, raw: bytes) -> float | int:
    number: float | int = np.frombuffer(raw, kind.dtype)[0].item()
    return number


def _from_buffer(
    buffer: bytes, kind: _Type, shape: tuple[int, ...], order: Any, axis_order: tuple[int, ...] | None = None
) -> _Array:
    array = np.frombuffer(buffer, kind.dtype)
    if axis_order is not None and order == "K":
        return _Array(array.reshape(shape).transpose(axis_order))
    return _Array(array.reshape(shape, order=order))


def _array_builders() -> dict[tuple[str, str], object]:
    """Names in pickles of arrays and plain containers, by NumPy 1 and NumPy 2, and their safe replacements."""
    allowed: dict[tuple[str, str], object] = {
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

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.allowed:
            raise _Refusal(f"{module}.{name}")
        return self.allowed[module, name]


def load_pickle(path: Path) -> object:
    """The content of a pickle of arrays and plain containers; ValueError for any other."""
    with reading(path, "fetch it again", how="by pickle"):
        check_pickle(path)
        try:
            with open(path, "rb") as file:
                return _ArrayUnpickler(file).load()
        except _Refusal as refused:
            raise ValueError(
                f"{path} is a pickle that asks for {first_line(refused)}, which is refused because it could run code; "
                "only arrays and plain containers are read, save mu and sigma with np.savez instead"
            ) from None


def load_torch(path: Path) -> object:
    """torch.load restricted to tensors, NumPy arrays and plain containers."""
    allowed: list[Any] = [(value, f"{module}.{name}") for (module, name), value in _array_builders().items()]
    allowed += [_Type, _Array]  # whose state torch sets only where it knows the class
    with reading(path, "save it again", how="by torch"):
        check_torch_file(path)
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as refused:
            if "unsupported" not in str(refused).lower():  # torch's word for a name that is not on its list
                raise
            raise ValueError(
                f"{path} asks for more than tensors and arrays, which is refused because it could run code; save the "
                "features alone with torch.save"
            ) from None
