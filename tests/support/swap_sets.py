"""Sets of samples to swap, of many kinds, and what a change may be off."""

import math

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from fastfid import SwapEngine

BACKENDS = ["cpp", "torch"]
EXACT = {"dtype": torch.float64, "tol": 1e-10}


def moments(samples):
    """(mean, cov) of samples [n, d] in float64."""
    samples = np.asarray(samples, np.float64)
    return torch.from_numpy(samples.mean(0)), torch.from_numpy(np.atleast_2d(np.cov(samples.T)))


def make(name="plain", N=120, d=12, m_r=5, m_a=5, batch=4, seed=0):
    """Samples of one kind: real [4d+9, d], reference [N, d], removed [B, m_r], added [B, m_a, d]."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, d + 1) ** -0.5
    if name == "graded":  # variances from 1 to 1e-14
        spread = np.geomspace(1, 1e-7, d)
    real = rng.standard_normal((4 * d + 9, d)) * spread
    reference = rng.standard_normal((N, d)) * spread * 1.2 + 0.1 * spread
    added = rng.standard_normal((batch, m_a, d)) * spread * 0.9 - 0.2 * spread
    removed = np.stack([rng.permutation(N)[:m_r] for _ in range(batch)]).astype(np.int64)
    if name == "duplicates":
        reference[N // 2 :] = reference[: N - N // 2]
        added[:, ::2] = reference[0]
    if name == "constant in reference":
        reference[:, :3] = 0.7
    if name == "constant everywhere":
        real[:, :3] = reference[:, :3] = added[:, :, :3] = 0.7
    if name == "few real":  # rank-deficient real covariance
        real = real[: d // 2]
    if name == "offset":  # mean of 1e4 standard deviations
        real, reference, added = real + 1e4, reference + 1e4, added + 1e4
    if name == "outlier":
        added[0] *= 100
    return real, reference, removed, added


CASES = {
    "plain": {},
    "one image": {"m_r": 1, "m_a": 1},
    "half of the set": {"m_r": 60, "m_a": 60},
    "half, fewer than d stay": {"N": 20, "m_r": 10, "m_a": 10},
    "more added": {"m_r": 3, "m_a": 8},
    "more removed": {"m_r": 8, "m_a": 3},
    "only removed": {"m_a": 0},
    "only added": {"m_r": 0},
    "all removed": {"N": 40, "m_r": 40, "m_a": 30},
    "N < d": {"N": 9, "m_r": 2, "m_a": 2},
    "N < d, unequal": {"N": 9, "m_r": 2, "m_a": 4},
    "one feature": {"d": 1},
    "duplicates": {"name": "duplicates"},
    "constant in reference": {"name": "constant in reference"},
    "constant everywhere": {"name": "constant everywhere"},
    "few real": {"name": "few real"},
    "offset": {"name": "offset"},
    "outlier": {"name": "outlier"},
    "graded": {"name": "graded"},
}


def allowance(engine, m_r, m_a):
    """What a change of distance may be off in float64, from the bounds of swap/nodes.py and linalg/quadrature.py.

    Each of the k rank-one terms moves interlacing eigenvalues: the shift costs at most √s and the rule at most tol·√hi,
    both times 2√c.  Moments and eigenvalues are rounded at 1e-16 of the largest, and a root of such an error is 1e-8 of
    the largest root; only directions that small suffer, and a change moves k of them.
    """
    report = engine.report()
    final = engine.count - m_r + m_a
    root_c = math.sqrt((engine.count - 1) / (final - 1))
    rule = engine.options.tol * math.sqrt(report["node_range"][1]) if report["nodes"] else 0.0
    rounding = 1e-8 * math.sqrt(report["lambda_max"]) if report["lambda_min"] < 1e-8 * report["lambda_max"] else 0.0
    bound = 2 * root_c * (m_r + m_a) * (math.sqrt(report["shift"]) + rule + rounding)
    return bound + 1e-12 * (engine.distance + engine.prepared.trace + engine.real.trace)


def rare(active, removed, amplitude=1.0, dead=False):
    """Skewed features, one of them nonzero in `active` rows only of which `removed` leave; another may be dead."""
    rng, d, N, m = np.random.default_rng(active), 20, 1000, 40
    real, reference, added = (np.abs(rng.standard_normal((n, d))) for n in (2000, N, 3 * m))
    reference[:, 3] = 0
    reference[:active, 3] = amplitude * np.abs(rng.standard_normal(active))
    real[:, 3] *= amplitude * (rng.random(2000) < 0.05)
    added[:, 3] = 0
    if dead:
        reference[:, 7] = added[:, 7] = 0
    rows = [np.r_[np.arange(removed), active + rng.permutation(N - active)[: m - removed]] for _ in range(3)]
    return real, reference, np.stack(rows), added.reshape(3, m, d)


# N, d, m_r, m_a, seed
shapes = st.tuples(st.integers(8, 40), st.integers(1, 10), st.integers(0, 5), st.integers(0, 5), st.integers(0, 10**6))
law = settings(max_examples=20, deadline=None)


def engine_of(shape, **changed):
    N, d, m_r, m_a, seed = shape
    real, reference, removed, added = make(N=N, d=d, m_r=m_r, m_a=m_a, batch=3, seed=seed)
    return SwapEngine(moments(real), reference, **{**EXACT, **changed}), real, reference, removed, added
