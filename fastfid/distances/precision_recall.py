"""Precision, recall, density and coverage from exact nearest neighbours, a tile of pairs at a time.

Every score counts pairs with |x − y|² inside a squared radius, and the radius is itself the distance to some neighbour.
One matrix product of rows extended by two columns gives a lower bound of |x − y|² for every pair of a tile,

    [p, |p|² − s_p, 1] · [−2q, 1, |q|² − s_q] = |p − q|² − s_p − s_q ≤ |x − y|²,    p = x − c, q = y − c,

where s covers all rounding (`_error`), so two comparisons find the few pairs that may be inside.  Of those, pairs
whose upper bound is inside too are settled; the rest, where distances tie or nearly do (equal sets, a collapsed
generator, integer features), are judged by Σ(x − y)² in float64 of the features as given, which does not depend on
where a pair stands.  Radii are sums of that kind, too.  Products are made in float32, half the time of float64: its
bound is 2·10⁻⁴ of |p|² + |q|² at d = 2048, a sixtieth of the spread of distances between normal rows.  Tiles it leaves
open, and radii among too many near-ties, are made again in float64.

Work for n real, m generated rows: n² d + m² d for the radii (tiles of the symmetric products are made once) and
2 n m d for the products between the sets (made once for both directions).  Memory: a few tiles, whatever n and m.

Legend: x real [n, d], y generated [m, d]; k the neighbour whose distance is a point's radius, itself not counting.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.rows import blocks, checked_pair, mean_row
from fastfid.runtime.devices import full_float32

# Rows and columns of a tile: 4 MiB of float32 that stay in cache for the comparisons.  Measured at d = 2048, two cores:
# products of 1024² run at the speed of 2048², and the comparisons at three times its speed.
TILE = 1024
PANEL = 4  # rows of tiles that share each block of columns once it is converted: 4 × 8 MiB of float32 at d = 2048
BLOCK_ROWS = 512  # rows of a float64 block where radii are found row by row: 41 MB against 10,000 columns
PAIR_ELEMENTS = 1 << 18  # coordinates of pairs judged again, held at a time: 2 MiB of float64 an array
SPARE_NEIGHBOURS = 1  # recomputed beyond the k-th, lest rounding of the product push the true k-th out

# Σ(x − y)² of one pair takes as long as about 60 products of a float64 tile (measured at d = 2048: 4 µs, 70 ns), so
# beyond this part of its pairs a tile is cheaper to make again.
OPEN_PART = 1 / 64
# Candidates for the k nearest kept for a row, times k, before the rows with near-ties are thought too many.
CANDIDATES = 32
MIN_CANDIDATES = 1 << 20  # of all rows together: 20 MB, which no one misses

# Added to squared norms (of rows scaled to at most 1 a coordinate) before their part s is taken: what products lose by
# underflow, below d·2⁻¹⁴⁹ in float32, is far less than s then.
NORM_FLOOR = 2.0**-100

ADM_BATCH = 10_000  # rows and columns whose float16 distances ADM's evaluator checks together for overflow

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
    """What the four scores count.

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
            "precision": _part(self.around > 0),
            "recall": _part(self.in_generated_ball),
            "density": int(self.around.sum()) / (self.nearest_k * len(self.around)),
            "coverage": _part(self.within > 0),
        }


def ball_counts(real: Tensor, generated: Tensor, nearest_k: int = 5) -> BallCounts:
    """The counts behind `prdc`, row by row."""
    real, generated = _checked_pair(real, generated, nearest_k)
    with full_float32(real.device):  # no bound here covers products of TF32 or bfloat16
        return _ball_counts(real, generated, nearest_k, operator.lt)


def precision_recall(real: Tensor, generated: Tensor, nearest_k: int = 3, distances: str = "exact") -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of real [n, d] and generated [m, d], with `<=`.

    distances  "exact"  equal to torch-fidelity's prc with input1 = generated and input2 = real
               "adm"    squared distances in float16 as ADM's evaluator takes them (`_adm_squared_distances`)

    ValueError as in `prdc`, and for another name.
    """
    if distances not in DISTANCES:
        raise ValueError(f"unknown distances {distances!r}; choose one of {', '.join(DISTANCES)}")
    real, generated = _checked_pair(real, generated, nearest_k)
    with full_float32(real.device):
        if distances == "adm":
            return _adm_precision_recall(real, generated, nearest_k)
        scores = _ball_counts(real, generated, nearest_k, operator.le).scores()
    return {"precision": scores["precision"], "recall": scores["recall"]}


def _ball_counts(real: Tensor, generated: Tensor, k: int, closer: Callable) -> BallCounts:
    """The counts, `closer` deciding between a squared distance and a squared radius."""
    scale = _scale(real, generated)
    x, y = _Points(real, mean_row(real), scale), _Points(generated, mean_row(generated), scale)
    radii_x, radii_y = _squared_radii(x, k), _squared_radii(y, k)
    y = replace(y, centre=x.centre)
    limits_x, limits_y = _rounded_up(radii_x, x.dtype), _rounded_up(radii_y, x.dtype)

    around = torch.zeros(len(y), dtype=torch.int64, device=radii_x.device)
    in_generated_ball = torch.zeros(len(x), dtype=torch.bool, device=radii_x.device)
    within = torch.zeros(len(x), dtype=torch.int64, device=radii_x.device)
    for tile in _tiles(x, y):
        i, j, low = tile.pairs_within(limits_x[tile.rows, None])
        inside = _inside(tile, i, j, low, radii_x[i], closer)
        within += torch.bincount(i[inside], minlength=len(x))
        around += torch.bincount(j[inside], minlength=len(y))
        i, j, low = tile.pairs_within(limits_y[None, tile.columns])
        in_generated_ball[i[_inside(tile, i, j, low, radii_y[j], closer)]] = True
    return BallCounts(k, around, within, in_generated_ball)


def _inside(tile: _Tile, i: Tensor, j: Tensor, low: Tensor, radii: Tensor, closer: Callable) -> Tensor:
    """bool [pairs]: is |x_i − y_j|², at least `low`, `closer` than the pair's squared radius?"""
    inside = tile.upper(i, j, low) < radii
    unsure = (~inside).nonzero()[:, 0]
    if tile.x.dtype != torch.float64 and len(unsure) > OPEN_PART * tile.bounds.numel():
        precise = tile.in_float64()
        low = precise.bounds[i[unsure] - tile.rows.start, j[unsure] - tile.columns.start]
        inside[unsure] = precise.upper(i[unsure], j[unsure], low) < radii[unsure]
        unsure = unsure[(low <= radii[unsure]) & ~inside[unsure]]
    inside[unsure] = closer(_exact_squared(tile.x, i[unsure], tile.y, j[unsure]), radii[unsure])
    return inside


# --- radii -------------------------------------------------------------------------------------------------------


def _squared_radii(x: _Points, k: int) -> Tensor:
    """Squared distance of every point to its k-th neighbour, times scale², float64 [n]."""
    if x.dtype != torch.float64:
        candidates = _neighbour_candidates(x, k)
        if candidates is not None:
            return _radii_among(x, *candidates, k)
    return _radii_by_rows(x.in_float64, k)


def _neighbour_candidates(x: _Points, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pairs (i, j, lower bound) that hold every row's k nearest neighbours j; None if too many are near-ties.

    The k nearest among a row's own tile bound the k-th of all rows from above; then one triangle of the other tiles is
    made, and each gives candidates to its rows and to its columns.
    """
    most = max(MIN_CANDIDATES, CANDIDATES * k * len(x))
    limits = torch.empty(len(x), dtype=torch.float64, device=x.centre.device)
    found = []
    for tile in _tiles(x, x, lambda i, j: i == j):
        tile.bounds.fill_diagonal_(torch.inf)
        limits[tile.rows] = _upper_limit(tile, k)
        found.append(tile.pairs_within(_rounded_up(limits[tile.rows, None], x.dtype)))
        if sum(len(i) for i, *_ in found) > most:  # k a row and near-ties alone
            return None
    for tile in _tiles(x, x, lambda i, j: i < j):
        found.append(tile.pairs_within(_rounded_up(limits[tile.rows, None], x.dtype)))
        i, j, low = tile.pairs_within(_rounded_up(limits[None, tile.columns], x.dtype))
        found.append((j, i, low))
        if sum(len(i) for i, *_ in found) > most:
            found = [_tightened(x, found, limits, k)]
            if len(found[0][0]) > most / 2:
                return None
    return _tightened(x, found, limits, k)


def _upper_limit(tile: _Tile, k: int) -> Tensor:
    """Upper bound of each row's k-th smallest distance within its tile, float64 [rows]; infinite if it has fewer."""
    if tile.bounds.shape[1] <= k:  # one of them is the row itself
        return torch.full_like(tile.x.norms[tile.rows], torch.inf)
    low, columns = tile.bounds.topk(k, dim=1, largest=False, sorted=False)
    i = torch.arange(tile.rows.start, tile.rows.stop, device=columns.device)[:, None]
    return tile.upper(i, columns + tile.columns.start, low).amax(dim=1)


def _tightened(x: _Points, found: list, limits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs found so far without those that the others rule out; `limits` sinks to what they show."""
    i, j, low = (torch.cat(parts) for parts in zip(*found, strict=True))
    upper = low.double() + x.slack[i] * 2 + x.slack[j] * 2
    torch.minimum(limits, _kth_smallest(i, upper, k, len(x)), out=limits)
    kept = low <= limits[i]
    return i[kept], j[kept], low[kept]


def _radii_among(x: _Points, i: Tensor, j: Tensor, low: Tensor, k: int) -> Tensor:
    """The k-th smallest distance of each row i among its candidates, float64 [n].

    The k-th smallest lower and upper bounds enclose it.  Pairs wholly below are only counted; of the others, mostly the
    k-th neighbour alone, the distances are summed.
    """
    low = low.double()
    upper = low + 2 * (x.slack[i] + x.slack[j])
    below = upper < _kth_smallest(i, low, k, len(x))[i]
    rest = k - torch.bincount(i[below], minlength=len(x))
    i, j = i[~below], j[~below]
    return _kth_smallest(i, _exact_squared(x, i, x, j), rest, len(x))


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


def _radii_by_rows(x: _Points, k: int) -> Tensor:
    """The same from whole rows of float64 bounds: for points that tie within float32, or coincide."""
    candidates = min(k + 1 + SPARE_NEIGHBOURS, len(x))
    radii = []
    for rows in blocks(len(x), BLOCK_ROWS):
        left = x.left(rows)
        bounds = torch.cat([left @ x.right(columns).T for columns in blocks(len(x), TILE)], dim=1)
        nearest = bounds.topk(candidates, dim=1, largest=False, sorted=False).indices
        own = torch.arange(len(x), device=nearest.device)[rows, None].expand_as(nearest)
        squared = _exact_squared(x, own.reshape(-1), x, nearest.reshape(-1)).view_as(nearest)
        radii.append(squared.sort(dim=1).values[:, k])  # column 0 is the point itself
    return torch.cat(radii)


# --- distances ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Points:
    """Features as given [n, d] and their rows p = scale·(x − centre) in `dtype`, for matrix products."""

    features: Tensor
    centre: Tensor  # float64 [d]
    scale: float  # a power of two: multiplying by it rounds nothing
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def in_float64(self) -> _Points:
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
        """factor·(x − centre), rounded once, and two columns to fill, [rows, d + 2]."""
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
class _Tile:
    """Lower bounds of |x_i − y_j|²·scale² for the pairs of a block of rows and a block of columns."""

    x: _Points
    y: _Points
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

    def in_float64(self) -> _Tile:
        x, y = self.x.in_float64, self.y.in_float64
        return _Tile(x, y, self.rows, self.columns, x.left(self.rows) @ y.right(self.columns).T)


def _tiles(x: _Points, y: _Points, wanted: Callable[[int, int], bool] = lambda i, j: True) -> Iterator[_Tile]:
    """The tiles of all pairs, PANEL rows of tiles together; only those `wanted` by their two numbers."""
    panels = list(enumerate(_even_blocks(len(x), TILE)))
    for panel in (panels[start : start + PANEL] for start in range(0, len(panels), PANEL)):
        lefts = [(i, rows, x.left(rows)) for i, rows in panel]
        for j, columns in enumerate(_even_blocks(len(y), TILE)):
            asked = [(rows, left) for i, rows, left in lefts if wanted(i, j)]
            right = y.right(columns).T if asked else None
            for rows, left in asked:
                yield _Tile(x, y, rows, columns, left @ right)


def _error(d: int, dtype: torch.dtype) -> float:
    """e such that the product for rows p, q is within e(|p|² + |q|²) of |x − y|²·scale²; u is the unit roundoff.

    Rounding p and q once costs 2u(|p| + |q|)|p − q| ≤ 4u(|p|² + |q|²), a sum of d + 2 products in any order
    γ(2|p||q| + |p|² + |q|²) ≤ 2γ(|p|² + |q|²) with γ = (d + 2)u/(1 − (d + 2)u) (Higham 2002, section 3.1), and
    rounding the two norms u(|p|² + |q|²).
    """
    unit = torch.finfo(dtype).eps / 2
    return 2 * (d + 8) * unit / (1 - (d + 8) * unit)


def _exact_squared(x: _Points, i: Tensor, y: _Points, j: Tensor) -> Tensor:
    """Σ (x_i − y_j)²·scale² of listed pairs, float64 [pairs], of the features as given: ties of integers stay ties."""
    step = max(1, PAIR_ELEMENTS // x.features.shape[1])
    sums = [
        (x.features[a].to(torch.float64) - y.features[b].to(torch.float64)).mul_(x.scale).square_().sum(dim=1)
        for a, b in zip(i.split(step), j.split(step), strict=True)
    ]
    return torch.cat(sums)


# --- ADM's distances ---------------------------------------------------------------------------------------------


def _adm_precision_recall(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Precision and recall as ADM's evaluator (openai/guided-diffusion, evaluations/evaluator.py) counts them."""
    radii_x, radii_y = _adm_radii(real, k), _adm_radii(generated, k)
    in_real_ball = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    in_generated_ball = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, columns, squared in _adm_squared_distances(real, generated):
        in_real_ball[columns] |= (squared <= radii_x[rows, None]).any(dim=0)
        in_generated_ball[rows] |= (squared <= radii_y[None, columns]).any(dim=1)
    return {"precision": _part(in_real_ball), "recall": _part(in_generated_ball)}


def _adm_radii(x: Tensor, k: int) -> Tensor:
    """The entry after the k smallest of each row of squared distances, its own 0 among them, float32 [n]."""
    smallest = torch.full((len(x), k + 1), torch.inf, device=x.device)
    for rows, _, squared in _adm_squared_distances(x, x):
        together = torch.cat([smallest[rows], squared], dim=1)
        smallest[rows] = together.topk(k + 1, dim=1, largest=False).values
    return smallest[:, k]


def _adm_squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, float32 block) of max(|x|² − 2x·y + |y|², 0), features and every result rounded to float16.

    Where anything in a batch of ADM_BATCH² is not finite, all of it is computed in float32 instead, as there.  Sums are
    accumulated in float32 and rounded once, as cuBLAS does with matrices of float16; TensorFlow may round its norms
    otherwise by one unit in the last place, which depends on the machine there.
    """
    for rows in blocks(len(x), ADM_BATCH):
        for columns in blocks(len(y), ADM_BATCH):
            squared = _expanded_squared(x[rows].to(torch.float16), y[columns].to(torch.float16))
            if not torch.isfinite(squared).all():
                squared = _expanded_squared(x[rows].to(torch.float32), y[columns].to(torch.float32))
            for part in blocks(len(squared), BLOCK_ROWS):
                yield slice(rows.start + part.start, rows.start + part.stop), columns, squared[part].float()


def _expanded_squared(x: Tensor, y: Tensor) -> Tensor:
    """max(|x|² − 2x·y + |y|², 0) [n, m] in the dtype given, a block of rows at a time."""
    norms_x, norms_y = (side.square().float().sum(dim=1).to(side.dtype) for side in (x, y))
    squared = torch.empty(len(x), len(y), dtype=x.dtype, device=x.device)
    for rows in blocks(len(x), BLOCK_ROWS):
        products = (x[rows].float() @ y.float().T).to(x.dtype)
        squared[rows] = (norms_x[rows, None] - 2 * products + norms_y).clamp_(min=0)
    return squared


# --- small things ------------------------------------------------------------------------------------------------


def _even_blocks(n: int, most: int) -> list[slice]:
    """Blocks of nearly equal size, at most `most`."""
    count = math.ceil(n / most)
    edges = [n * block // count for block in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def _places(mask: Tensor) -> Tensor:
    """Flat positions of the true entries, int64; NumPy finds few among many five times as fast as torch."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero()[:, 0]


def _rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, never less."""
    rounded = x.to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.to(x.dtype) < x, up, rounded)


def _scale(*sets: Tensor) -> float:
    """The power of two that brings differences of any two features to 1 at most, lest squares overflow in float32."""
    largest = max(max(abs(end.item()) for end in torch.aminmax(features)) for features in sets)
    return math.ldexp(1.0, -math.frexp(largest)[1] - 1) if largest else 1.0


def _part(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


def _checked_pair(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"nearest_k is {k}; it counts neighbours from 1")
    real, generated = checked_pair(real, generated)
    for name, x in (("real", real), ("generated", generated)):
        if len(x) <= k:
            raise ValueError(f"{len(x)} {name} rows have no neighbour number {k}; pass nearest_k={len(x) - 1} or less")
    return real, generated
