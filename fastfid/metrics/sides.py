"""One side of a metric, real or generated, as it grows: its moments, or all of its feature rows.

Legend: n rows, d feature dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastfid.distances.moments import FeatureMoments, reducing_device
from fastfid.distances.rows import checked_features


class MomentsSide:
    """A side of which the moments are kept; their dimension d is that of the first features."""

    def __init__(self) -> None:
        self._moments: FeatureMoments | None = None

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return 0 if self._moments is None else self._moments.count or 0

    @property
    def device(self) -> torch.device | None:
        """Where the moments are; None before the first row."""
        return None if self._moments is None else self._moments.mean.device

    @property
    def moments(self) -> FeatureMoments:
        """The moments so far; RuntimeError before the first row."""
        if self._moments is None:
            raise RuntimeError("the moments of a side without images are not known; update it first")
        return self._moments

    def update(self, features: Tensor) -> None:
        """Add rows [n, d]; ValueError for rows that are not finite or of another d."""
        features = checked_features(features)
        if self._moments is None:
            self._moments = FeatureMoments.empty(features.shape[1], device=features.device)
        self._moments.update(features)

    def of_all_ranks(self, group: ProcessGroup | None) -> MomentsSide:
        """The side of all ranks together; a rank without images learns d from the others."""
        own = None if self._moments is None else (self._moments.dim, self._moments.mean.device.type)
        known = [item for item in _gathered(own, group) if item is not None]
        if len({dim for dim, _ in known}) > 1:
            raise ValueError(f"the ranks' features differ in dimension: {known}; use one extractor on all")
        together = MomentsSide()
        if known:
            dim, device = known[0]
            together._moments = (self._moments or FeatureMoments.empty(dim, device=device)).all_reduce(group)
        return together

    def to(self, device: str | torch.device) -> None:
        """Move the moments to a device."""
        if self._moments is not None:
            self._moments = self._moments.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The state for torch.save; empty before the first row."""
        return {} if self._moments is None else self._moments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that `state_dict` returned."""
        self._moments = FeatureMoments(**state) if state else None


class RowsSide:
    """A side of which all feature rows are kept."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return sum(len(part) for part in self._parts)

    @property
    def device(self) -> torch.device | None:
        """Where the rows are; None before the first."""
        return self._parts[0].device if self._parts else None

    def rows(self) -> Tensor:
        """All rows in the order they came, [n, d]."""
        return torch.cat(self._parts)

    def update(self, features: Tensor) -> None:
        """Add rows [n, d]; ValueError for rows that are not finite."""
        self._parts.append(checked_features(features).detach())

    def of_all_ranks(self, group: ProcessGroup | None) -> RowsSide:
        """The rows of all ranks, in the order of ranks; ValueError where their d or dtype differ."""
        own = self.rows() if self._parts else None
        shapes = _gathered(None if own is None else (*own.shape, own.dtype, own.device.type), group)
        known = [shape for shape in shapes if shape is not None]
        together = RowsSide()
        if not known:
            return together
        if len({shape[1:3] for shape in known}) > 1:
            raise ValueError(f"the ranks' features differ in dimension or type: {shapes}; use one extractor on all")
        _, dim, dtype, kind = known[0]
        home = torch.device(kind) if own is None else own.device
        most = max(shape[0] for shape in known)
        padded = torch.zeros(most, dim, dtype=dtype, device=reducing_device(home, group))  # one shape on all ranks
        if own is not None:
            padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in shapes]
        torch.distributed.all_gather(gathered, padded, group=group)
        parts = [part[: shape[0]] for part, shape in zip(gathered, shapes, strict=True) if shape is not None]
        together._parts = [part.to(home) for part in parts]
        return together

    def to(self, device: str | torch.device) -> None:
        """Move the rows to a device."""
        self._parts = [part.to(device) for part in self._parts]

    def state_dict(self) -> dict[str, Any]:
        """The state for torch.save; empty before the first row."""
        return {"rows": self.rows()} if self._parts else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state that `state_dict` returned."""
        self._parts = [state["rows"]] if state else []


def distributed() -> bool:
    """Whether this process belongs to a process group of torch.distributed."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gathered(value: Any, group: ProcessGroup | None) -> list[Any]:
    """Every rank's `value`, in the order of ranks; any object that pickles."""
    values = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(values, value, group=group)
    return values
