"""Fréchet distances of swapped sets: the engine beside the routes it replaces.  pytest bench/ --benchmark-only

Providers score the same candidates, a slow one fewer of them and once: compare `seconds_per_candidate` in the extra
info (also `gflop_per_s` where the operations can be counted).  Times are reported, never asserted.

    engine          SwapEngine, default precision, reference prepared before
    eigvalsh        moments of the changed set by a rank update, R Σ' Rᵀ, float64 symmetric eigenvalues
    eigvals         moments of the changed set from scratch, torch.linalg.eigvals of Σ_r Σ' (as torchmetrics does)
    projection      the engine's own product of new rows and basis, [B·m, d]×[d, d] float32: its floor

Legend: N reference samples, d features, B candidates, m replaced in each.
"""

import numpy as np
import pytest
import torch

from fastfid import RealFactor, SwapEngine

M = 50
SIZES = {  # candidates a provider scores
    128: {"N": 5000, "engine": 32, "eigvalsh": 32, "eigvals": 4},
    1024: {"N": 5000, "engine": 8, "eigvalsh": 2, "eigvals": 1},
}
_prepared: dict = {}


def setting(d):
    """Real factor, reference [N, d], removed [B, m], added [B, m, d] and a prepared engine, made once for each d."""
    if d not in _prepared:
        size = SIZES[d]
        rng = torch.Generator().manual_seed(d)
        spread = torch.arange(1, d + 1) ** -0.5  # variances fall as 1/i, as those of pooled network features do

        def draw(*shape):
            return torch.randn(*shape, d, generator=rng) * spread

        samples = draw(2 * size["N"]).double()
        reference = 1.1 * draw(size["N"]) + 0.02
        removed = torch.stack([torch.randperm(size["N"], generator=rng)[:M] for _ in range(size["engine"])])
        mean, cov = samples.mean(0), torch.cov(samples.T)
        real = RealFactor((mean, cov))
        _prepared[d] = (mean, cov, real, reference, removed, 1.1 * draw(size["engine"], M), SwapEngine(real, reference))
    return _prepared[d]


def measure(benchmark, call, candidates, flop_per_candidate=None, rounds=3):
    """Runs `call` in a few rounds and notes what one candidate costs."""
    result = benchmark.pedantic(call, rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)
    if benchmark.stats:  # absent with --benchmark-disable
        seconds = benchmark.stats.stats.median / candidates
        benchmark.extra_info["seconds_per_candidate"] = seconds
        if flop_per_candidate:
            benchmark.extra_info["gflop_per_s"] = flop_per_candidate / seconds / 1e9
    return result


def changed_sets(reference, removed, added):
    """The changed sample sets, one after the other, float64 [N, d]."""
    for r, a in zip(removed, added, strict=True):
        rows = reference.double()
        rows[r] = a.double()
        yield rows


@pytest.mark.parametrize("d", SIZES)
def bench_prepare(benchmark, d):
    _, _, real, reference, *_ = setting(d)
    measure(benchmark, lambda: SwapEngine(real, reference), 1)


def score_flop(engine, d):
    """Projection 2·m·d², lower half of Q Gram matrices k²·d, factors k³/3, k = 2m."""
    nodes, k = engine.report()["nodes"], 2 * M
    return 2 * M * d * d + nodes * (k * k * d + k**3 / 3)


@pytest.mark.parametrize("d", SIZES)
def bench_engine(benchmark, d):
    *_, removed, added, engine = setting(d)
    engine.score(removed[:1], added[:1])  # so that the node count is known
    measure(benchmark, lambda: engine.score(removed, added), len(removed), score_flop(engine, d))
    benchmark.extra_info["nodes"] = engine.report()["nodes"]
    benchmark.extra_info["backend"] = engine.report()["backend_why"]


@pytest.mark.parametrize("d", SIZES)
def bench_engine_single_images(benchmark, d):
    *_, removed, added, engine = setting(d)
    measure(benchmark, lambda: engine.change_each(removed, added), len(removed))


@pytest.mark.parametrize("d", SIZES)
def bench_projection(benchmark, d):
    *_, removed, added, _ = setting(d)
    rows, basis = added.reshape(-1, d), torch.randn(d, d)
    measure(benchmark, lambda: rows @ basis, len(removed), 2 * M * d * d)


@pytest.mark.parametrize("d", SIZES)
def bench_eigvalsh(benchmark, d):
    mean_r, _, real, reference, removed, added, engine = setting(d)
    count = SIZES[d]["eigvalsh"]
    base = reference.double()
    mean, N = base.mean(0), len(base)
    scatter = (base - mean).T @ (base - mean)

    def call():
        results = []
        for r, a in zip(removed[:count], added[:count], strict=True):
            y_r, y_a = base[r] - mean, a.double() - mean
            delta = (y_a.sum(0) - y_r.sum(0)) / N
            cov = (scatter + y_a.T @ y_a - y_r.T @ y_r - N * torch.outer(delta, delta)) / (N - 1)
            roots = torch.linalg.eigvalsh(real.root @ cov @ real.root.T).clamp(min=0).sqrt().sum()
            offset = (mean_r - mean - delta).square().sum()
            results.append(offset + real.trace + cov.diagonal().sum() - 2 * roots)
        return torch.stack(results)

    distances = measure(benchmark, call, count, rounds=1)
    check(distances, engine.score(removed[:count], added[:count]))


@pytest.mark.parametrize("d", SIZES)
def bench_eigvals(benchmark, d):
    mean_r, cov_r, _, reference, removed, added, engine = setting(d)
    count = SIZES[d]["eigvals"]

    def call():
        results = []
        for rows in changed_sets(reference, removed[:count], added[:count]):
            mean, cov = rows.mean(0), torch.cov(rows.T)
            roots = torch.linalg.eigvals(cov_r @ cov).sqrt().real.sum()
            results.append((mean_r - mean).square().sum() + (cov_r.diagonal() + cov.diagonal()).sum() - 2 * roots)
        return torch.stack(results)

    distances = measure(benchmark, call, count, rounds=1)
    check(distances, engine.score(removed[:count], added[:count]))


def check(distances, scores):
    """Rivals and engine agree: 1e-6 covers the engine's float32 rows and eigenvalues of a non-symmetric product."""
    np.testing.assert_allclose(distances, scores, rtol=1e-6)
