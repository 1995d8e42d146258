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
    dtype       float32  of the kept rows.  Rows are rounded to it first, so eviction removes the values that were added

    After every `size` evictions the moments are computed again from the rows, so rounding errors do not accumulate.
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
        """Moments of the rows in the window; they change with it, `copy()` to keep them."""
        return self._moments

    @property
    def rows(self) -> Tensor:
        """The rows in the window from the oldest to the newest, [n, d]."""
        return self._rows[: len(self)].roll(-self._oldest, dims=0)

    def add(self, x: Tensor) -> FeatureWindow:
        """Add the rows of x [m, d], remove the oldest ones, and return self; ValueError as for `FeatureMoments`."""
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
        """Largest error of the covariance by accumulated rounding, as a part of its largest entry."""
        fresh = self._afresh()
        scale = fresh.cov.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        return ((self._moments.cov - fresh.cov).abs().max() / scale).item()

    def state_dict(self) -> dict[str, Any]:
        """The rows from the oldest to the newest and `provenance`, for torch.save."""
        return {"rows": self.rows, "provenance": dict(self._moments.provenance)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the newest `size` rows of a `state_dict`; ValueError for another d."""
        self._moments.load_state_dict(FeatureMoments.empty(self._rows.shape[1], state["provenance"]).state_dict())
        self._oldest = self._evictions = 0
        self.add(state["rows"])

    def _afresh(self) -> FeatureMoments:
        return FeatureMoments.empty(self._rows.shape[1], self._moments.provenance, self._rows.device).update(self.rows)
