"""The newest feature rows and their moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.identity import Provenance


class FeatureWindow:
    """The newest `size` feature rows [n ≤ size, d] and their moments, kept as rows come and go.

    size        rows kept
    dim         d
    dtype       float32  of the rows kept, to which rows are rounded as they come, so that what leaves is what came

    After every `size` evictions the moments are made afresh from the rows, so rounding never adds up over more.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        provenance: Provenance | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        if size < 1:
            raise ValueError(f"size is {size}; a window keeps at least 1 row")
        self._rows = torch.zeros(size, dim, dtype=dtype, device=device)
        self._moments = FeatureMoments.empty(dim, provenance, device)
        self._oldest = self._evictions = 0

    def __len__(self) -> int:
        return self._moments._known_count()

    @property
    def size(self) -> int:
        """Most rows kept."""
        return len(self._rows)

    @property
    def moments(self) -> FeatureMoments:
        """Moments of the rows in the window, which follow it; `copy()` them to keep."""
        return self._moments

    @property
    def rows(self) -> Tensor:
        """The rows in the window from the oldest to the newest, [n, d]."""
        return self._rows[: len(self)].roll(-self._oldest, dims=0)

    def add(self, x: Tensor) -> FeatureWindow:
        """Add the rows of x [m, d], the oldest making room, and return self; ValueError as for `FeatureMoments`."""
        x = self._moments.checked_rows(x).detach().to(self._rows)[-self.size :]
        places = (self._oldest + len(self) + torch.arange(len(x), device=x.device)) % self.size
        leaving = max(0, len(self) + len(x) - self.size)
        self._moments.evict(self._rows[places[len(x) - leaving :]]).update(x)
        self._rows[places] = x
        self._oldest = (self._oldest + leaving) % self.size
        self._evictions += leaving
        if self._evictions >= self.size:
            self._moments.load_state_dict(self._afresh().state_dict())
            self._evictions = 0
        return self

    def drift(self) -> float:
        """Largest difference of the moments from those of the rows made afresh, as part of the largest covariance."""
        fresh = self._afresh()
        scale = fresh.cov.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        return ((self._moments.cov - fresh.cov).abs().max() / scale).item()

    def state_dict(self) -> dict[str, Any]:
        """The rows from the oldest to the newest and `provenance`, for torch.save."""
        return {"rows": self.rows, "provenance": dict(self._moments.provenance)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold the rows that `state_dict` described, the newest `size` of them; ValueError for another d."""
        self._moments.load_state_dict(FeatureMoments.empty(self._rows.shape[1], state["provenance"]).state_dict())
        self._oldest = self._evictions = 0
        self.add(state["rows"])

    def _afresh(self) -> FeatureMoments:
        return FeatureMoments.empty(self._rows.shape[1], self._moments.provenance, self._rows.device).update(self.rows)
