"""Scores of swapped sets: the engine next to the methods that it replaces.  pytest bench/ --benchmark-only

All providers score the same candidates, a slow one fewer of them and once.  Compare `seconds_per_candidate` in the
extra info (bench/measuring.py explains the rest).  The first provider of a group is ours.  No time is asserted.
bench/swap_ratios.py alternates the engine with the products that it cannot avoid.

    engine          SwapEngine in its default precision, with a reference prepared before.  `first score after a
                    refresh` also makes the weight plan and the memory that later scores reuse
    projection      the engine's own product of new rows and basis, [B·m, d]×[d, d] float32: its lower bound
    eigvalsh        moments of the changed set by a rank update, float64 symmetric eigenvalues of R Σ' Rᵀ
    eigvals         moments of the changed set from scratch, then torch-fidelity's and torchmetrics' own functions
                    (general eigenvalues)
    sqrtm           moments from scratch, then pytorch-fid's own function (SciPy's matrix root of Σ_r Σ'), once
    moment queue    the algorithm of FD-loss: running sums with rows removed and added, eigvalsh(R Σ' Rᵀ) in float32

Errors are of at most 16 candidates, from an engine in float64.  eigvalsh shares no arithmetic with this engine, so its
own error shows how far the engine can be trusted.

If there is a GPU, the sets and the engine are on it, and a round ends when its work is done.  The tools' own functions
take NumPy arrays and run on the host.  A tool that is not installed is skipped.

Legend: N reference samples, d features, B candidates, m rows replaced in each, k = 2m, Q nodes.
"""

import numpy as np
import torch

from bench.measuring import DEVICE, EIGVALS, EIGVALSH, SQRTM, finished, record
from bench.swap_problem import (
    CHECKED,
    DOUBLE,
    F32,
    F64,
    SINGLE,
    SIZES,
    SPREAD,
    M,
    N,
    by_size,
    check,
    largest_difference,
    measure,
    problem,
    product_bytes,
    score_bytes,
    score_flops,
    score_group,
    singles_flops,
)
from bench.swap_rivals import (
    by_rank_update,
    by_tool,
    pytorch_fid_distance,
    torch_fidelity_distance,
    torchmetrics_distance,
)
from fastfid import SwapEngine

# --- the engine ------------------------------------------------------------------------------------------------------


@by_size
def bench_engine(benchmark, d):
    p, count = problem(d), SIZES[d]["engine"]
    benchmark.group = score_group(d)
    distances = measure(benchmark, lambda: p.engine.score(p.removed, p.added))
    flops = {F32: count * score_flops(p.engine)}
    record(benchmark, flops, score_bytes(d, count), count, p.error(distances), SPREAD)
    report = p.engine.report()
    benchmark.extra_info |= {"nodes": report["nodes"], "backend": report["backend_why"]}


@by_size
def bench_engine_first_score_after_a_refresh(benchmark, d):
    """The first call of a prepared engine. It makes the weight plan and the memory."""
    p, count = problem(d), SIZES[d]["engine"]
    benchmark.group = score_group(d)
    used = []

    def refresh():
        used[:] = [SwapEngine(p.real, p.reference)]

    call = finished(lambda: used[0].score(p.removed, p.added))
    distances = benchmark.pedantic(call, setup=refresh, rounds=2)
    # the plan is not counted: it takes an unknown number of singular value decompositions of small matrices
    flops = {F32: count * score_flops(used[0])}
    record(benchmark, flops, score_bytes(d, count), count, p.error(distances), SPREAD)


@by_size
def bench_projection(benchmark, d):
    p, count = problem(d), SIZES[d]["engine"]
    benchmark.group = score_group(d)
    rows, basis = p.added.reshape(-1, d), torch.randn(d, d, device=DEVICE)
    out = torch.empty_like(rows)
    measure(benchmark, lambda: torch.mm(rows, basis, out=out))
    record(benchmark, {F32: 2 * len(rows) * d**2}, product_bytes(len(rows), d, SINGLE), count)


@by_size
def bench_engine_single_images(benchmark, d):
    p, count = problem(d), SIZES[d]["engine"]
    benchmark.group = score_group(d)
    changes = measure(benchmark, lambda: p.engine.change_each(p.removed, p.added))[:CHECKED]
    flops = {F32: p.removed.numel() * (2 * d**2 + singles_flops(p.engine))}
    exact = p.judge.change_each(p.removed[:CHECKED], p.added[:CHECKED].double())
    error = largest_difference(changes, exact, exact.std())  # of single images
    record(benchmark, flops, score_bytes(d, count), count, error, SPREAD)


# --- rivals ----------------------------------------------------------------------------------------------------------


def classical_flops(d):
    """Per candidate: two updates of rank m, R Σ' Rᵀ by two products, and its eigenvalues."""
    return 4 * M * d**2 + (4 + EIGVALSH) * d**3


@by_size
def bench_eigvalsh(benchmark, d):
    p, count = problem(d), SIZES[d]["eigvalsh"]
    benchmark.group = score_group(d)
    distance = by_rank_update(p)
    distances = measure(benchmark, lambda: torch.stack([distance(i) for i in range(count)]), rounds=2)
    moved = count * ((SINGLE + DOUBLE) * M * d + DOUBLE * 2 * d**2)  # rows; scatter and R
    record(benchmark, {F64: count * classical_flops(d)}, moved, count, p.error(distances), SPREAD)
    check(distances, p)


@by_size
def bench_moment_queue(benchmark, d):
    p, count = problem(d), SIZES[d]["eigvalsh"]
    benchmark.group = score_group(d)
    total, square = p.reference.sum(0), p.reference.T @ p.reference
    root = p.real.root.float()

    def call():
        results = []
        for r, a in zip(p.removed[:count], p.added, strict=False):
            out = p.reference[r]
            mean = (total - out.sum(0) + a.sum(0)) / N
            cov = (square - out.T @ out + a.T @ a - N * torch.outer(mean, mean)) / (N - 1)
            roots = torch.linalg.eigvalsh(root @ cov @ root.T).clamp(min=0).sqrt().sum()
            results.append((p.mean - mean).square().sum() + p.real.trace + cov.diagonal().sum() - 2 * roots)
        return torch.stack(results)

    distances = measure(benchmark, call, rounds=2)
    moved = count * SINGLE * (2 * M * d + 2 * d**2)
    record(benchmark, {F32: count * classical_flops(d)}, moved, count, p.error(distances), SPREAD)


def measure_tool(benchmark, d, provider, distance, root):
    """Moments of every changed set from scratch, then a tool's own function of (mean, cov, mean, cov), once.

    Flops: 2 N d² of the covariance, 2 d³ of Σ_r Σ', and `root`·d³ of its eigenvalues or root (textbook values).
    """
    p, count = problem(d), SIZES[d][provider]
    benchmark.group = score_group(d)
    of_candidate = by_tool(p, distance)
    distances = measure(benchmark, lambda: np.array([of_candidate(i) for i in range(count)]), rounds=1)
    flops = {F64: count * (2 * N * d**2 + (2 + root) * d**3)}
    moved = count * (SINGLE * (N + M) * d + DOUBLE * d**2)
    record(benchmark, flops, moved, count, p.error(distances), SPREAD)
    check(distances, p)


@by_size
def bench_eigvals_torch_fidelity(benchmark, d):
    measure_tool(benchmark, d, "eigvals", torch_fidelity_distance, EIGVALS)


@by_size
def bench_eigvals_torchmetrics(benchmark, d):
    measure_tool(benchmark, d, "eigvals", torchmetrics_distance, EIGVALS)


@by_size
def bench_sqrtm_pytorch_fid(benchmark, d):
    measure_tool(benchmark, d, "sqrtm", pytorch_fid_distance, SQRTM)
