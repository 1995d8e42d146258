"""Pixels as bytes, and as floats for the models."""

from __future__ import annotations

import torch


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 [...] → float32 [...] in [−1, 1]: x/127.5 − 1."""
    return images.float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """float32 [...] in [−1, 1] → float32 [...] in 0…255 with a gradient: what `to_uint8` rounds, on average."""
    return (127.5 * x + 127.5).clamp(0, 255)


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """float32 [...] in [−1, 1] → uint8 [...], rounded to nearest: clamp(127.5x + 128), the official rule of SiT."""
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8)
