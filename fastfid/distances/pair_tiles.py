"""Lower and upper bounds of |x − y|² for all pairs of rows, a tile of pairs at a time.

One matrix product of rows extended by two columns gives a lower bound for every pair of a tile:

    [p, |p|² − s_p, 1] · [−2q, 1, |q|² − s_q] = |p − q|² − s_p − s_q ≤ |x − y|²,    p = x − c, q = y − c.

s bounds all rounding errors (`_error`), so lower bound + 2 (s_p + s_q) is an upper bound.  Products are computed in
float32, in half the time of float64.  At d = 2048 its s is 2·10⁻⁴ of |p|² + |q|²: a sixtieth of the spread of
distances between normal rows.

Legend: x [n, d], y [m, d] rows; c a common centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.rows import blocks

# Rows and columns of a tile: 4 MiB of float32, which stay in cache for the comparisons.  Measured at d = 2048 on two
# cores: products are as fast as with 2048², and comparisons three times as fast.
TILE = 1024

PANEL = 4  # rows of tiles that use a block of columns after its conversion: 4 × 8 MiB of float32 at d = 2048

PAIR_ELEMENTS = 1 << 18  # coordinates in one step of `exact_squared`: 2 MiB of float64 per array

# Added to squared norms of rows, which are scaled to coordinates of at most 1.  It keeps s far above what products lose
# by underflow, d·2⁻¹⁴⁹ in float32.
NORM_FLOOR = 2.0**-100


@dataclass(frozen=True)
class Points:
    """Features [n, d] and their rows p = scale·(x − centre) in `dtype`, for matrix products."""

    features: Tensor
    centre: Tensor  # float64 [d]
    scale: float  # a power of two: multiplying by it rounds nothing
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def in_float64(self) -> Points:
        """The same points, with products in float64."""
        return replace(self, dtype=torch.float64)

    @cached_property
    def norms(self) -> Tensor:
        """|p|², float64 [n]."""
        parts = (self._extended(rows, self.scale)[:, :-2] for rows in blocks(len(self), TILE))
        return torch.cat([torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in parts]).square()

    @cached_property
    def slack(self) -> Tensor:
        """s float64 [n]: the product for rows i and j errs by at most s_i + s_j."""
        return _error(self.features.shape[1], self.dtype) * (self.norms + NORM_FLOOR)

    def left(self, rows: slice) -> Tensor:
        """[p, |p|² − s, 1], [rows, d + 2]."""
        extended = self._extended(rows, self.scale)
        extended[:, -2] = self.norms[rows] - self.slack[rows]
        extended[:, -1] = 1
        return extended

    def right(self, rows: slice) -> Tensor:
        """[−2p, 1, |p|² − s], [rows, d + 2]."""
        extended = self._extended(rows, -2 * self.scale)
        extended[:, -2] = 1
        extended[:, -1] = self.norms[rows] - self.slack[rows]
        return extended

    def _extended(self, rows: slice, factor: float) -> Tensor:
        """factor·(x − centre), rounded once, with two more columns that the caller fills, [rows, d + 2]."""
        x = self.features[rows]
        fits = self.dtype == torch.float32 and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        x = x.to(torch.float32 if fits else torch.float64)
        extended = torch.empty(len(x), x.shape[1] + 2, dtype=self.dtype, device=x.device)
        if x.dtype == extended.dtype:
            torch.add(self.centre.to(x.dtype) * -factor, x, alpha=factor, out=extended[:, :-2])
        else:  # float64 features, rounded after they are centred
            extended[:, :-2] = torch.add(self.centre * -factor, x, alpha=factor)
        return extended


@dataclass(frozen=True)
class Tile:
    """Lower bounds of |x_i − y_j|²·scale² for the pairs of a block of rows and a block of columns."""

    x: Points
    y: Points
    rows: slice
    columns: slice
    bounds: Tensor

    def pairs_within(self, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """i, j int64 and lower bound of the pairs whose bound is no more than `limits` (broadcast)."""
        flat = _places(self.bounds <= limits)
        i = flat // self.bounds.shape[1]
        j = flat - i * self.bounds.shape[1]
        return i + self.rows.start, j + self.columns.start, self.bounds.view(-1)[flat]

    def upper(self, i: Tensor, j: Tensor, low: Tensor) -> Tensor:
        """Upper bounds of pairs with lower bound `low`, float64."""
        return low.double() + 2 * (self.x.slack[i] + self.y.slack[j])

    def in_float64(self) -> Tile:
        """The same tile with its bounds computed in float64."""
        x, y = self.x.in_float64, self.y.in_float64
        return Tile(x, y, self.rows, self.columns, x.left(self.rows) @ y.right(self.columns).T)


def tiles(x: Points, y: Points, wanted: Callable[[int, int], bool] = lambda i, j: True) -> Iterator[Tile]:
    """The tiles of all pairs for which wanted(row of tiles, column of tiles); PANEL rows of tiles at a time."""
    panels = list(enumerate(even_blocks(len(x), TILE)))
    for panel in (panels[start : start + PANEL] for start in range(0, len(panels), PANEL)):
        lefts = [(i, rows, x.left(rows)) for i, rows in panel]
        for j, columns in enumerate(even_blocks(len(y), TILE)):
            asked = [(rows, left) for i, rows, left in lefts if wanted(i, j)]
            if not asked:
                continue
            right = y.right(columns).T
            for rows, left in asked:
                yield Tile(x, y, rows, columns, left @ right)


def _error(d: int, dtype: torch.dtype) -> float:
    """e such that the product for rows p, q is within e(|p|² + |q|²) of |x − y|²·scale²; u is the unit roundoff.

    Rounding p and q once costs 2u(|p| + |q|)|p − q| ≤ 4u(|p|² + |q|²), a sum of d + 2 products in any order
    γ(2|p||q| + |p|² + |q|²) ≤ 2γ(|p|² + |q|²) with γ = (d + 2)u/(1 − (d + 2)u) (Higham 2002, section 3.1), and
    rounding the two norms u(|p|² + |q|²).
    """
    unit = torch.finfo(dtype).eps / 2
    return 2 * (d + 8) * unit / (1 - (d + 8) * unit)


def exact_squared(x: Points, i: Tensor, y: Points, j: Tensor) -> Tensor:
    """Σ (x_i − y_j)²·scale² of listed pairs, float64 [pairs], from the original features: integers tie exactly."""
    step = max(1, PAIR_ELEMENTS // x.features.shape[1])
    sums = [
        (x.features[a].to(torch.float64) - y.features[b].to(torch.float64)).mul_(x.scale).square_().sum(dim=1)
        for a, b in zip(i.split(step), j.split(step), strict=True)
    ]
    return torch.cat(sums)


def even_blocks(n: int, most: int) -> list[slice]:
    """Blocks of nearly equal size, at most `most`."""
    count = math.ceil(n / most)
    edges = [n * block // count for block in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def _places(mask: Tensor) -> Tensor:
    """Flat positions of the true entries, int64; on a CPU NumPy is five times as fast as torch if few are true."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero()[:, 0]


def rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded up to `dtype`."""
    rounded = x.to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.to(x.dtype) < x, up, rounded)


def common_scale(*sets: Tensor) -> float:
    """The power of two that scales differences of features to at most 1, so that squares do not overflow in float32."""
    largest = max(max(abs(end.item()) for end in torch.aminmax(features)) for features in sets)
    return math.ldexp(1.0, -math.frexp(largest)[1] - 1) if largest else 1.0
