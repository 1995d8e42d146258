"""What the swap engine refuses: each ValueError names the argument, its value and the remedy."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

# Slack on a removed row's leverage w(Λ+τ²)⁻¹wᵀ, which is below 1 in exact arithmetic.  Chosen: rounding a float32 sum
# of 2048 products adds up to 2048·6e-8 = 1.2e-4.
LEVERAGE_SLACK = 1e-3


def check_rows(rows: Tensor, name: str, dim: int, at_least: int = 2) -> None:
    """ValueError unless `rows` is [n, dim], floating point, finite, and n ≥ `at_least`."""
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"{name} must be [n, {dim}] as the real moments, got {tuple(rows.shape)}; use one extractor")
    if not rows.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {rows.dtype}; convert the features first")
    if rows.shape[0] < at_least:
        raise ValueError(f"{name} needs at least {at_least} rows for a covariance, got {rows.shape[0]}")
    check_finite(rows, name)


def check_finite(rows: Tensor, name: str) -> None:
    """ValueError unless all values of the rows [n, d] are finite; it names the first rows that are not."""
    bad = (~torch.isfinite(rows).all(1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{name} has NaN or inf in {len(bad)} rows, first {bad[:5].tolist()}; remove those samples")


def check_device(tensor: Tensor, name: str, device: torch.device) -> None:
    """ValueError unless the tensor is on the reference's device."""
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} and the reference on {device}; move {name} there first")


def _row_indices(removed: Tensor) -> Tensor:
    """`removed` as int64; ValueError unless it holds integers."""
    if removed.is_floating_point() or removed.is_complex() or removed.dtype == torch.bool:
        if removed.numel():
            raise ValueError(f"removed must hold integer row indices, got dtype {removed.dtype}; pass int64")
    return removed.to(torch.int64)


def checked_swap(removed: Tensor, added: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """removed [B, m_r] as int64, and added [B, m_a, d], for a reference [N, d].

    ValueError where equation 4 has no meaning.
    """
    removed, added = checked_shapes(removed, added, reference)
    check_indices(removed, len(reference))
    return removed, added


def checked_shapes(removed: Tensor, added: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The same, without a look at the indices themselves, for which the host would wait for a device."""
    removed = _row_indices(removed)
    check_device(removed, "removed", reference.device)
    check_device(added, "added", reference.device)
    count, dim = reference.shape
    if removed.ndim != 2 or added.ndim != 3 or removed.shape[0] != added.shape[0]:
        raise ValueError(
            f"removed must be [B, m_r] and added [B, m_a, d], got {tuple(removed.shape)} and {tuple(added.shape)}; "
            "add a leading axis of 1 for a single candidate"
        )
    if added.shape[2] != dim:
        raise ValueError(f"added has {added.shape[2]} features a row, the real moments {dim}; use one extractor")
    if not added.is_floating_point():
        raise ValueError(f"added must be floating point, got {added.dtype}; convert the features first")
    final = count - removed.shape[1] + added.shape[1]
    if final < 2:
        raise ValueError(
            f"removed [B, {removed.shape[1]}] and added leave a set of {final} rows; a covariance needs at least 2"
        )
    return removed, added


def check_indices(removed: Tensor, count: int) -> None:
    """ValueError for an index outside [0, count) and for one that a candidate repeats."""
    if removed.numel() == 0:
        return
    low, high = (v.item() for v in removed.aminmax())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise ValueError(f"removed must lie in [0, {count}), got {wrong}; count rows from 0, negative ones do not wrap")
    ordered = removed.sort(-1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]).nonzero()
    if len(repeated):
        candidate, place = repeated[0].tolist()
        raise ValueError(
            f"removed repeats row {ordered[candidate, place].item()} in candidate {candidate}; name each row once"
        )


def check_leverage(leverage: Tensor, candidate_ids: Sequence[int]) -> None:
    """ValueError unless the removed rows take at most 1 + slack of any direction; leverage [b], λ_max of G_rr."""
    worst = int(leverage.argmax())
    if not leverage[worst] <= 1 + LEVERAGE_SLACK:
        what = f"the removed rows hold {leverage[worst].item():.6f} times what the reference holds of a direction"
        raise_inconsistent(candidate_ids[worst], what)


def raise_inconsistent(candidate: int, what: str) -> NoReturn:
    """ValueError for a candidate whose removed rows are not those that the reference was prepared with."""
    raise ValueError(
        f"removed: in candidate {candidate} {what}, so its rows are not part of the reference as prepared; "
        "was the reference changed in place? Build a new SwapEngine, or use replace"
    )
