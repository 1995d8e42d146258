"""The swap engine's results computed again from the features, without its algebra."""

import torch
from torch import Tensor

from fastfid.distances.real_side import PreparedMoments
from fastfid.linalg.units import in_unit, unit_of
from fastfid.runtime.devices import as_tensor
from fastfid.swap.checks import checked_swap
from fastfid.swap.engine import SwapEngine


def swap_change_ref(engine: SwapEngine, removed: object, added: object) -> Tensor:
    """`engine.change(removed, added)` from scratch: each changed set, its float64 covariance, its whole spectrum."""
    removed, added = as_tensor(removed, "removed"), as_tensor(added, "added")
    changes = []
    for rows_out, rows_in in zip(*checked_swap(removed, added, engine.reference), strict=True):
        kept = torch.ones(engine.count, dtype=torch.bool)
        kept[rows_out.cpu()] = False
        rows = torch.cat([engine.reference[kept.to(rows_out.device)].to(torch.float64), rows_in.to(torch.float64)])
        changes.append(_distance_ref(engine.real, rows) - _distance_ref(engine.real, engine.reference))
    return torch.stack(changes) if changes else engine.real.mean.new_zeros(0)


def _distance_ref(real: PreparedMoments, rows: Tensor) -> Tensor:
    """Equation 1 from the rows [n, d], 0-d float64."""
    rows = rows.to(torch.float64)
    cov = torch.atleast_2d(torch.cov(rows.T))
    unit = unit_of(real.moments.cov, cov)
    root = real.root * unit
    roots: Tensor = torch.linalg.eigvalsh(root @ in_unit(cov, unit) @ root.T).clamp(min=0).sqrt().sum() / unit / unit
    distance: Tensor = (real.mean - rows.mean(0)).square().sum() + real.trace + cov.diagonal().sum() - 2 * roots
    return distance
