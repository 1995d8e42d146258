"""The sliced Wasserstein distance of order 2, as the Monge Inception Distance (arXiv 2605.06797) scales it.

Sorting is the optimal transport in one dimension.  Along a unit direction θ, with the quantile functions F⁻¹ of the
generated projections and G⁻¹ of the real ones

    SW₂² = 3d · mean over θ of ∫₀¹ (F⁻¹ − G⁻¹)².

A shift of a whole set by δ costs 3|δ|², exactly where the number of directions is a multiple of d, because each d of
them are orthogonal.  Two sets with the same mean and covariance are at distance 0 only if they are equal along every
direction, so that a reward of moments cannot satisfy it.

For n real and N generated rows the integral is a sum: with the means q_k of G⁻¹ over ((k−1)/N, k/N) and sorted
projections u_k

    ∫ (F⁻¹ − G⁻¹)² = 1/N Σ_k (u_k − q_k)² + ∫ (G⁻¹)² − 1/N Σ_k q_k²,

and the last two terms cancel if n = N.

Legend: L directions, l of them in a chunk; x real [n, d], y generated [N, d].
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfid.distances.arguments import check_torch_seed, check_whole
from fastfid.distances.rows import BLOCK_ROWS, blocks, checked_pair, mean_row

DIRECTIONS = 1000  # of the paper
CHUNK = 4 << 20  # float64 numbers of one temporary array: 32 MiB
JACKKNIFE_DIRECTIONS = 200  # all directions see the same images, so their number hardly changes the spread
FACTOR = 3  # of the paper's scale 3d


def sliced_wasserstein(real: Tensor, generated: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Sliced Wasserstein distance of real [n, d] and generated [N, d], any float dtype; arXiv 2605.06797, 3d included.

    directions  1000  random unit vectors, orthogonal in blocks of d, fixed by `seed`

    ValueError for shapes that differ, values that are not finite, and less than one direction.
    """
    real, generated = checked_pair(real, generated)
    return SortedReal(real, directions, seed).distance(generated)


def orthogonal_directions(count: int, dim: int, seed: int) -> Tensor:
    """Unit directions float64 [d, L], uniform on the sphere; each block of d columns is orthogonal."""
    rng = torch.Generator().manual_seed(seed)
    normals = torch.randn(-(-count // dim), dim, dim, generator=rng, dtype=torch.float64)
    bases, triangles = torch.linalg.qr(normals)
    bases = bases * triangles.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform (Mezzadri 2007)
    directions: Tensor = bases.permute(1, 0, 2).reshape(dim, -1)[:, :count].contiguous()
    return directions


def project(rows: Tensor, centre: Tensor, directions: Tensor) -> Tensor:
    """Projections float64 [L, n] of rows [n, d] about `centre` [d]."""
    parts = [((part.to(torch.float64) - centre) @ directions).T for part in rows.split(BLOCK_ROWS)]
    return torch.cat(parts, dim=1)


def ascending(values: Tensor) -> Tensor:
    """The rows of values [l, n] sorted, which are overwritten in host memory.

    NumPy's sort has vector instructions.  1,000 rows of 5,000 float64 take an eighth of the time of torch's sort, which
    also finds the order.
    """
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    values.numpy().sort(axis=1)
    return values


def area_below(ordered: Tensor) -> Tensor:
    """∫ G⁻¹ up to j/n, float64 [l, n + 1], of sorted projections [l, n]."""
    zero = ordered.new_zeros(len(ordered), 1)
    return torch.cat([zero, ordered.cumsum(1)], dim=1) / ordered.shape[1]


def mean_quantiles(ordered: Tensor, area: Tensor, count: int) -> Tensor:
    """Means q [l, N], N = `count`, of the quantile function of sorted projections [l, n]; `area` of `area_below`."""
    n = ordered.shape[1]
    if count == n:
        return ordered
    places = torch.arange(count + 1, device=ordered.device) * n
    whole, part = places // count, (places % count).to(torch.float64) / count
    height = ordered[:, whole.clamp(max=n - 1)]
    return (area[:, whole] + part * height / n).diff(dim=1) * count


def check_squares(ordered: Tensor) -> None:
    """ValueError where squares of sorted projections [L, n] leave float64."""
    ends = torch.stack([ordered[:, 0], ordered[:, -1]])
    if not torch.isfinite((2 * ends).square().sum() * ordered.shape[1]):
        raise ValueError("squares of these features leave float64; divide the features by a common number")


def transport_cost(generated: Tensor, real: Tensor) -> Tensor:
    """∫ (F⁻¹ − G⁻¹)² [l] of sorted projections [l, N] and [l, n]."""
    if generated.shape[1] == real.shape[1]:  # q = G⁻¹, and the last two terms cancel
        return (generated - real).square().mean(1)
    quantiles = mean_quantiles(real, area_below(real), generated.shape[1])
    spread = real.square().mean(1) - quantiles.square().mean(1)
    return (generated - quantiles).square().mean(1) + spread


class SortedReal:
    """The real side of any number of sliced distances, projected and sorted once; 8·L·n bytes.

    real        [n, d]
    directions  1000  L
    seed        0     of the directions

    ValueError for less than one direction.
    """

    def __init__(self, real: Tensor, directions: int = DIRECTIONS, seed: int = 0):
        check_whole("directions", directions, 1, "a mean over directions needs at least 1")
        check_torch_seed(seed)
        self.centre, self.dim = mean_row(real), real.shape[1]
        self.directions = orthogonal_directions(directions, self.dim, seed).to(real.device)
        self._sorted = ascending(project(real, self.centre, self.directions))
        check_squares(self._sorted)

    def distance(self, generated: Tensor) -> float:
        """3d times the mean cost over the directions, of features [N, d]."""
        ordered = ascending(project(generated, self.centre, self.directions))
        check_squares(ordered)
        step = max(1, CHUNK // max(ordered.shape[1], self._sorted.shape[1]))
        costs = [transport_cost(ordered[of], self._sorted[of]) for of in blocks(len(ordered), step)]
        return FACTOR * self.dim * torch.cat(costs).mean().item()


def sliced_jackknife(real: Tensor, generated: Tensor, groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The distance without each of so many groups of generated rows, and of real rows: float64 [groups] each.

    Groups are random and of equal size; rows that remain belong to none.  JACKKNIFE_DIRECTIONS directions are enough to
    see how much the distances differ.  ValueError where a group would be empty.
    """
    directions = orthogonal_directions(JACKKNIFE_DIRECTIONS, real.shape[1], seed).to(real.device)
    centre, rng = mean_row(real), torch.Generator().manual_seed(seed)
    u, order_u = project(generated, centre, directions).sort(dim=1)
    g, order_g = project(real, centre, directions).sort(dim=1)
    group_of_u, group_of_g = (_groups(x.shape[1], groups, rng).to(x.device) for x in (u, g))
    scale = FACTOR * real.shape[1]
    without: list[list[float]] = [[], []]
    for group in range(groups):
        without[0].append(scale * transport_cost(_others(u, group_of_u[order_u], group), g).mean().item())
        without[1].append(scale * transport_cost(u, _others(g, group_of_g[order_g], group)).mean().item())
    generated_side, real_side = torch.tensor(without, dtype=torch.float64)
    return generated_side, real_side


def _groups(count: int, groups: int, rng: torch.Generator) -> Tensor:
    """Group of each row int64 [count], −1 for the rows that remain."""
    size = count // groups
    if size < 1 or groups < 2:
        raise ValueError(f"{count} rows do not make {groups} groups of which one can be left out; pass fewer groups")
    of_row = torch.full((count,), -1)
    of_row[torch.randperm(count, generator=rng)[: size * groups]] = torch.arange(groups).repeat_interleave(size)
    return of_row


def _others(ordered: Tensor, group_of: Tensor, group: int) -> Tensor:
    """Sorted projections [l, n − size] without those of a group, which has as many along each direction."""
    return ordered[group_of != group].view(len(ordered), -1)
