"""SHA-256 of files, images, tensors and module states: the keys of caches and the fingerprints in records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

READ_BYTES = 1 << 20  # of a file, read at a time


def sha256(parts: Iterable[bytes | memoryview | str | Tensor]) -> str:
    """SHA-256 of the parts, one after the other, in 64 hexadecimal digits.

    Text counts as UTF-8, a tensor as its values in row-major order, without shape and dtype.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)  # names of files
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return sha256(iter(lambda: file.read(READ_BYTES), b""))


def images_sha256(images: Tensor) -> str:
    """SHA-256 of the shape and the pixels of images [n, C, H, W]."""
    return sha256([f"{tuple(images.shape)}", images])


def moments_sha256(mean: Tensor, cov: Tensor) -> str:
    """SHA-256 of mean [d] and covariance [d, d], as float64."""
    return sha256(part.detach().to("cpu", torch.float64) for part in (mean, cov))


def state_sha256(module: nn.Module) -> str:
    """SHA-256 of the names, shapes, dtypes and values of a module's state, sorted by name."""
    return sha256(
        part
        for name, value in sorted(module.state_dict().items())
        for part in (f"{name}{tuple(value.shape)}{value.dtype}", value)
    )
