"""Outputs of a pipeline's text encoders for each prompt: computed once, kept on disk, read a batch at a time.

    $FASTFID_CACHE/prompts, or the folder prompts/ of the cache that `fastfid.runtime.cache_folder` names

A file's name is the hash of the prompts, the encoders' files, the encoding and its type, and is in its metadata.  A
damaged or exchanged file is made again.  Where the cache cannot be written, every process encodes for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fastfid.runtime.cache_folder import cache_folder
from fastfid.runtime.distributed import from_main
from fastfid.runtime.hashes import file_sha256, sha256
from sit_rl.files.tensor_files import read_safetensors, write_safetensors
from sit_rl.models.pipeline_families import Family, Rows
from sit_rl.ranks.messages import say

# Prompts that the encoders read at once: their activations stay small beside their weights.
ENCODED_AT_ONCE = 8
# Files up to this size are identified by their content, larger ones (weights) by size and time of change: hashing the
# 10 GB of a text encoder takes as long as encoding.
HASHED_BYTES = 1 << 20
KEY = "key"  # in the metadata of a file


class Embeddings:
    """Rows of every condition, and of the negative prompt as the last one, in host memory; copies share them."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __deepcopy__(self, memo: dict[int, Any]) -> Embeddings:
        return self

    def rows_of(self, conditions: torch.Tensor, dtype: torch.dtype) -> Rows:
        """The rows of conditions int64 [n], on their device, floating numbers as `dtype`."""
        chosen = conditions.cpu()
        found = {name: rows[chosen].to(conditions.device) for name, rows in self.rows.items()}
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}


def embeddings(
    family: Family, prompts: Sequence[str], negative: str, transformer: Any, device: torch.device, dtype: torch.dtype
) -> Embeddings:
    """The rows of prompts and negative prompt, from the cache or by the pipeline's encoders; every rank calls it."""
    path = cache_folder() / "prompts" / f"{_key(family, prompts, negative, dtype)}.safetensors"

    def make() -> Rows:
        return encode(family, prompts, negative, transformer, device, dtype)

    if from_main(lambda: _read(path) is not None or _write(path, make)):
        rows = _read(path)
        if rows is not None:
            return Embeddings(rows)
    return Embeddings(make())


@torch.no_grad()
def encode(
    family: Family, prompts: Sequence[str], negative: str, transformer: Any, device: torch.device, dtype: torch.dtype
) -> Rows:
    """Rows [n + 1, ...] of n prompts and the negative one, by the pipeline's own encoders, which are loaded for it."""
    import diffusers

    kind = getattr(diffusers, family.pipeline)
    pipe = kind.from_pretrained(
        str(family.folder), transformer=transformer, vae=None, torch_dtype=dtype, local_files_only=True
    )
    for name in family.encoders():
        getattr(pipe, name).to(device)
    parts: list[Rows] = []
    none: Rows = {}
    for batch in _batches(list(prompts), ENCODED_AT_ONCE):
        rows, none = family.encode(pipe, batch, negative, device)
        parts.append({name: value.cpu() for name, value in rows.items()})
    parts.append({name: value.cpu() for name, value in none.items()})
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _key(family: Family, prompts: Sequence[str], negative: str, dtype: torch.dtype) -> str:
    """What the rows depend on, as a hash."""
    folders = [family.folder / name for name in (*family.encoders(), *family.tokenizers())]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    told = [f"{path.relative_to(family.folder).as_posix()} {_identity(path)}\n" for path in files]
    length = str(family.defaults().get("max_sequence_length"))
    return sha256(
        [family.pipeline, length, str(dtype), *told, *(f"{len(text)} {text}" for text in (*prompts, negative))]
    )


def _identity(path: Path) -> str:
    status = path.stat()
    return file_sha256(path) if status.st_size <= HASHED_BYTES else f"{status.st_size} {status.st_mtime_ns}"


def _read(path: Path) -> Rows | None:
    """The rows of a file; None if it is absent, damaged or of another key."""
    try:
        rows, metadata = read_safetensors(path) if path.is_file() else ({}, {})
    except (ValueError, OSError):
        return None
    return rows if metadata.get(KEY) == path.stem else None


def _write(path: Path, make: Callable[[], Rows]) -> bool:
    """Encode and write; False, with a note, where the cache cannot be written."""
    rows = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, rows, {KEY: path.stem})
        return True
    except OSError as error:
        say(f"note: encoded prompts are not kept ({error}); set FASTFID_CACHE to a folder that can be written")
        return False
