"""Kernels, and the sums of their values over pairs of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastfid.distances.rows import blocks

# Width of a block of kernel values.  Wider blocks waste more work on the diagonal of a triangle (a quarter for a subset
# of 1000 rows); narrower products are slower.  Measured at d = 2048 in float64 on two cores: products of 1000 rows by
# 128, 256 and 512 columns reach 75, 87 and 92% of the peak.
COLUMNS = 256

PANEL_BLOCKS = 16  # 4096 rows: 64 MiB at d = 2048, converted to float64 once for all columns; 8 MiB of values a block


@dataclass(frozen=True)
class Kernel:
    """k(x, y) computed from p·q and one number per row, so that kernels of the same rows share the matrix product.

    term    p float64 [..., n, d], c float64 [d] → float64 [..., n]
    values  p·q float64 [..., n, m], terms of x [..., n] and of y [..., m], out [..., n, m] → k(x_i, y_j) [..., n, m] in
            `out`, which may be p·q
    """

    term: Callable[[Tensor, Tensor], Tensor]
    values: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def between(self, x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
        """k(x_i, y_j) float64 [..., n, m] of rows of any float dtype about c = `centre`."""
        p, q = x.to(torch.float64) - centre, y.to(torch.float64) - centre
        products = p @ q.mT
        return self.values(products, self.term(p, centre), self.term(q, centre), products)


def sums_by_subsets(generated: Tensor, real: Tensor, drawn: tuple[Tensor, Tensor], kernel: Kernel) -> Sums:
    """The sums over each subset's pairs; the kernel values are computed for each subset separately."""
    sums = []
    for of_generated, of_real in zip(*drawn, strict=True):
        total = row_sums(generated[of_generated], real[of_real], kernel).total()
        sums.append(torch.stack([total.generated, total.real, total.between]))
    return Sums(*torch.stack(sums, dim=1))


def row_sums(generated: Tensor, real: Tensor, kernel: Kernel, diagonal: bool = False) -> RowSums:
    """For each row, the sum of the kernel over all its pairs; a row is paired with itself only if `diagonal`."""
    ((_, rows),) = sums_over_pairs(generated, real, [Reduction(kernel, by_row=True)], diagonal)
    assert rows is not None  # asked for by_row
    return rows


def sums_by_row(x: Tensor, y: Tensor, kernels: Sequence[Kernel], centre: Tensor) -> list[Tensor]:
    """Σ_j k(x_i, y_j) float64 [n] for each kernel k, of rows x [n, d] and y [m, d] about c = `centre`.

    Where y is x, over j ≠ i.  The kernels share the matrix products.
    """
    memory = _Memory(max(len(x), len(y)), centre, copies=len(kernels) > 1)
    reductions = [Reduction(kernel, by_row=True) for kernel in kernels]
    return [sums.rows for sums in _sums_of(x, y, centre, reductions, False, memory) if sums.rows is not None]


def subset_members(generated: Tensor, real: Tensor, drawn: tuple[Tensor, Tensor]) -> dict[int, Tensor]:
    """0/1 matrices Z of the subsets.  The sums over all subsets' pairs are diag(Zᵀ K Z), so K is computed once."""
    return {id(x): _membership(rows, len(x)) for x, rows in zip((generated, real), drawn, strict=True)}


def _membership(drawn: Tensor, n: int) -> Tensor:
    """float64 [n, S], 1 where row i belongs to subset s."""
    return torch.zeros(n, len(drawn), dtype=torch.float64, device=drawn.device).scatter_(0, drawn.T, 1.0)


def polynomial_kernel(degree: int, gamma: float, coef: float) -> Kernel:
    """k(x, y) = (γ x·y + coef)^degree, with x·y = p·q + (p·c + |c|²/2) + (q·c + |c|²/2)."""

    def term(p: Tensor, centre: Tensor) -> Tensor:
        products: Tensor = p @ centre
        return products.add_(centre.square().sum() / 2).mul_(gamma).add_(coef / 2)

    def values(products: Tensor, of_x: Tensor, of_y: Tensor, out: Tensor) -> Tensor:
        shifted = torch.add(of_x[..., None], products, alpha=gamma, out=out)
        return shifted.add_(of_y[..., None, :]).pow_(degree)

    return Kernel(term, values)


def gaussian_kernel(sigma: float) -> Kernel:
    """k(x, y) = exp(−|x − y|²/2σ²), with −|x − y|²/2 = p·q − |p|²/2 − |q|²/2."""

    def term(p: Tensor, centre: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(p, dim=-1)
        return norms.square_().div_(-2 * sigma**2)

    def values(products: Tensor, of_x: Tensor, of_y: Tensor, out: Tensor) -> Tensor:
        shifted = torch.add(of_x[..., None], products, alpha=sigma**-2, out=out)
        return shifted.add_(of_y[..., None, :]).exp_()

    return Kernel(term, values)


@dataclass(frozen=True)
class Reduction:
    """A kernel and the pairs over which it is summed.

    members  float64 [n, S] by id of each set, 1 where row i belongs to subset s, or None
    by_row   whether to keep the sum of each row as well
    """

    kernel: Kernel
    members: dict[int, Tensor] | None = None
    by_row: bool = False


@dataclass(frozen=True)
class Sums:
    """Sums of a kernel over the pairs of each subset, [S]: within generated rows, within real rows, and between."""

    generated: Tensor
    real: Tensor
    between: Tensor


@dataclass(frozen=True)
class RowSums:
    """Sums of a kernel for each row, float64: over the other rows of its set, and over all rows of the other set.

    generated, generated_to_real  [m]
    real, real_to_generated       [n]
    """

    generated: Tensor
    real: Tensor
    generated_to_real: Tensor
    real_to_generated: Tensor

    def total(self) -> Sums:
        """The sums over all pairs, 0-d."""
        return Sums(self.generated.sum(), self.real.sum(), self.generated_to_real.sum())


class _Accumulators:
    """The running sums of one reduction over the pairs (x_i, y_j).  If y is x, each pair is visited once."""

    def __init__(self, reduction: Reduction, x: Tensor, y: Tensor):
        zeros = partial(torch.zeros, dtype=torch.float64, device=x.device)
        self.kernel, self._symmetric = reduction.kernel, y is x
        members = reduction.members
        self._members = None if members is None else (members[id(x)], members[id(y)])
        self.subsets: Tensor | None = None if members is None else zeros(members[id(x)].shape[1])
        self.rows: Tensor | None = zeros(len(x)) if reduction.by_row else None
        self.columns = self.rows if self._symmetric else zeros(len(y)) if reduction.by_row else None

    def add(self, rows: slice, columns: slice, values: Tensor, above: int) -> None:
        """Add values [rows, columns].  If y is x, each value of the first `above` rows counts for two pairs."""
        if self._members is not None and self.subsets is not None:
            of_row = (values @ self._members[1][columns]).mul_(self._members[0][rows])
            self.subsets += of_row.sum(dim=0)
            if self._symmetric:
                self.subsets += of_row[:above].sum(dim=0)
        if self.rows is not None and self.columns is not None:
            self.rows[rows] += values.sum(dim=1)
            self.columns[columns] += (values[:above] if self._symmetric else values).sum(dim=0)


def sums_over_pairs(
    generated: Tensor, real: Tensor, reductions: list[Reduction], diagonal: bool = False
) -> list[tuple[Sums | None, RowSums | None]]:
    """For each reduction, the sums over pairs within the generated rows, within the real rows, and between them.

    A row is paired with itself only if `diagonal`.
    """
    centre = _common_mean(real, generated)
    memory = _Memory(max(len(real), len(generated)), centre, copies=len(reductions) > 1)
    sides = (generated, generated), (real, real), (generated, real)
    within_generated, within_real, between = (_sums_of(x, y, centre, reductions, diagonal, memory) for x, y in sides)
    found = list(zip(within_generated, within_real, between, strict=True))
    return [(_of_subsets(*parts), _of_rows(*parts)) for parts in found]


def _of_subsets(generated: _Accumulators, real: _Accumulators, between: _Accumulators) -> Sums | None:
    if generated.subsets is None or real.subsets is None or between.subsets is None:
        return None
    return Sums(generated.subsets, real.subsets, between.subsets)


def _of_rows(generated: _Accumulators, real: _Accumulators, between: _Accumulators) -> RowSums | None:
    if generated.rows is None or real.rows is None or between.rows is None or between.columns is None:
        return None
    return RowSums(generated.rows, real.rows, between.rows, between.columns)


def _sums_of(
    x: Tensor, y: Tensor, centre: Tensor, reductions: list[Reduction], diagonal: bool, memory: _Memory
) -> list[_Accumulators]:
    """The sums of each reduction over all pairs (x_i, y_j).  A row is paired with itself only if `diagonal`."""
    sums = [_Accumulators(reduction, x, y) for reduction in reductions]
    for panel in blocks(len(x), PANEL_BLOCKS * COLUMNS):
        p = _centred(x[panel], centre, memory.panel)
        of_rows = [each.kernel.term(p, centre) for each in sums]
        for columns in blocks(len(y), COLUMNS):
            # If y is x, only pairs with i ≤ j are needed; the squares on the diagonal are computed whole.
            stop = min(panel.stop, columns.stop) if y is x else panel.stop
            if stop <= panel.start:
                continue
            rows, q = slice(panel.start, stop), _centred(y[columns], centre, memory.columns)
            above = max(0, columns.start - panel.start)  # rows above the square on the diagonal
            products = torch.mm(p[: stop - panel.start], q.T, out=_room(memory.products, stop - panel.start, len(q)))
            for of_row, each in zip(of_rows, sums, strict=True):
                spare = None if each is sums[-1] else memory.copy  # the last kernel may overwrite the products
                out = products if spare is None else _room(spare, *products.shape)
                values = each.kernel.values(products, of_row[: stop - panel.start], each.kernel.term(q, centre), out)
                if y is x and not diagonal:
                    values[above:].fill_diagonal_(0)
                each.add(rows, columns, values, above)
    return sums


class _Memory:
    """Buffers that are reused for every block.

    The system hands out new memory page by page.  With new buffers, converting rows took 0.9 s instead of 0.3 s
    (n = m = 4000, d = 2048, one core).
    """

    def __init__(self, rows: int, centre: Tensor, copies: bool):
        panel, width = min(rows, PANEL_BLOCKS * COLUMNS), min(rows, COLUMNS)
        self.panel = centre.new_empty(panel, len(centre))
        self.columns = centre.new_empty(width, len(centre))
        self.products = centre.new_empty(panel * width)
        self.copy = torch.empty_like(self.products) if copies else None


def _centred(x: Tensor, centre: Tensor, memory: Tensor) -> Tensor:
    """x − c in float64, in the first rows of `memory`."""
    return memory[: len(x)].copy_(x).sub_(centre)


def _room(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """The beginning of a buffer as [rows, columns]."""
    return buffer[: rows * columns].view(rows, columns)


def _common_mean(*sets: Tensor) -> Tensor:
    """Mean of the rows of all sets, float64 [d], without a float64 copy of them."""
    sums = [x[rows].to(torch.float64).sum(dim=0) for x in sets for rows in blocks(len(x), COLUMNS)]
    return torch.stack(sums).sum(dim=0) / sum(len(x) for x in sets)
