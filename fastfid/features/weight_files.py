"""Files of weights: download, check of the hash, reading."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastfid.runtime.errors import first_line
from fastfid.runtime.hashes import file_sha256
from fastfid.runtime.input_files import reading
from fastfid.runtime.tensor_files import read_tensors
from fastfid.runtime.torch_file_checks import check_tensors, check_torch_file


def checked_sha256(path: str | Path, expected: str) -> str:
    """SHA-256 of a file, hexadecimal; ValueError unless it starts with `expected`, FileNotFoundError if missing."""
    if not Path(path).exists():
        raise FileNotFoundError(f"no weights file at {path}; pass the path of the downloaded weights")
    with reading(path, "download it again"):
        digest = file_sha256(path)
    if not digest.startswith(expected):
        raise ValueError(f"{path} has SHA-256 {digest[:8]}…, not {expected}…: download the weights again")
    return digest


def unfit_weights(weights: str | Path, kind: str, error: Exception) -> ValueError:
    """The error for weights that a network does not accept."""
    return ValueError(f"{weights} does not hold these {kind} weights ({first_line(error)}); pass the right file")


def read_state(weights: str | Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors or a torch file; no code of the file runs."""
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(f"no weights file at {path}; pass the path of the downloaded weights")
    with reading(path, "download it again", how="by torch"):
        if path.suffix == ".safetensors":
            return read_tensors(path)[0]
        check_torch_file(path)
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
        check_tensors(path, (x for x in state.values() if isinstance(x, Tensor)))
        return state
