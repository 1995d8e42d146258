"""The credit of single images, from the exact changes of any prepared set."""

from __future__ import annotations

from torch import Tensor

from fastfid.rewards.protocol import PreparedSet
from fastfid.runtime.devices import as_tensor


def change_each(prepared: PreparedSet, removed: object, added: object, labels: object = None) -> Tensor:
    """Exact change of every single swap on its own [...] float64.

    removed  [...] int64
    added    [..., *row], one new row for each
    labels   [...] int64 of the added rows; by default those of the removed ones
    """
    removed, added = as_tensor(removed, "removed"), as_tensor(added, "added")
    shape = tuple(removed.shape)
    if tuple(added.shape[: removed.ndim]) != shape:
        raise ValueError(f"added must have one row for each of removed {shape}, got shape {tuple(added.shape)}")
    if labels is not None:
        labels = as_tensor(labels, "labels")
        if tuple(labels.shape) != shape:
            raise ValueError(f"labels must have one entry for each of removed {shape}, got {tuple(labels.shape)}")
        labels = labels.reshape(-1, 1)
    new = added.reshape(removed.numel(), 1, *added.shape[removed.ndim :])
    return prepared.change(removed.reshape(-1, 1), new, labels).reshape(shape)


def swap_credit(prepared: PreparedSet, removed: object, added: object, labels: object = None) -> Tensor:
    """Credit of each new image [...] float64: the change by leaving the old image out, less that of the single swap.

    Arguments as in `change_each`.  The first term depends on the old image only.  Without it, half of the variance of
    the credits would come from the old images.
    """
    removed, added = as_tensor(removed, "removed"), as_tensor(added, "added")
    swapped = change_each(prepared, removed, added, labels)
    nothing = added.new_empty((removed.numel(), 0, *added.shape[removed.ndim :]))
    left_out = prepared.change(removed.reshape(-1, 1), nothing)
    return left_out.reshape(removed.shape) - swapped
