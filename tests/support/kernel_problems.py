"""Rows and spectra for the compiled kernels, and how much their log-determinants may err."""

import numpy as np

EPS = {np.float32: 1.2e-7, np.float64: 2.2e-16}


def problem(removed, added, rank, dtype, batch=2, nodes=3, seed=0):
    """Rows of a consistent change: removed rows are taken from a larger set of which the spectrum holds all."""
    rng = np.random.default_rng(seed)
    spectrum = np.geomspace(1, 1e-4, rank)
    total = removed + 2 * rank + 2
    # orthonormal columns times √λ: leverages of all rows sum to the rank, so any `removed` of them are consistent
    scores = np.linalg.qr(rng.standard_normal((batch, total, rank)))[0] * np.sqrt(spectrum)
    rows_r = scores[:, :removed]
    rows_a = rng.standard_normal((batch, added, rank)) * np.sqrt(spectrum / total)
    return rows_r.astype(dtype), rows_a.astype(dtype), spectrum, np.geomspace(1e-4, 1.0, nodes)


def tolerance(rows_r, rows_a, dtype):
    """k pivots rounded at some ε each: measured over all shapes below, at most 3.6·ε·k (float32: 1.2·ε·k)."""
    return 10 * EPS[dtype] * max(1, rows_r.shape[1] + rows_a.shape[1])
