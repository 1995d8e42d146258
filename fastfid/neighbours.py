"""Precision, recall, density and coverage from exact nearest neighbours, a block of rows at a time.

Every score counts pairs with |x − y| inside a radius, and the radius is itself the distance to some neighbour.  Where
points coincide or distances tie (equal sets, a collapsed generator, integer features), the count hangs on the last
bit, and |x|² + |y|² − 2x·y does not have it.  So each pair is first judged by that matrix product, in float64 about the
real mean, whose error is bounded; pairs nearer to the radius than the bound are judged again by Σ(x − y)² of the
features as given, which does not depend on where a pair stands.  Radii are sums of the second kind, too.

Legend: x real [n, d], y generated [m, d]; k the neighbour whose distance is a point's radius, itself not counting.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
BLOCK_ROWS = 512  # rows of a distance block: 41 MB of float64 against 10,000 columns
BLOCK_COLUMNS = 2048  # columns centred in float64 at a time: 34 MB at d = 2048
PAIR_ELEMENTS = 1 << 21  # coordinates of pairs judged again, held at a time: 16 MiB of float64 an array
SPARE_NEIGHBOURS = 1  # recomputed beyond the k-th, lest rounding of the product push the true k-th out


def prdc(real: Tensor, generated: Tensor, nearest_k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage (Naeem et al. 2020) of real [n, d] and generated [m, d], strict `<`.

    precision  generated rows inside some real ball, part of m    density   balls around a generated row / k, mean
    recall     real rows inside some generated ball, part of n    coverage  real balls with a generated row, part of n

    Equal to prdc 0.2; any float dtype; ValueError if a side has no k-th neighbour.
    """
    return _scores(real, generated, nearest_k, operator.lt)


def precision_recall(real: Tensor, generated: Tensor, nearest_k: int = 3) -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of real [n, d] and generated [m, d], with `<=`.

    Equal to torch-fidelity's prc with input1 = generated and input2 = real; ValueError as in `prdc`.
    """
    scores = _scores(real, generated, nearest_k, operator.le)
    return {"precision": scores["precision"], "recall": scores["recall"]}


def _scores(real: Tensor, generated: Tensor, k: int, closer: Callable) -> dict[str, float]:
    """The four scores, `closer` deciding between a squared distance and a squared radius."""
    real, generated = _checked_pair(real, generated, k)
    centre = _mean(real)
    x, y = _points(real, centre), _points(generated, centre)
    radii_x, radii_y = _squared_radii(x, k), _squared_radii(y, k)

    in_real_ball = torch.zeros(len(y), dtype=torch.bool, device=x.centre.device)  # of each generated row
    in_generated_ball = torch.zeros(len(x), dtype=torch.bool, device=x.centre.device)  # of each real row
    covered = torch.zeros_like(in_generated_ball)
    pairs = 0  # (real ball, generated row) incidences
    for rows in _blocks(len(x), BLOCK_ROWS):
        squared = _squared_distances(x, rows, y)
        by_real = _inside(squared, radii_x[rows, None], x, rows, y, closer)
        by_generated = _inside(squared, radii_y[None, :], x, rows, y, closer)
        in_real_ball |= by_real.any(dim=0)
        covered[rows] = by_real.any(dim=1)  # the nearest generated row is inside iff any is
        in_generated_ball[rows] = by_generated.any(dim=1)
        pairs += int(by_real.sum())
    return {
        "precision": _part(in_real_ball),
        "recall": _part(in_generated_ball),
        "density": pairs / (k * len(y)),
        "coverage": _part(covered),
    }


# --- distances ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Points:
    """Features as given [n, d], the centre float64 [d] and squared norms float64 [n] about it."""

    features: Tensor
    centre: Tensor
    norms: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def centred(self, rows: slice) -> Tensor:
        return self.features[rows].to(torch.float64) - self.centre


def _points(features: Tensor, centre: Tensor) -> _Points:
    points = _Points(features, centre, torch.empty(0))
    norms = [points.centred(rows).square().sum(dim=1) for rows in _blocks(len(features), BLOCK_COLUMNS)]
    return _Points(features, centre, torch.cat(norms))


def _squared_distances(x: _Points, rows: slice, y: _Points) -> Tensor:
    """|x_i − y_j|² by |x|² + |y|² − 2x·y about the centre, float64 [rows, m], within `_product_error`."""
    left = x.centred(rows)
    squared = y.norms.repeat(len(left), 1)
    for columns in _blocks(len(y), BLOCK_COLUMNS):
        squared[:, columns].addmm_(left, y.centred(columns).T, alpha=-2)  # |y|² − 2x·y, in place
    return squared.add_(x.norms[rows, None])


def _product_error(x: _Points, y: _Points) -> float:
    """Bound on the difference of the two formulas for |x − y|².

    Each of |x|², |y|², 2x·y and Σ(x − y)² errs by at most d·ε/2 of its terms' absolute sum, together below
    2dε(|x|² + |y|²); the few roundings of centring and adding up are covered by d + 8.
    """
    return 2 * (x.features.shape[1] + 8) * EPS * (x.norms.max() + y.norms.max()).item()


def _squared_radii(x: _Points, k: int) -> Tensor:
    """Squared distance of every point to its k-th neighbour, float64 [n]."""
    candidates = min(k + 1 + SPARE_NEIGHBOURS, len(x))
    radii = []
    for rows in _blocks(len(x), BLOCK_ROWS):
        nearest = _squared_distances(x, rows, x).topk(candidates, dim=1, largest=False, sorted=False).indices
        own = torch.arange(len(x), device=nearest.device)[rows, None].expand_as(nearest)
        squared = _exact_squared(x, own.reshape(-1), x, nearest.reshape(-1)).view_as(nearest)
        radii.append(squared.sort(dim=1).values[:, k])  # column 0 is the point itself
    return torch.cat(radii)


def _inside(squared: Tensor, radii: Tensor, x: _Points, rows: slice, y: _Points, closer: Callable) -> Tensor:
    """bool [rows, m]: is the squared distance `closer` than the radius (broadcast)?  Close calls by exact sums."""
    error = _product_error(x, y)
    inside = squared < radii - error
    unsure = (squared <= radii + error) ^ inside
    if unsure.any():
        i, j = unsure.nonzero(as_tuple=True)
        exact = _exact_squared(x, i + rows.start, y, j)
        inside[i, j] = closer(exact, radii.expand_as(squared)[i, j])
    return inside


def _exact_squared(x: _Points, i: Tensor, y: _Points, j: Tensor) -> Tensor:
    """Σ (x_i − y_j)² of listed pairs, float64 [pairs], from the features as given: ties of integers stay ties."""
    step = max(1, PAIR_ELEMENTS // x.features.shape[1])
    sums = [
        (x.features[a].to(torch.float64) - y.features[b].to(torch.float64)).square().sum(dim=1)
        for a, b in zip(i.split(step), j.split(step), strict=True)
    ]
    return torch.cat(sums)


# --- small things ------------------------------------------------------------------------------------------------


def _blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _mean(features: Tensor) -> Tensor:
    """Mean row in float64, [d], without a float64 copy of all rows."""
    sums = [features[rows].to(torch.float64).sum(dim=0) for rows in _blocks(len(features), BLOCK_COLUMNS)]
    return torch.stack(sums).sum(dim=0) / len(features)


def _part(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


def _checked_pair(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    real, generated = torch.as_tensor(real).detach(), torch.as_tensor(generated).detach()
    if k < 1:
        raise ValueError(f"nearest_k is {k}; it counts neighbours from 1")
    if real.device != generated.device:
        raise ValueError(f"real is on {real.device}, generated on {generated.device}; move one of them")
    for name, x in (("real", real), ("generated", generated)):
        if x.dim() != 2 or 0 in x.shape:
            raise ValueError(f"{name} features must be [n, d] with n, d > 0, got shape {tuple(x.shape)}")
        if len(x) <= k:
            raise ValueError(f"{len(x)} {name} rows have no neighbour number {k}; pass nearest_k={len(x) - 1} or less")
        if not torch.isfinite(x).all():
            row = int((~torch.isfinite(x).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name} feature row {row} holds NaN or infinity; check the extractor")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real has d = {real.shape[1]}, generated has d = {generated.shape[1]}; use one extractor for both"
        )
    return real, generated
