"""Arrays that may be larger than memory, in mapped files.

The system reclaims the pages of a mapped file when it needs memory, so only a few blocks stay in memory.  Features
above LARGE bytes, and compressed arrays of an npz above it, are kept in a temporary file without a name, which
disappears with the process:

    $TMPDIR, or /var/tmp (a disk where /tmp is memory), or what Python finds

Uncompressed arrays of an npz are mapped in place.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from fastfid.runtime.errors import first_line
from fastfid.runtime.input_files import NoRoom, check_growth

LARGE = 1 << 30  # bytes of an array that is held in memory at most: 131,072 rows of 2048 float32 features
COPIED_BYTES = 1 << 24  # copied at a time from one array into another

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# A zip's local header, before a member's content: 30 bytes that end in the lengths of its name and of the extra field
# behind it (APPNOTE.TXT 4.3.7).
LOCAL_HEADER, LOCAL_LENGTHS = 30, struct.Struct("<26x2H")
READ_BYTES = 1 << 20


def room(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An array to fill: in memory up to LARGE bytes, above them a map of a temporary file; NoRoom where none fits."""
    count, dtype = math.prod(shape), np.dtype(dtype)
    size = count * dtype.itemsize
    if size <= LARGE:
        return np.empty(shape, dtype)
    folder = _folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a hole that finds no room when it is written ends the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as full:
        raise NoRoom(
            f"{folder or tempfile.gettempdir()} has no room for an array of {size / (1 << 30):.1f} GiB "
            f"({full.strerror or full}); set TMPDIR to a folder that has"
        ) from None


def writable(array: np.ndarray) -> np.ndarray:
    """The array itself, or a copy in `room` of one that is read-only or has another byte order than the machine."""
    native = array.dtype.newbyteorder("=")
    if array.flags.writeable and array.dtype == native:
        return array
    copy = room(array.shape, native)
    step = max(1, COPIED_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        copy[start : start + step] = array[start : start + step]
    return copy


def open_numpy(path: Path) -> np.ndarray | np.lib.npyio.NpzFile:
    """The array of an npy file, mapped, or an open npz; ValueError, or what zipfile raises, for any other file.

    The header is checked first.  NumPy maps what a header claims, and a type of no bytes ends the process.
    """
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            archive: np.lib.npyio.NpzFile = np.load(path, allow_pickle=False)
            return archive
        file.seek(0)
        header = _read_header(file)
    held = path.stat().st_size - header.length
    if header.size > held:
        raise ValueError(f"its header claims {header.size:,} bytes and it holds {held:,}")
    return _map(path, header, header.length)


def npz_shape(content: np.lib.npyio.NpzFile, name: str) -> tuple[int, ...]:
    """Shape of array `name` of an npz, by its header."""
    with _opened(content, _member(content, name)) as member:
        return _read_header(member).shape


def npz_array(path: Path, content: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Array `name` of the npz at `path`: a read-only map of what is stored as it is, its checksum found right.

    What is compressed is inflated into `room`, a block at a time.  ValueError, or what zipfile raises, for a damaged
    entry; ValueError or NoRoom for one that is out of proportion to the file or the memory (input_files.py).
    """
    info = _member(content, name)
    with _opened(content, info) as member:
        header = _read_header(member)
        if info.file_size != header.length + header.size:
            raise ValueError(f"its header claims {header.size:,} bytes and it holds {info.file_size - header.length:,}")
        if info.compress_type != zipfile.ZIP_STORED:
            check_growth(path, header.size)
            return _inflated(member, header)
        while member.read(READ_BYTES):  # to its end, where zipfile compares the checksum
            pass
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = LOCAL_LENGTHS.unpack_from(file.read(LOCAL_HEADER))
    return _map(path, header, info.header_offset + LOCAL_HEADER + sum(lengths) + header.length)


def _map(path: Path, header: _Header, offset: int) -> np.ndarray:
    """The array that lies at `offset` in the file, read-only."""
    if header.size == 0:  # nothing to map
        return np.empty(header.shape, header.dtype)
    mapped: np.ndarray = np.memmap(path, header.dtype, "r", offset, header.shape, header.order)
    return mapped


def _member(content: np.lib.npyio.NpzFile, name: str) -> zipfile.ZipInfo:
    """The zip's entry of array `name`; ValueError if it is no npy file, or packed in another way than NumPy does.

    Python's bz2 and lzma inflate everything at once, even if the zip claims less.
    """
    info = _archive(content).NameToInfo.get(f"{name}.npy")
    if info is None:
        raise ValueError("it is no .npy file")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("its compression method is not supported, which is neither none nor deflate")
    return info


def _archive(content: np.lib.npyio.NpzFile) -> zipfile.ZipFile:
    """The zip of an npz that is open; a closed one has none."""
    if content.zip is None:
        raise ValueError("the npz file is closed")
    return content.zip


def _opened(content: np.lib.npyio.NpzFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member to read; ValueError for one that is encrypted."""
    try:
        return _archive(content).open(member)
    except RuntimeError as refusal:
        raise ValueError(f"{refusal}") from None


class _Header(NamedTuple):
    """What an npy says of its array; `length` bytes of its own."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    length: int

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(file: IO[bytes]) -> _Header:
    """Of a file at its beginning; ValueError if it cannot be parsed, or is of no array that can be mapped."""
    version = np.lib.format.read_magic(file)
    read = NPY_HEADERS.get(version)
    if read is None:
        raise ValueError(f"it is of npy version {version[0]}.{version[1]}, which plain arrays do not need")
    try:
        shape, fortran, dtype = read(file)
    except ValueError:
        raise
    except Exception as damaged:  # Python's parser: SyntaxError, TokenError, RecursionError, MemoryError
        raise ValueError(f"its header is no description of an array: {first_line(damaged)}") from None
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they hold pickled Python objects")
    if dtype.itemsize == 0 or any(n < 0 for n in shape):
        raise ValueError(f"its header claims the shape {shape} of type {dtype.str}")
    return _Header(shape, "F" if fortran else "C", dtype, file.tell())


def _inflated(member: IO[bytes], header: _Header) -> np.ndarray:
    """The rest of a member, read to its end, where zipfile compares the checksum."""
    content = room((header.size,), np.uint8)
    filled = 0
    while part := member.read(READ_BYTES):
        content[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    if filled != header.size:
        raise ValueError(f"it ends after {filled:,} of {header.size:,} bytes")
    inflated: np.ndarray = content.view(header.dtype).reshape(header.shape, order=header.order)
    return inflated


def _folder() -> str | None:
    """Where temporary files of any size go; None for Python's choice."""
    elsewhere = os.environ.get("TMPDIR") or not os.access("/var/tmp", os.W_OK)
    return None if elsewhere else "/var/tmp"
