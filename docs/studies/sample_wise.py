"""A reward of each image on its own, for the study of sample-wise against distribution-wise rewards."""

from __future__ import annotations

from functools import cache

import torch

from fastfid.features.extractor import MultiExtractor
from fastfid.features.fashion import fashion_with_logits


def class_probability(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p(label | image) of fashion-a [n], for images uint8 [n, c, h, w] and labels int64 [n]."""
    logits = _classifier().outputs(images)["logits"]
    return torch.log_softmax(logits, dim=1).gather(1, labels[:, None].cpu())[:, 0]


@cache
def _classifier() -> MultiExtractor:
    return fashion_with_logits("fashion-a", None, "cpu")
