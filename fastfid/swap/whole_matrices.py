"""Equation 3 by the whole d×d matrix of every candidate: slow, a cross-check of the log-determinants."""

import torch

from fastfid import triton_kernels
from fastfid.linalg.iterative_roots import root_function

# Steps of the iterative matrix roots: where both have converged for features' spectra (linalg/iterative_roots.py).
PRODUCT_STEPS = {"newton_schulz": 30, "polar_express": 13}


def trace_change_by_eigenvalues(w_r, w_a, spectrum) -> tuple[torch.Tensor, int]:
    """Δ of equation 3 from the float64 spectrum of Λ − W_rᵀW_r + W_aᵀW_a, and how many negatives it took for 0."""
    w_r, w_a = w_r.to(torch.float64), w_a.to(torch.float64)
    changed = spectrum.diag() + w_a.mT @ w_a - w_r.mT @ w_r
    eigenvalues = torch.linalg.eigvalsh(changed)
    clipped = int((eigenvalues.detach() < 0).sum())
    return eigenvalues.clamp(min=0).sqrt().sum(-1) - spectrum.sqrt().sum(), clipped


def trace_change_by_products(w_r, w_a, spectrum, method: str, precision: str, backend: str) -> torch.Tensor:
    """Δ of equation 3 by matrix products alone in the rows' dtype; the same arithmetic's error on Λ is taken off."""
    root = root_function(method, precision, PRODUCT_STEPS[method], backend=backend)
    base = spectrum.diag().to(w_a.dtype)
    if backend == "triton":
        changed = triton_kernels.load("rank_update").rank_update(base, w_r, w_a)
    else:
        changed = base + w_a.mT @ w_a - w_r.mT @ w_r
    return root(changed)[0] - root(base[None])[0]
