"""What the swap engine refuses: each ValueError names the argument, its value and the remedy."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from fastfid.distances.real_side import named_tensor

METHODS = ("logdet", "eigh", "newton_schulz", "polar_express")

# Chosen so that the error stays below 1e-4 (float32) and 1e-7 (float64) of the standard deviation over candidates.
DEFAULT_TOL = {torch.float32: 2e-6, torch.float64: 1e-10}

# Slack on a removed row's leverage w(Λ+τ²)⁻¹wᵀ, which is below 1 in exact arithmetic.  Chosen: rounding a float32 sum
# of 2048 products adds up to 2048·6e-8 = 1.2e-4.
LEVERAGE_SLACK = 1e-3


def check_options(tol: float, dtype: torch.dtype, method: str, workspace: int) -> None:
    """ValueError for an option of `SwapEngine` that is out of its range."""
    if dtype not in DEFAULT_TOL:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}; less cannot resolve a swap")
    if not 0 < tol < 1:
        raise ValueError(f"tol must lie strictly between 0 and 1, got {tol}; None takes the default of the dtype")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if workspace < 1:
        raise ValueError(f"workspace must be a positive number of bytes, got {workspace}; 256 MiB is the default")


def check_rows(rows: Tensor, name: str, dim: int, at_least: int = 2) -> None:
    """ValueError unless `rows` is [n, dim], floating point, finite, and n ≥ `at_least`."""
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"{name} must be [n, {dim}] as the real moments, got {tuple(rows.shape)}; use one extractor")
    if not rows.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {rows.dtype}; convert the features first")
    if rows.shape[0] < at_least:
        raise ValueError(f"{name} needs at least {at_least} rows for a covariance, got {rows.shape[0]}")
    bad = (~torch.isfinite(rows).all(1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{name} has NaN or inf in {len(bad)} rows, first {bad[:5].tolist()}; remove those samples")


def check_device(tensor: Tensor, name: str, device: torch.device) -> None:
    """ValueError unless the tensor is on the reference's device."""
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} and the reference on {device}; move {name} there first")


def row_indices(removed: object) -> Tensor:
    """`removed` as int64; ValueError unless it holds integers."""
    removed = named_tensor(removed, "removed")
    if removed.is_floating_point() or removed.is_complex() or removed.dtype == torch.bool:
        if removed.numel():
            raise ValueError(f"removed must hold integer row indices, got dtype {removed.dtype}; pass int64")
    return removed.to(torch.int64)


def checked_swap(removed: object, added: object, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Tensors removed [B, m_r] int64 and added [B, m_a, d] for a reference [N, d].

    ValueError where equation 4 has no meaning.
    """
    removed, added = row_indices(removed), named_tensor(added, "added")
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
    _check_indices(removed, count)
    final = count - removed.shape[1] + added.shape[1]
    if final < 2:
        raise ValueError(
            f"removed [B, {removed.shape[1]}] and added leave a set of {final} rows; a covariance needs at least 2"
        )
    return removed, added


def _check_indices(removed: Tensor, count: int) -> None:
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


def check_finite_added(square_norms: Tensor, candidate_ids: Sequence[int]) -> None:
    """ValueError unless |y_a|² [b, m_a] are finite; `candidate_ids`: the candidates' places in the caller's batch."""
    bad = (~torch.isfinite(square_norms.detach())).nonzero()
    if len(bad):
        places = [(candidate_ids[candidate], row) for candidate, row in bad[:5].tolist()]
        raise ValueError(
            f"added has NaN or inf, or squares that overflow, in {len(bad)} rows, first (candidate, row) {places}; "
            "drop them"
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
