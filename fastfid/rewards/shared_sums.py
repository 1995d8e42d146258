"""Sums of kernel values for several kernels of the same rows, whose matrix products are computed once.

KID and MMD of one network are computed for the same tensors, one after the other.  The first question computes the sums
of both, and the second one finds them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor

from fastfid.distances.kernel_sums import Kernel, sums_by_row

# Answers that are kept: those of a set with itself and with the real rows, and those of new rows with both.
KEPT = 4


class SharedSums:
    """Sums Σ_j k(x_i, y_j) for each of `kernels`, about one centre [d].

    kernels  those that share the products; with one of them nothing is kept
    """

    def __init__(self, kernels: list[Kernel], centre: Tensor):
        self.kernels, self.centre = kernels, centre
        # tensors with their versions → those tensors, so that their memory is not used again, and an answer
        self._sums: OrderedDict[Any, tuple[tuple[Tensor, Tensor], list[Tensor]]] = OrderedDict()
        self._copy: tuple[Any, Tensor, Tensor] | None = None

    def sums(self, kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
        """The sums [n] float64 of one of the kernels for rows x [n, d] and y [m, d]; where y is x, over j ≠ i."""
        key = _key(x), _key(y), x is y
        if len(self.kernels) == 1 or None in key:
            return sums_by_row(x, y, [kernel], self.centre)[0]
        index = next(i for i, other in enumerate(self.kernels) if other is kernel)
        if key in self._sums and len(self._sums[key][1]) > index:
            return self._sums[key][1][index]
        sums = sums_by_row(x, y, self.kernels, self.centre)
        self._sums[key] = (x, y), sums
        while len(self._sums) > KEPT:
            self._sums.popitem(last=False)
        return sums[index]

    def copy(self, rows: Tensor) -> Tensor:
        """A copy of rows [N, d] that no caller changes; the same copy for the same rows."""
        key = _key(rows)
        if len(self.kernels) == 1 or key is None:
            return rows.clone()
        if self._copy is None or self._copy[0] != key:
            self._copy = key, rows, rows.clone()
        return self._copy[2]


def _key(x: Tensor) -> tuple[Any, ...] | None:
    """A key of a tensor and its content, unique among tensors that exist at the same time; None if there is none."""
    if x.is_inference():  # an inference tensor does not count how often it was written to
        return None
    return x.data_ptr(), x.device, x.dtype, tuple(x.shape), x.stride(), x._version
