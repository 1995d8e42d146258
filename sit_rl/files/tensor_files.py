"""Files of weights: reading and writing safetensors, and diagnosing files that cannot be read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import IO, BinaryIO

import torch
from safetensors.torch import save

from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.hashes import sha256
from fastfid.runtime.input_files import json_of, reading
from fastfid.runtime.tensor_files import HEADER_BYTES, NO_SUM, SUM, read_tensors, with_sum

# First bytes of a zip file (PKWARE's APPNOTE, local file header). Files of torch ≥ 1.6 are zip files.
ZIP_START = b"PK\x03\x04"
# First bytes of a Git LFS pointer, which stands for a file that was not fetched (git-lfs, docs/spec.md).
LFS_START = b"version https://git-lfs"
LARGEST_FILE = 1 << 63  # bytes; no file system has larger ones
LONGEST_HEADER = 100_000_000  # bytes of a header of safetensors that its reader accepts


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Equal content gives equal bytes, and so an equal hash.

    The metadata get an entry with the hash, by which `read_safetensors` recognises a damaged file. They are sorted,
    because the library writes them in a different order each time. The header is JSON. Its length stands before it
    (8 bytes, little-endian), and spaces pad it to a multiple of 8, so that the tensors stay aligned (safetensors,
    "Format").
    """
    written = memoryview(save(tensors, metadata))
    start = 8 + int.from_bytes(written[:8], "little")
    entries = {"__metadata__": dict(sorted((metadata | {SUM: NO_SUM}).items()))}
    text = json.dumps(json.loads(bytes(written[8:start])) | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    signed = with_sum(head, NO_SUM, sha256([head, written[start:]]))

    def write(file: IO[bytes]) -> None:
        file.write(signed)
        file.write(written[start:])

    write_atomically(path, write)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors, mapped, and the metadata; ValueError, with a diagnosis, for any other file and for a damaged one."""
    with reading(path, "download or copy it again", "as safetensors"):
        try:
            return read_tensors(path)
        except Exception:  # safetensors raises its own type, which has no public name in older releases
            told = damage(path)
            if told is None:
                raise
            raise ValueError(told) from None


def damage(path: Path) -> str | None:
    """What is wrong with an unreadable file of weights, if its first bytes and its size show it, else None."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
        if not head:
            return "it is empty"
        if head.lstrip()[:1] == b"<":
            return f"it is a web page of {size:,} bytes"
        if head == LFS_START[:HEADER_BYTES] and file.read(len(LFS_START) - HEADER_BYTES) == LFS_START[HEADER_BYTES:]:
            return f"it is a Git LFS pointer of {size:,} bytes, for which `git lfs pull` fetches the file"
        file.seek(len(head))
        if path.suffix != ".safetensors":
            cut = head.startswith(ZIP_START) and not zipfile.is_zipfile(path)
            return f"it is incomplete: {file_size(path)}, and its end is missing" if cut else None
        whole, exact = _safetensors_bytes(head, file)
    at_least = "" if exact else "at least "
    return f"it is incomplete: {size:,} of {at_least}{whole:,} bytes" if size < whole else None


def file_size(path: Path) -> str:
    """The size of a file as text, for example '1,024 bytes'."""
    return f"{path.stat().st_size:,} bytes"


def _safetensors_bytes(head: bytes, file: BinaryIO) -> tuple[int, bool]:
    """Bytes of the complete file, and whether this is exact or a lower bound: length, header, listed tensors."""
    if len(head) < HEADER_BYTES:
        return HEADER_BYTES, False
    length = int.from_bytes(head, "little")
    if length > LONGEST_HEADER:
        return 0, False  # another format
    try:
        entries = json_of(file.read(length))
        end = max(e["data_offsets"][1] for name, e in entries.items() if name[:2] != "__")
        if not 0 <= end <= LARGEST_FILE:
            raise ValueError("no file ends there")
        return HEADER_BYTES + length + end, True
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return HEADER_BYTES + length, False  # the header is truncated
