"""SHA-256 of files, tensors and module states."""

import hashlib
from pathlib import Path

import torch
from torch import nn


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # by blocks of 1 MiB
            digest.update(block)
    return digest.hexdigest()


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of a module's state, in sorted order of the names."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
