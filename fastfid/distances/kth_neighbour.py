"""The distance of every row to its k-th neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfid.distances.pair_tiles import TILE, Points, Tile, exact_squared, rounded_up, tiles
from fastfid.distances.rows import blocks

BLOCK_ROWS = 512  # rows of a float64 block in `_radii_by_rows`: 41 MB with 10,000 columns

SPARE_NEIGHBOURS = 1  # recomputed beyond the k-th, because rounding may have moved the true k-th one place further

# Most candidates kept per row, in units of k.  Beyond it there are too many near-ties, and float64 rows are used.
CANDIDATES = 32

MIN_CANDIDATES = 1 << 20  # of all rows together: 20 MB, which are always allowed


def squared_radii(x: Points, k: int) -> Tensor:
    """Squared distance of every point to its k-th neighbour, times scale², float64 [n]."""
    if x.dtype != torch.float64:
        candidates = _neighbour_candidates(x, k)
        if candidates is not None:
            return _radii_among(x, *candidates, k)
    return _radii_by_rows(x.in_float64, k)


def _neighbour_candidates(x: Points, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pairs (i, j, lower bound) that hold every row's k nearest neighbours j; None if too many are near-ties.

    The k nearest rows in a row's own tile give an upper bound of its radius.  Then one triangle of the other tiles is
    computed; each tile gives candidates for its rows and for its columns.
    """
    most = max(MIN_CANDIDATES, CANDIDATES * k * len(x))
    limits = torch.empty(len(x), dtype=torch.float64, device=x.centre.device)
    found = []
    for tile in tiles(x, x, lambda i, j: i == j):
        tile.bounds.fill_diagonal_(torch.inf)
        limits[tile.rows] = _upper_limit(tile, k)
        found.append(tile.pairs_within(rounded_up(limits[tile.rows, None], x.dtype)))
        if sum(len(i) for i, *_ in found) > most:  # this tile gave more than k per row: near-ties
            return None
    for tile in tiles(x, x, lambda i, j: i < j):
        found.append(tile.pairs_within(rounded_up(limits[tile.rows, None], x.dtype)))
        i, j, low = tile.pairs_within(rounded_up(limits[None, tile.columns], x.dtype))
        found.append((j, i, low))
        if sum(len(i) for i, *_ in found) > most:
            found = [_tightened(x, found, limits, k)]
            if len(found[0][0]) > most / 2:
                return None
    return _tightened(x, found, limits, k)


def _upper_limit(tile: Tile, k: int) -> Tensor:
    """Upper bound of each row's k-th smallest distance within its tile, float64 [rows]; infinite if it has fewer."""
    if tile.bounds.shape[1] <= k:  # one of them is the row itself
        return torch.full_like(tile.x.norms[tile.rows], torch.inf)
    low, columns = tile.bounds.topk(k, dim=1, largest=False, sorted=False)
    i = torch.arange(tile.rows.start, tile.rows.stop, device=columns.device)[:, None]
    return tile.upper(i, columns + tile.columns.start, low).amax(dim=1)


def _tightened(
    x: Points, found: list[tuple[Tensor, Tensor, Tensor]], limits: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs that can still be among the k nearest; lowers `limits` [n] to the upper bounds found so far."""
    i, j, low = (torch.cat(parts) for parts in zip(*found, strict=True))
    upper = low.double() + x.slack[i] * 2 + x.slack[j] * 2
    torch.minimum(limits, _kth_smallest(i, upper, k, len(x)), out=limits)
    kept = low <= limits[i]
    return i[kept], j[kept], low[kept]


def _radii_among(x: Points, i: Tensor, j: Tensor, low: Tensor, k: int) -> Tensor:
    """The k-th smallest distance of each row i among its candidates, float64 [n].

    The k-th smallest lower and upper bounds enclose it.  Pairs below the enclosure are only counted.  The distances of
    the others, mostly one per row, are computed exactly.
    """
    low = low.double()
    upper = low + 2 * (x.slack[i] + x.slack[j])
    below = upper < _kth_smallest(i, low, k, len(x))[i]
    rest = k - torch.bincount(i[below], minlength=len(x))
    i, j = i[~below], j[~below]
    return _kth_smallest(i, exact_squared(x, i, x, j), rest, len(x))


def _kth_smallest(i: Tensor, values: Tensor, k: int | Tensor, n: int) -> Tensor:
    """The k-th smallest (a number or one a row) of the values of each row i, [n]; infinite where a row has fewer."""
    order = values.argsort()
    order = order[i[order].argsort(stable=True)]  # by row, then by value
    counts = torch.bincount(i, minlength=n)
    place = counts.cumsum(0) - counts + k - 1
    kth = torch.full((n,), torch.inf, dtype=values.dtype, device=values.device)
    enough = counts >= k
    kth[enough] = values[order[place[enough]]]
    return kth


def _radii_by_rows(x: Points, k: int) -> Tensor:
    """Squared radii from whole rows of float64 bounds, for points that coincide or tie in float32."""
    candidates = min(k + 1 + SPARE_NEIGHBOURS, len(x))
    radii = []
    for rows in blocks(len(x), BLOCK_ROWS):
        left = x.left(rows)
        bounds = torch.cat([left @ x.right(columns).T for columns in blocks(len(x), TILE)], dim=1)
        nearest = bounds.topk(candidates, dim=1, largest=False, sorted=False).indices
        own = torch.arange(len(x), device=nearest.device)[rows, None].expand_as(nearest)
        squared = exact_squared(x, own.reshape(-1), x, nearest.reshape(-1)).view_as(nearest)
        radii.append(squared.sort(dim=1).values[:, k])  # column 0 is the point itself
    return torch.cat(radii)
