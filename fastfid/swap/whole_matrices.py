"""Equation 3 by the whole r×r matrix of every candidate: slow, a cross-check of the log-determinants.

Legend: b candidates, r rank of Λ.
"""

import torch
from torch import Tensor

from fastfid import triton_kernels
from fastfid.linalg.iterative_roots import root_function
from fastfid.swap.candidate_rows import CandidateRows

# Steps of the iterative matrix roots: where both have converged for features' spectra (linalg/iterative_roots.py).
PRODUCT_STEPS = {"newton_schulz": 30, "polar_express": 13}


def trace_change_by_whole_matrices(
    rows: CandidateRows, spectrum: Tensor, method: str, backend: str
) -> tuple[Tensor, int]:
    """Δ [b] float64 by method "eigh", "newton_schulz" or "polar_express", and how many eigenvalues "eigh" clipped.

    spectrum λ [r] float64; backend "torch" or "triton", of products.
    """
    w_r, w_a = rows.spread_out()
    if method == "eigh":
        return _by_eigenvalues(w_r, w_a, spectrum)
    return _by_products(w_r, w_a, spectrum, method, backend), 0


def _by_eigenvalues(w_r: Tensor, w_a: Tensor, spectrum: Tensor) -> tuple[Tensor, int]:
    """Δ [b] from the float64 eigenvalues of Λ − W_rᵀW_r + W_aᵀW_a, and how many negative ones were taken for 0."""
    w_r, w_a = w_r.to(torch.float64), w_a.to(torch.float64)
    changed = spectrum.diag() + w_a.mT @ w_a - w_r.mT @ w_r
    eigenvalues = torch.linalg.eigvalsh(changed)
    clipped = int((eigenvalues.detach() < 0).sum())
    return eigenvalues.clamp(min=0).sqrt().sum(-1) - spectrum.sqrt().sum(), clipped


def _by_products(w_r: Tensor, w_a: Tensor, spectrum: Tensor, method: str, backend: str) -> Tensor:
    """Δ [b] by matrix products alone in the rows' dtype; the same arithmetic's error on Λ is subtracted."""
    precision = str(w_a.dtype).removeprefix("torch.")
    root = root_function(method, precision, PRODUCT_STEPS[method], backend=backend)
    base = spectrum.diag().to(w_a.dtype)
    if backend == "triton":
        changed = triton_kernels.load("rank_update").rank_update(base, w_r, w_a)
    else:
        changed = base + w_a.mT @ w_a - w_r.mT @ w_r
    return root(changed)[0] - root(base[None])[0]
