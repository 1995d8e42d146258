"""Rows at equal steps, which stand for a whole set."""

import torch


def evenly_spaced(count: int, most: int) -> torch.Tensor:
    """Numbers int64 of `most` of `count` rows, or of all if they are fewer, from the first row to the last."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
