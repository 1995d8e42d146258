"""Files of weights: download, check of the hash, reading."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastfid.runtime.hashes import file_sha256


def checked_sha256(path: str | Path, expected: str) -> str:
    """SHA-256 of a file, hexadecimal; ValueError unless it starts with `expected`, FileNotFoundError if missing."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file at {path}; pass the path of the downloaded weights")
    digest = file_sha256(path)
    if not digest.startswith(expected):
        raise ValueError(f"{path} has SHA-256 {digest[:8]}…, not {expected}…: download the weights again")
    return digest


def unfit_weights(weights: str | Path, kind: str, error: Exception) -> ValueError:
    """The error for weights that a network does not accept."""
    reason = str(error).splitlines()[0]
    return ValueError(f"{weights} does not hold these {kind} weights ({reason}); pass the right file")


def read_state(weights: str | Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors or a torch file; no code of the file runs."""
    from safetensors.torch import load_file

    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}; pass the path of the downloaded weights")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as damaged:  # damaged files raise nearly anything
        reason = (str(damaged).splitlines() or [type(damaged).__name__])[0]
        raise ValueError(f"{path} is no readable weights file ({reason}); download it again") from None
