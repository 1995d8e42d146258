"""Arrays that may be larger than memory, which mapped files stand for.

The system takes back the pages of a mapped file whenever it needs the memory, so what has to stay is a few blocks,
however many images there are.  Features above LARGE bytes, and images and features that a compressed npz holds above
them, are kept in a temporary file without a name, which is gone with the process, however it ends:

    $TMPDIR, or /var/tmp (a disk where /tmp is memory), or what Python finds

What lies uncompressed in an npz is mapped where it is.
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

LARGE = 1 << 30  # bytes of an array that is held in memory at most: 131,072 rows of 2048 float32 features
COPIED_BYTES = 1 << 24  # copied at a time from one array into another

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# A zip's local header, before a member's content: 30 bytes that end in the lengths of its name and of the extra field
# behind it (APPNOTE.TXT 4.3.7).
LOCAL_HEADER, LOCAL_LENGTHS = 30, struct.Struct("<26x2H")
READ_BYTES = 1 << 20


class NoRoom(OSError):
    """The disk has no room for an array that is too large for memory."""


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


def npz_shape(content: np.lib.npyio.NpzFile, name: str) -> tuple[int, ...]:
    """Shape of array `name` of an npz, by its header."""
    with _opened(content, f"{name}.npy") as member:
        return _read_header(member).shape


def npz_array(path: Path, content: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Array `name` of the npz at `path`: a read-only map of what is stored as it is, its checksum found right.

    What is compressed is inflated into `room`, a block at a time.  Raises what NumPy and zipfile do.
    """
    info = _archive(content).NameToInfo.get(f"{name}.npy")
    if info is None:
        return content[name]
    with _opened(content, info) as member:
        header = _read_header(member)
        if header.dtype.hasobject or not header.length < info.file_size == header.length + header.size:
            return content[name]  # which says what is wrong
        if info.compress_type != zipfile.ZIP_STORED:
            return _inflated(member, header)
        while member.read(READ_BYTES):  # to its end, where zipfile compares the checksum
            pass
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = LOCAL_LENGTHS.unpack_from(file.read(LOCAL_HEADER))
    offset = info.header_offset + LOCAL_HEADER + sum(lengths) + header.length
    mapped: np.ndarray = np.memmap(path, header.dtype, "r", offset, header.shape, header.order)
    return mapped


def _archive(content: np.lib.npyio.NpzFile) -> zipfile.ZipFile:
    """The zip of an npz that is open; a closed one has none."""
    if content.zip is None:
        raise ValueError("the npz file is closed")
    return content.zip


def _opened(content: np.lib.npyio.NpzFile, member: str | zipfile.ZipInfo) -> IO[bytes]:
    """A member to read; ValueError for one that is encrypted or compressed in a way that zipfile does not know."""
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


def _read_header(member: IO[bytes]) -> _Header:
    """Of a file at its beginning; a version that is not known here has the type of objects, which is none of ours."""
    read = NPY_HEADERS.get(np.lib.format.read_magic(member))
    shape, fortran, dtype = read(member) if read else ((), False, np.dtype(object))
    return _Header(shape, "F" if fortran else "C", dtype, member.tell())


def _inflated(member: IO[bytes], header: _Header) -> np.ndarray:
    """The rest of a member, read to its end, where zipfile compares the checksum."""
    content = room((header.size,), np.uint8)
    filled = 0
    while part := member.read(READ_BYTES):
        content[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    inflated: np.ndarray = content.view(header.dtype).reshape(header.shape, order=header.order)
    return inflated


def _folder() -> str | None:
    """Where temporary files of any size go; None for Python's choice."""
    elsewhere = os.environ.get("TMPDIR") or not os.access("/var/tmp", os.W_OK)
    return None if elsewhere else "/var/tmp"
