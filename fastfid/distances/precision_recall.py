"""Precision, recall, density and coverage from exact nearest neighbours.

Each score counts pairs of rows with |x − y|² inside a squared radius.  A radius is the distance of a row to its k-th
neighbour (kth_neighbour.py).  pair_tiles.py bounds |x − y|² from below and above for every pair, from float32 matrix
products:

1. A pair whose lower bound is outside the radius is outside.  This settles most pairs.
2. A pair whose upper bound is inside is inside.
3. The rest are near-ties, as in equal sets, a collapsed generator or integer features.  They are computed again as
   Σ(x − y)² in float64 from the given features.  The result does not depend on the position of a pair.

A tile with many pairs of the third kind is first computed again in float64.

Work for n real and m generated rows: n² d + m² d for the radii and 2 n m d for the products between the sets, which
serve both directions.  Memory: a few tiles, for any n and m.

Legend: x real [n, d], y generated [m, d]; k is the neighbour that defines the radius, and a row is not its own
neighbour.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastfid.distances.adm_neighbours import adm_precision_recall
from fastfid.distances.arguments import check_choice, check_neighbour
from fastfid.distances.kth_neighbour import squared_radii
from fastfid.distances.pair_tiles import Points, Tile, common_scale, exact_squared, rounded_up, tiles
from fastfid.distances.rows import checked_pair, mean_row, share
from fastfid.runtime.devices import full_float32

# Share of near-ties beyond which a tile is computed again in float64.  One pair's Σ(x − y)² takes as long as about 60
# entries of a float64 tile (measured at d = 2048: 4 µs and 70 ns).
OPEN_PART = 1 / 64


DISTANCES = ("exact", "adm")


def prdc(real: Tensor, generated: Tensor, nearest_k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage (Naeem et al. 2020) of real [n, d] and generated [m, d], strict `<`.

    precision  generated rows inside some real ball, part of m    density   balls around a generated row / k, mean
    recall     real rows inside some generated ball, part of n    coverage  real balls with a generated row, part of n

    Equal to prdc 0.2; any float dtype; ValueError if a side has no k-th neighbour.
    """
    return ball_counts(real, generated, nearest_k).scores()


@dataclass(frozen=True)
class BallCounts:
    """The counts behind the four scores.

    around             real balls around each generated row, int64 [m]
    within             generated rows within each real row's ball, int64 [n]
    in_generated_ball  whether each real row lies in some generated ball, bool [n]
    """

    nearest_k: int
    around: Tensor
    within: Tensor
    in_generated_ball: Tensor

    def scores(self) -> dict[str, float]:
        """Precision, recall, density and coverage."""
        return {
            "precision": share(self.around > 0),
            "recall": share(self.in_generated_ball),
            "density": int(self.around.sum()) / (self.nearest_k * len(self.around)),
            "coverage": share(self.within > 0),
        }


class RealBalls:
    """The real side of `prdc`, for any number of generated sets: its radii are computed once.

    real       [n, d]
    nearest_k  5

    ValueError if it has no k-th neighbour.
    """

    def __init__(self, real: Tensor, nearest_k: int = 5):
        self.real, _ = _checked_pair(real, real, nearest_k)
        self.nearest_k = nearest_k
        with full_float32(self.real.device):
            scale = common_scale(self.real)
            # a scale is a power of two, so the radii are the same to the last bit under every other one
            self._radii = squared_radii(Points(self.real, mean_row(self.real), scale), nearest_k) / scale**2

    def prdc(self, generated: Tensor) -> dict[str, float]:
        """`prdc` of generated [m, d]; ValueError for features that do not fit the real ones."""
        real, generated = _checked_pair(self.real, generated, self.nearest_k)
        with full_float32(real.device):
            return _ball_counts(real, generated, self.nearest_k, operator.lt, self._radii).scores()


def ball_counts(real: Tensor, generated: Tensor, nearest_k: int = 5) -> BallCounts:
    """The counts behind `prdc`, row by row."""
    real, generated = _checked_pair(real, generated, nearest_k)
    with full_float32(real.device):  # the bounds do not hold for products in TF32 or bfloat16
        return _ball_counts(real, generated, nearest_k, operator.lt)


def precision_recall(real: Tensor, generated: Tensor, nearest_k: int = 3, distances: str = "exact") -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of real [n, d] and generated [m, d], with `<=`.

    distances  "exact"  equal to torch-fidelity's prc with input1 = generated and input2 = real
               "adm"    squared distances in float16 as ADM's evaluator takes them (adm_neighbours.py)

    ValueError as in `prdc`, and for another name.
    """
    check_choice("distances", distances, DISTANCES)
    real, generated = _checked_pair(real, generated, nearest_k)
    with full_float32(real.device):
        if distances == "adm":
            return adm_precision_recall(real, generated, nearest_k)
        scores = _ball_counts(real, generated, nearest_k, operator.le).scores()
    return {"precision": scores["precision"], "recall": scores["recall"]}


def _ball_counts(
    real: Tensor,
    generated: Tensor,
    k: int,
    closer: Callable[[Tensor, Tensor], Tensor],
    radii: Tensor | None = None,
) -> BallCounts:
    """The counts; `closer` compares a squared distance with a squared radius; `radii` are the squared real ones."""
    scale = common_scale(real, generated)
    x, y = Points(real, mean_row(real), scale), Points(generated, mean_row(generated), scale)
    radii_x = squared_radii(x, k) if radii is None else radii * scale**2
    radii_y = squared_radii(y, k)
    y = replace(y, centre=x.centre)
    limits_x, limits_y = rounded_up(radii_x, x.dtype), rounded_up(radii_y, x.dtype)

    around = torch.zeros(len(y), dtype=torch.int64, device=radii_x.device)
    in_generated_ball = torch.zeros(len(x), dtype=torch.bool, device=radii_x.device)
    within = torch.zeros(len(x), dtype=torch.int64, device=radii_x.device)
    for tile in tiles(x, y):
        i, j, low = tile.pairs_within(limits_x[tile.rows, None])
        inside = _inside(tile, i, j, low, radii_x[i], closer)
        within += torch.bincount(i[inside], minlength=len(x))
        around += torch.bincount(j[inside], minlength=len(y))
        i, j, low = tile.pairs_within(limits_y[None, tile.columns])
        in_generated_ball[i[_inside(tile, i, j, low, radii_y[j], closer)]] = True
    return BallCounts(k, around, within, in_generated_ball)


def _inside(
    tile: Tile, i: Tensor, j: Tensor, low: Tensor, radii: Tensor, closer: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """bool [pairs]: is |x_i − y_j|², at least `low`, `closer` than the pair's squared radius?"""
    inside = tile.upper(i, j, low) < radii
    unsure = (~inside).nonzero()[:, 0]
    if tile.x.dtype != torch.float64 and len(unsure) > OPEN_PART * tile.bounds.numel():
        precise = tile.in_float64()
        low = precise.bounds[i[unsure] - tile.rows.start, j[unsure] - tile.columns.start]
        inside[unsure] = precise.upper(i[unsure], j[unsure], low) < radii[unsure]
        unsure = unsure[(low <= radii[unsure]) & ~inside[unsure]]
    inside[unsure] = closer(exact_squared(tile.x, i[unsure], tile.y, j[unsure]), radii[unsure])
    return inside


def _checked_pair(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    check_neighbour(k)
    real, generated = checked_pair(real, generated)
    for name, x in (("real", real), ("generated", generated)):
        if len(x) <= k:
            raise ValueError(f"{len(x)} {name} rows have no neighbour number {k}; pass nearest_k={len(x) - 1} or less")
    return real, generated
