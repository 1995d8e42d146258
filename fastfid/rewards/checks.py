"""What the set rewards refuse: each ValueError names the argument, its value and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfid.runtime.devices import as_tensor
from fastfid.swap.checks import check_rows, checked_swap


def computed_in(returned: object, numbers: Tensor) -> torch.dtype:
    """The type in which a user's function computed `numbers`: of a list float32, because `tolist` hides the type."""
    return torch.float32 if isinstance(returned, list | tuple) and numbers.is_floating_point() else numbers.dtype


def checked_real(real: object) -> Tensor:
    """Features of real images [n, d], n ≥ 2, without gradient; ValueError for anything else."""
    real = as_tensor(real, "real").detach()
    if real.ndim != 2 or 0 in real.shape:
        raise ValueError(
            f"real must be the features [n, d] of real images, got shape {tuple(real.shape)}; this reward needs each "
            "image's features, moments are not enough"
        )
    check_rows(real, "real", real.shape[1])
    return real


def checked_set(rows: object, real: Tensor) -> Tensor:
    """Features of a set [N, d], N ≥ 2, without gradient, for real features [n, d]; ValueError for anything else."""
    rows = as_tensor(rows, "rows").detach()
    if rows.device != real.device:
        raise ValueError(f"rows are on {rows.device}, the real features on {real.device}; move one of them")
    check_rows(rows, "rows", real.shape[1])
    return rows


def checked_labels(labels: object, count: int) -> Tensor:
    """int64 labels [count]; ValueError for another shape or dtype."""
    labels = as_tensor(labels, "labels")
    if labels.shape != (count,):
        raise ValueError(f"labels must be [{count}], one for each row, got shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}; pass class indices")
    return labels.to(torch.int64)


def checked_candidates(removed: object, added: object, rows: Tensor) -> tuple[Tensor, Tensor]:
    """removed [B, m_r] int64 and added [B, m_a, d], finite, for a set [N, d]; ValueError as in `checked_swap`."""
    removed, added = checked_swap(as_tensor(removed, "removed"), as_tensor(added, "added").detach(), rows)
    bad = (~torch.isfinite(added).all(-1)).nonzero()
    if len(bad):
        places = [tuple(place) for place in bad[:5].tolist()]
        raise ValueError(f"added has NaN or inf in {len(bad)} rows, first (candidate, row) {places}; remove them")
    return removed, added


def labels_of_added(labels: object, removed: Tensor, added_rows: int, of_set: Tensor) -> Tensor:
    """int64 labels [B, m_a] of rows that come in: `labels`, or in their order those of the removed rows [B, m_r]."""
    if labels is None:
        if added_rows > removed.shape[1]:
            raise ValueError(
                f"{added_rows} rows are added for {removed.shape[1]} removed ones; pass their labels [B, {added_rows}]"
            )
        return of_set[removed[:, :added_rows]]
    shape = (len(removed), added_rows)
    found = as_tensor(labels, "labels")
    if tuple(found.shape) != shape:
        raise ValueError(f"labels must be {list(shape)}, one for each added row, got shape {tuple(found.shape)}")
    return checked_labels(found.reshape(-1), found.numel()).to(of_set.device).reshape(shape)
