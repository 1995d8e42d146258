"""The sliced Wasserstein distance as a set reward: the mean squared difference of sorted projections.

Along a direction θ let u_1 ≤ … ≤ u_N be the sorted projections of the set, and G⁻¹ the quantile function of the real
ones.  The optimal transport in one dimension sorts, so with the means q_k of G⁻¹ over ((k−1)/N, k/N)

    W₂² = 1/N Σ_k (u_k − q_k)² + V_N,      V_N = ∫ (G⁻¹)² − 1/N Σ_k q_k²,

for any number n of real images; q_k is the k-th sorted real projection and V_N = 0 if n = N.  The distance is d times
the mean over directions: a shift of the whole set by δ costs |δ|² on average, and exactly if the number of directions
is a multiple of d, because each d of them are orthogonal.

A row that is replaced by another moves the ranks between their places by one.  Prefix sums of the three costs
(u_k − q_{k−1})², (u_k − q_k)², (u_k − q_{k+1})² give every such change by a binary search.  Leaving one out takes two
prefix sums with the q of N − 1 rows.  Other candidates take one pass over the N rows for each direction.

Legend: as in rewards/protocol.py; L directions, l of them in a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastfid.distances.arguments import check_torch_seed, check_whole
from fastfid.distances.rows import blocks, mean_row
from fastfid.distances.sliced_wasserstein import (
    CHUNK,
    area_below,
    check_squares,
    mean_quantiles,
    orthogonal_directions,
    project,
)
from fastfid.rewards.checks import checked_candidates, checked_real, checked_set

DIRECTIONS = (
    512  # the standard deviation of the mean over directions falls as 1/√L; MIND takes 1,000 (arXiv 2605.06797)
)


class SlicedWassersteinReward:
    """Squared sliced Wasserstein distance of order 2 to real features [n, d], times d.

    directions  512  L, fixed by `seed`
    seed        0
    """

    def __init__(self, real: object, *, directions: int = DIRECTIONS, seed: int = 0, name: str = "sliced_wasserstein"):
        check_whole("directions", directions, 1, "a mean over directions needs at least 1")
        check_torch_seed(seed)
        self.name, self.real = name, checked_real(real)
        self.centre = mean_row(self.real)
        self.directions = orthogonal_directions(directions, self.real.shape[1], seed).to(self.real.device)
        self._sorted = self.project(self.real).sort(dim=1).values
        check_squares(self._sorted)
        self._area = area_below(self._sorted)

    def project(self, rows: Tensor) -> Tensor:
        """Projections float64 [L, n] of centred rows [n, d]."""
        return project(rows, self.centre, self.directions)

    def quantiles(self, count: int, of: slice) -> Tensor:
        """q [l, N] for N = `count`, along the directions `of`."""
        return mean_quantiles(self._sorted[of], self._area[of], count)

    def cost(self, projections: Tensor, quantiles: Tensor, of: slice) -> Tensor:
        """W₂² [l] of sorted projections [l, N] with quantiles [l, N] along the directions `of`."""
        return (projections - quantiles).square().mean(1) + self.spread(quantiles, of)

    def spread(self, quantiles: Tensor, of: slice) -> Tensor:
        """V_N [l] of quantiles [l, N] along the directions `of`."""
        return self._sorted[of].square().mean(1) - quantiles.square().mean(1)

    def prepare(self, rows: object, labels: object = None) -> SlicedSet:
        """The set of features [N, d], N ≥ 2; labels are not used."""
        return SlicedSet(self, checked_set(rows, self.real))


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some directions: their slice, sorted projections u, quantiles q and the ranks of the rows, each [l, N]."""

    of: slice
    sorted: Tensor
    quantiles: Tensor
    ranks: Tensor


class SlicedSet:
    """A set with its sorted projections; made by `SlicedWassersteinReward.prepare`."""

    def __init__(self, reward: SlicedWassersteinReward, rows: Tensor):
        self.reward, self.rows = reward, rows
        self._sorted, order = reward.project(rows).sort(dim=1)
        check_squares(self._sorted)
        places = torch.arange(len(rows), device=rows.device).expand_as(order)
        self._ranks = torch.empty_like(order).scatter_(1, order, places)

    @property
    def count(self) -> int:
        """Number N of images."""
        return len(self.rows)

    @property
    def _scale(self) -> float:
        """d/L."""
        return self.rows.shape[1] / len(self._sorted)

    def _chunks(self) -> Iterator[Chunk]:
        for of in blocks(len(self._sorted), max(1, CHUNK // self.count)):
            yield Chunk(of, self._sorted[of], self.reward.quantiles(self.count, of), self._ranks[of])

    @cached_property
    def distance(self) -> float:
        """d times the mean of W₂² over the directions."""
        costs = [self.reward.cost(chunk.sorted, chunk.quantiles, chunk.of) for chunk in self._chunks()]
        return self._scale * torch.cat(costs).sum().item()

    def change(self, removed: object, added: object, labels: object = None) -> Tensor:
        """Exact change for each candidate [B] float64; labels are not used."""
        removed, added = checked_candidates(removed, added, self.rows)
        sizes = removed.shape[1], added.shape[1]
        if sizes == (1, 0):
            return self._left_out[removed[:, 0]]
        new = self.reward.project(added.flatten(0, 1)).view(len(self._sorted), *added.shape[:2])
        change = new.new_zeros(len(removed))
        for chunk in self._chunks():
            z = new[chunk.of]
            if sizes == (1, 1):
                change += _single_swaps(chunk, removed[:, 0], z[:, :, 0].contiguous()).sum(0) / self.count
            else:
                change += self._swaps(chunk, removed, z)
        return self._scale * change

    def _swaps(self, chunk: Chunk, removed: Tensor, new: Tensor) -> Tensor:
        """Change of Σ_l W₂² [B] by the rows `removed` [B, m_r] and the new projections [l, B, m_a]."""
        final = self.count - removed.shape[1] + new.shape[2]
        quantiles = self.reward.quantiles(final, chunk.of)
        constant = self.reward.spread(quantiles, chunk.of) - self.reward.cost(chunk.sorted, chunk.quantiles, chunk.of)
        change = [
            _cost_of_swap(chunk, rows, z.sort(dim=1).values, quantiles)
            for rows, z in zip(removed, new.unbind(1), strict=True)
        ]
        return torch.stack(change) / final + constant.sum() if change else new.new_zeros(0)

    @cached_property
    def _left_out(self) -> Tensor:
        total = self._sorted.new_zeros(self.count)
        for chunk in self._chunks():
            quantiles = self.reward.quantiles(self.count - 1, chunk.of)
            below = _prefix((chunk.sorted[:, :-1] - quantiles).square())  # of the rows that keep their rank
            above = _prefix((chunk.sorted[:, 1:] - quantiles).square())  # of those that move down by one
            cost = (below + above[:, -1:] - above) / (self.count - 1)
            constant = self.reward.spread(quantiles, chunk.of)
            constant = constant - self.reward.cost(chunk.sorted, chunk.quantiles, chunk.of)
            total += (cost + constant[:, None]).gather(1, chunk.ranks).sum(0)
        return self._scale * total

    def leave_one_out(self) -> Tensor:
        """Exact change when one image is left out, for each of them [N] float64."""
        return self._left_out

    def gradient(self) -> Tensor:
        """∂ distance/∂ features [N, d] float64: 2d/(LN) Σ_θ (θ·x − q_rank) θ; it exists where no projections tie."""
        gradient = self._sorted.new_zeros(self.rows.shape)
        for chunk in self._chunks():
            apart = (chunk.sorted - chunk.quantiles).gather(1, chunk.ranks)
            gradient += apart.T @ self.reward.directions[:, chunk.of].T
        return gradient * (2 * self._scale / self.count)


def _cost_of_swap(chunk: Chunk, removed: Tensor, z: Tensor, quantiles: Tensor) -> Tensor:
    """Σ_l Σ_k (u'_k − q_k)², 0-d, of the set without its rows `removed` [m_r], with new sorted projections z."""
    count, gone = chunk.sorted.shape[1], chunk.ranks[:, removed]
    place = torch.searchsorted(chunk.sorted, z)  # rows below z
    shift = chunk.ranks.new_zeros(len(gone), count + 1)
    shift.scatter_add_(1, gone + 1, torch.full_like(gone, -1)).scatter_add_(1, place, torch.ones_like(place))
    rank = torch.arange(count, device=z.device) + shift.cumsum(1)[:, :count]
    rank = rank.clamp(max=quantiles.shape[1] - 1)  # those of removed rows are not used
    stay = (chunk.sorted - quantiles.gather(1, rank)).square_().scatter_(1, gone, 0.0)
    gone_below = torch.searchsorted(chunk.sorted.gather(1, gone).sort(dim=1).values, z)
    rank_of_new = place - gone_below + torch.arange(z.shape[1], device=z.device)
    return stay.sum() + (z - quantiles.gather(1, rank_of_new)).square_().sum()


def _single_swaps(chunk: Chunk, removed: Tensor, z: Tensor) -> Tensor:
    """Change of Σ_k (u_k − q_k)² [l, B] where row removed[b] makes room for the projections z [l, B]."""
    u, q = chunk.sorted, chunk.quantiles
    step = q.diff(dim=1)
    down = _prefix(-step * (q[:, 1:] + q[:, :-1] - 2 * u[:, 1:]))  # (u_k − q_{k−1})² − (u_k − q_k)², k ≥ 1
    up = _prefix(step * (q[:, 1:] + q[:, :-1] - 2 * u[:, :-1]))  # (u_k − q_{k+1})² − (u_k − q_k)², k ≤ N − 2
    old = chunk.ranks[:, removed]
    gone = u.gather(1, old)
    new = torch.searchsorted(u, z) - (gone < z).to(torch.int64)  # rank among the rows that stay
    moved_down = down.gather(1, new) - down.gather(1, old)
    moved_up = up.gather(1, old) - up.gather(1, new)
    moved = torch.where(new > old, moved_down, moved_up)
    return moved + (z - q.gather(1, new)).square() - (gone - q.gather(1, old)).square()


def _prefix(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, …, n entries of x [l, n]: [l, n + 1]."""
    return torch.cat([x.new_zeros(len(x), 1), x.cumsum(1)], dim=1)
