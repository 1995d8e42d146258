"""Sums of squares of feature rows about their mean, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastfid import backend
from fastfid.distances.rows import BLOCK_ROWS

# Columns of the triangle that torch multiplies at a time.  Measured at d = 2048: 128, 256 and 512 reach 66, 71 and 69%
# of the speed of a square product, counting one triangle.  Half a block per column is wasted on the diagonal.
COLUMNS = 256

# Rows in a block with gradient.  Merging two blocks costs d², which is negligible beside the 4096·d² of the product.
GRADIENT_BLOCK_ROWS = 4096


class RowBuffer:
    """Collects fewer than BLOCK_ROWS rows without rounding: in float32, or in float64 once a wider row has come."""

    def __init__(self) -> None:
        self._rows, self._filled = torch.empty(0, 0), 0

    def __len__(self) -> int:
        return self._filled

    def blocks(self, x: Tensor, device: torch.device) -> Iterator[Tensor]:
        """Add the rows of x [m, d]; yield each full block of BLOCK_ROWS rows on `device`, valid until the next call."""
        start = 0
        while start < len(x):
            part = x[start : start + BLOCK_ROWS - self._filled]
            start += len(part)
            if len(part) == BLOCK_ROWS and _usable_as_they_are(part, device):
                yield part
                continue
            self._append(part, device)
            if self._filled == BLOCK_ROWS:
                yield self.taken()

    def taken(self) -> Tensor:
        """The collected rows; the buffer is empty afterwards."""
        rows, self._filled = self._rows[: self._filled], 0
        return rows

    def _append(self, part: Tensor, device: torch.device) -> None:
        dtype = torch.float64 if part.dtype == torch.float64 else torch.float32  # float32 holds narrower types exactly
        if not len(self._rows):
            self._rows = torch.empty(BLOCK_ROWS, part.shape[1], dtype=dtype, device=device)
        if dtype == torch.float64:
            self._rows = self._rows.to(dtype)
        self._rows[self._filled : self._filled + len(part)] = part
        self._filled += len(part)


def _usable_as_they_are(rows: Tensor, device: torch.device) -> bool:
    return rows.device == device and rows.dtype in (torch.float32, torch.float64) and rows.is_contiguous()


def block_mean(rows: Tensor) -> Tensor:
    """Mean of the rows [m, d] of a block, float64 [d]."""
    kernels = backend.cpu_kernels(rows.device)
    if kernels is None:
        return rows.to(torch.float64).mean(dim=0)
    return torch.from_numpy(kernels.column_sums(rows.numpy(), torch.get_num_threads())) / len(rows)


def add_scatter(cov: Tensor, rows: Tensor, mean: Tensor, extra: Tensor, alpha: float, beta: float) -> None:
    """Upper triangle of cov ← beta·cov + alpha·(Σ (x − mean)(x − mean)ᵀ + extra·extraᵀ); the lower one is undefined."""
    kernels = backend.cpu_kernels(cov.device)
    if kernels is not None:
        arrays = (t.numpy() for t in (cov, rows, mean, extra))
        kernels.add_scatter(*arrays, alpha, beta, torch.get_num_threads())
        return
    centred = torch.cat([rows - mean, extra[None]])
    for start in range(0, len(cov), COLUMNS):
        stop = min(start + COLUMNS, len(cov))
        cov[:stop, start:stop].addmm_(centred[:, :stop].T, centred[:, start:stop], alpha=alpha, beta=beta)


def mirror_triangle(cov: Tensor) -> None:
    """Copy the upper triangle of cov [d, d] to the lower one, square by square to stay in cache."""
    for start in range(0, len(cov), COLUMNS):
        rows = slice(start, min(start + COLUMNS, len(cov)))
        cov[rows, rows] = cov[rows, rows].triu() + cov[rows, rows].triu(1).T
        for right in range(rows.stop, len(cov), COLUMNS):
            columns = slice(right, min(right + COLUMNS, len(cov)))
            cov[columns, rows] = cov[rows, columns].T


def moments_with_gradient(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and covariance of x [n ≥ 1, d], differentiable."""
    first, *others = x.split(GRADIENT_BLOCK_ROWS)
    moments = _block_moments(first)
    for block in others:
        moments = combine(*moments, *_block_moments(block))
    return moments


def _block_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Moments of one block about its own mean; a second pass removes the rounding error of that mean."""
    n = len(x)
    x = x.to(torch.float64)
    mean = x.mean(dim=0)
    centred = x - mean
    residue = centred.mean(dim=0)  # zero up to rounding
    scatter = centred.T @ centred - n * torch.outer(residue, residue)
    return n, mean + residue, scatter / max(n - 1, 1)


def combine(
    n_a: int, mean_a: Tensor, cov_a: Tensor, n_b: int, mean_b: Tensor, cov_b: Tensor
) -> tuple[int, Tensor, Tensor]:
    """S = S_a + S_b + (n_a n_b / n) δδᵀ with δ = μ_b − μ_a (Chan, Golub & LeVeque 1983)."""
    n = n_a + n_b
    if n == 0:
        return 0, mean_a, cov_a
    delta = mean_b - mean_a
    mean = mean_a + delta * (n_b / n)
    scatter = max(n_a - 1, 0) * cov_a + max(n_b - 1, 0) * cov_b + (n_a * n_b / n) * torch.outer(delta, delta)
    return n, mean, scatter / max(n - 1, 1)
