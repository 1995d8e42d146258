"""Checks that the weights of a model are finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def require_finite_start(parameters: Iterable[tuple[str, nn.Parameter]], source: str) -> None:
    """FloatingPointError that names the first weight of a file that is NaN or infinite, and its source."""
    name = first_not_finite(parameters)
    if name is not None:
        raise FloatingPointError(
            f"weight {name} of {source} is NaN or infinite: the file is damaged or its training had diverged; choose "
            "another"
        )


def first_not_finite(parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """Name of the first parameter with NaN or infinity, or None. Checks only this rank's part of sharded ones."""
    for name, p in parameters:
        local = p.to_local() if hasattr(p, "to_local") else p
        if not torch.isfinite(local.detach()).all():
            return name
    return None
