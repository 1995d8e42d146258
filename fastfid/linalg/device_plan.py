"""A weight plan as tensors on a device: the functions with their places, and one matrix from functions to nodes.

On a CPU the two levels of equation 6 save additions inside a core's cache.  A device combines the Gram matrices of all
functions to those of all nodes by one small product, so the levels are multiplied together here.

Legend: F functions of all slices, Q nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid.linalg.weight_plan import WeightPlan


class PlanSlice(NamedTuple):
    """A slice: positions begin … end − 1, functions one … last − 1, and the place of the first in `functions`."""

    begin: int
    end: int
    one: int
    last: int
    offset: int


@dataclass(frozen=True, eq=False)
class DevicePlan:
    """Equation 6 of linalg/weight_plan.py, 1/(λ_p + τ_q²) ≈ Σ_f combine[q, f] f(p), on one device.

    functions    flat, function after function, in the plan's dtype
    first, stop  [F] int32, the positions of each function: first to stop − 1
    offset       [F] int64, its place in `functions`
    combine      [Q, F] in the plan's dtype
    slices       of each slice
    """

    functions: Tensor
    first: Tensor
    stop: Tensor
    offset: Tensor
    combine: Tensor
    slices: tuple[PlanSlice, ...]

    @classmethod
    def of(cls, plan: WeightPlan, device: torch.device) -> DevicePlan:
        """The same plan on `device`."""
        first, stop = (np.repeat(at, plan.terms).astype(np.int32) for at in (plan.bounds[:-1], plan.bounds[1:]))
        lengths = (stop - first).astype(np.int64)
        offset = np.cumsum(lengths) - lengths
        ones = np.cumsum(plan.terms) - plan.terms
        slices = tuple(
            PlanSlice(int(begin), int(end), int(one), int(one + terms), int(offset[one]))
            for begin, end, one, terms in zip(plan.bounds[:-1], plan.bounds[1:], ones, plan.terms, strict=True)
        )

        def there(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return cls(there(plan.functions), there(first), there(stop), there(offset), there(_combined(plan)), slices)

    def __len__(self) -> int:
        """Number F of functions."""
        return len(self.first)

    def functions_of(self, part: PlanSlice) -> Tensor:
        """The functions of a slice, [terms, length]."""
        terms, length = part.last - part.one, part.end - part.begin
        return self.functions[part.offset : part.offset + terms * length].view(terms, length)


def _combined(plan: WeightPlan) -> npt.NDArray[Any]:
    """coefficientsᵀ @ mixes of every slice, [Q, F], multiplied in float64."""
    columns, mix_at, row, since = [], 0, 0, 0
    for end, group_terms in zip(plan.group_ends, plan.group_terms, strict=True):
        coefficients = plan.coefficients[row : row + group_terms].astype(np.float64)
        for terms in plan.terms[since:end]:
            mixes = plan.mixes[mix_at : mix_at + terms * group_terms].reshape(terms, group_terms)
            columns.append((mixes.astype(np.float64) @ coefficients).T)
            mix_at += terms * group_terms
        row, since = row + group_terms, end
    empty = np.zeros((plan.coefficients.shape[1], 0))
    combined: npt.NDArray[Any] = np.concatenate([empty, *columns], 1).astype(plan.coefficients.dtype)
    return combined
