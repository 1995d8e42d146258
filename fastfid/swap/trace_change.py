"""What every route of equation 3 returns: the change of tr √, and how little a removal leaves.

Legend: as in swap/log_determinants.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REMAINING_STEPS = 3  # of inverse iteration, as in csrc/cpu/factor_kernel.h


class TraceChange(NamedTuple):
    """Δ of equation 3 and what the removal leaves.

    change     [b] float64
    remaining  [b] float64 smallest eigenvalue of I − G_rr at the first node; None where it is not known
    slope      [b, m_a, r] gradient ∂Δ/∂w_a, from the route that computes it too
    """

    change: Tensor
    remaining: Tensor | None = None
    slope: Tensor | None = None


def smallest_eigenvalue(lower: Tensor, failed: Tensor) -> Tensor:
    """Smallest eigenvalue [b] of L Lᵀ, from above, for factors L [b, n, n]; 0 where `failed` [b].

    Inverse iteration as in csrc/cpu/factor_kernel.h.
    """
    places = torch.arange(1, lower.shape[-1] + 1, dtype=lower.dtype, device=lower.device)
    # a start without symmetry: fractional parts of the golden ratio's multiples, at the squares 1, 4, 9 …
    x = (0.6180339887498949 * places.square()).remainder(1)[:, None].expand(len(lower), -1, 1)
    for _ in range(REMAINING_STEPS):
        x = torch.cholesky_solve(x / torch.linalg.vector_norm(x, dim=1, keepdim=True), lower)
    return torch.where(failed, 0.0, 1 / torch.linalg.vector_norm(x, dim=1)[:, 0])
