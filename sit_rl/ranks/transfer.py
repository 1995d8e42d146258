"""Copies from the host to a GPU that nobody waits for, so that the host draws the next noise while the GPU works.

A copy from pageable memory waits for all earlier work of the GPU.  One from pinned memory does not.
"""

from __future__ import annotations

import torch


def pinned(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x in pinned host memory, if `device` is a GPU and x is not on it."""
    return x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned() else x


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on `device`; to a GPU by a copy that the host does not wait for.

    The allocator of pinned memory keeps the source of a copy until the GPU has read it.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return pinned(x, device).to(device, non_blocking=True)
