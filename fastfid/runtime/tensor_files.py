"""Safetensors files that hold their own SHA-256, so that a damaged one is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

from torch import Tensor

from fastfid.runtime.hashes import READ_BYTES, sha256
from fastfid.runtime.torch_file_checks import Damaged

# Entry of the metadata: SHA-256 of the whole file with zeros in place of the entry's 64 digits.
SUM = "sit_rl_sha256"
NO_SUM = "0" * 64
# A file begins with the length of its JSON header, little-endian (safetensors, "Format").
HEADER_BYTES = 8


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, mapped, and the metadata; Damaged for a file that does not fit its own hash.

    For any other file what safetensors raises.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    if SUM in metadata and _sum_of(path, metadata[SUM]) != metadata[SUM]:
        raise Damaged(
            f"{path} is damaged, or another program has changed it: its SHA-256 is not the one in its metadata; copy "
            f"or make it again, or save it without the metadata entry {SUM}"
        )
    return tensors, {key: value for key, value in metadata.items() if key != SUM}


def with_sum(head: bytes, before: str, after: str) -> bytes:
    """The first bytes of a file, up to the end of its header, with another hash in the metadata."""
    entry = '"' + SUM + '":"{}"'
    return head.replace(entry.format(before).encode(), entry.format(after).encode())


def _sum_of(path: Path, stated: str) -> str:
    """The hash of a file as its metadata should state it; `stated` is what they do state."""
    with open(path, "rb") as file:
        length = file.read(HEADER_BYTES)
        head = with_sum(length + file.read(int.from_bytes(length, "little")), stated, NO_SUM)
        return sha256(itertools.chain([head], iter(lambda: file.read(READ_BYTES), b"")))
