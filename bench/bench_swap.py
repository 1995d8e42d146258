"""Fréchet distances of swapped sets: the engine beside the routes it replaces.  pytest bench/ --benchmark-only

Providers score the same candidates, a slow one fewer of them and once: compare `seconds_per_candidate` in the extra
info (also `gflop_per_s` and its share of the machine's peak where the operations can be counted).  Times are reported,
never asserted; bench/swap_ratios.py alternates the engine with its own floors.

    engine          SwapEngine, default precision, reference prepared before; `16 nodes`: with a tol that asks for 16
    projection      the engine's own product of new rows and basis, [B·m, d]×[d, d] float32: its floor
    eigvalsh        moments of the changed set by a rank update, R Σ' Rᵀ, float64 symmetric eigenvalues
    eigvals         moments of the changed set from scratch, torch-fidelity's and torchmetrics' own functions (general
                    eigenvalues)
    sqrtm           moments from scratch, pytorch-fid's own function (SciPy's matrix root of Σ_r Σ'), once
    moment queue    FD-loss's algorithm: running sums with rows evicted and added, eigvalsh(R Σ' Rᵀ) in float32 products

Where there is a GPU, the sets and the engine are on it, and a round ends when its work is done; the tools' own
functions take NumPy arrays and stay on the host.

`--full` adds the growth with B up to 1,024 and with N up to 50,000.

Legend: N reference samples, d features, B candidates, m replaced in each, k = 2m.
"""

import os
import time
from functools import cache

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from fastfid import RealFactor, SwapEngine

M = 50
N = 5000
SIZES = {  # candidates a provider scores
    128: {"engine": 128, "eigvalsh": 32, "eigvals": 4, "sqrtm": 4},
    2048: {"engine": 128, "eigvalsh": 2, "eigvals": 1, "sqrtm": 1},
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GROWTH_DIM = 512
GROWTH_B = (1, 4, 16, 64, 256)
GROWTH_N = (2_500, 5_000, 10_000)
_prepared: dict = {}


class Problem:
    """Real moments, reference [N, d], removed [B, m], added [B, m, d] and a prepared engine."""

    def __init__(self, d, count, candidates):
        rng = torch.Generator().manual_seed(d)
        spread = torch.arange(1, d + 1) ** -0.5  # variances fall as 1/i, as those of pooled network features do

        def draw(*shape):
            return torch.randn(*shape, d, generator=rng) * spread

        samples = draw(10_000).double().to(DEVICE)
        self.d, self.mean, self.cov = d, samples.mean(0), torch.cov(samples.T)
        self.real = RealFactor((self.mean, self.cov))
        self.reference = (1.1 * draw(count) + 0.02).to(DEVICE)
        removed = [torch.randperm(count, generator=rng)[:M] for _ in range(candidates)]
        self.removed, self.added = torch.stack(removed).to(DEVICE), 1.1 * draw(candidates, M).to(DEVICE)
        self.engine = SwapEngine(self.real, self.reference)
        self.scores = self.engine.score(self.removed, self.added)


def problem(d, count=N, candidates=None):
    key = (d, count, candidates or SIZES[d]["engine"])
    if key not in _prepared:
        _prepared[key] = Problem(*key)
    return _prepared[key]


def finished(call):
    """`call` until its work is done: a GPU's kernels go on when their launch returns."""

    def until_done():
        result = call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    return until_done


@cache
def peak_gflop_per_s():
    """Best of 5 square float32 products of this process: what the machine gives today."""
    a, b = torch.randn(2, 2048, 2048, device=DEVICE)
    out, best = torch.empty_like(a), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        finished(lambda: torch.mm(a, b, out=out))()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def peak_bytes(call):
    """Most resident memory while `call` runs, its result included, beyond what there was before; None off Linux."""

    def resident(field):
        with open("/proc/self/status") as file:
            return 1024 * int(next(line for line in file if line.startswith(field)).split()[1])

    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak so far (proc(5))
    except OSError:
        return None
    before, kept = resident("VmRSS"), call()
    peak = resident("VmHWM") - before
    del kept
    return peak


def measure(benchmark, call, candidates, flop_per_candidate=None, bytes_per_candidate=None, rounds=5):
    """Runs `call` in a few rounds and notes what one candidate costs."""
    result = benchmark.pedantic(finished(call), rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)
    benchmark.extra_info |= {"threads": torch.get_num_threads(), "candidates": candidates}
    if benchmark.stats:  # absent with --benchmark-disable
        seconds = benchmark.stats.stats.median / candidates
        benchmark.extra_info["seconds_per_candidate"] = seconds
        if flop_per_candidate:
            benchmark.extra_info["flop_per_candidate"] = flop_per_candidate
            benchmark.extra_info["gflop_per_s"] = flop_per_candidate / seconds / 1e9
            benchmark.extra_info["share_of_peak"] = flop_per_candidate / seconds / 1e9 / peak_gflop_per_s()
        if bytes_per_candidate:
            benchmark.extra_info["bytes_per_candidate"] = bytes_per_candidate
    return result


def score_flop(engine, d):
    """Projection 2·m·d², lower half of a Gram matrix k² for every function and position of the plan, Q factors k³/3."""
    nodes = next(reversed(engine._node_cache.values()))  # the last used
    if DEVICE.type == "cuda":  # no plan: a whole Gram matrix for every node
        return 2 * M * d * d + len(nodes.tau) * (2 * d * (2 * M) ** 2 + (2 * M) ** 3 / 3)
    plan = nodes.plan(np.dtype(np.float32))
    positions = int((plan.terms * np.diff(plan.bounds)).sum())
    k = 2 * M
    return 2 * M * d * d + positions * k * k + len(nodes.tau) * k**3 / 3


def check(distances, p):
    """Rivals and engine agree: 1e-6 covers the engine's float32 rows and eigenvalues of a non-symmetric product."""
    np.testing.assert_allclose(torch.as_tensor(distances).cpu(), p.scores[: len(distances)].cpu(), rtol=1e-6)


by_size = pytest.mark.parametrize("d", SIZES)


# --- the engine ------------------------------------------------------------------------------------------------------


@by_size
def bench_prepare(benchmark, d):
    p = problem(d)
    benchmark.group = f"prepare, d={d}, N={N}"
    measure(benchmark, lambda: SwapEngine(p.real, p.reference), 1, rounds=3)
    benchmark.extra_info["peak_bytes"] = peak_bytes(lambda: SwapEngine(p.real, p.reference))


def prepare_parts(p):
    """What prepare cannot do without: a float64 eigh, the products around it, the projection of the reference."""
    centred, root = p.reference.double() - p.reference.double().mean(0), p.real.root
    _, basis = torch.linalg.eigh(root @ (centred.T @ centred) @ root.T)
    return centred.float() @ (basis.T @ root).T.float()


@by_size
def bench_prepare_parts(benchmark, d):
    p = problem(d)
    benchmark.group = f"prepare, d={d}, N={N}"
    measure(benchmark, lambda: prepare_parts(p), 1, rounds=3)


@by_size
def bench_projection(benchmark, d):
    p = problem(d)
    benchmark.group = f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"
    rows, basis = p.added.reshape(-1, d), torch.randn(d, d, device=DEVICE)
    out = torch.empty_like(rows)
    measure(benchmark, lambda: torch.mm(rows, basis, out=out), len(p.removed), 2 * M * d * d, 4 * 2 * M * d)


@by_size
def bench_engine(benchmark, d):
    p = problem(d)
    benchmark.group = f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"
    moved = 4 * 5 * M * d  # added rows as given, centred and projected; removed rows as features and projected
    flop = score_flop(p.engine, d)
    result = measure(benchmark, lambda: p.engine.score(p.removed, p.added), len(p.removed), flop, moved)
    report = p.engine.report()
    exact = SwapEngine(p.real, p.reference.double(), dtype=torch.float64).score(p.removed[:16], p.added[:16].double())
    benchmark.extra_info |= {
        "nodes": report["nodes"],
        "backend": report["backend_why"],
        "error_over_spread": float((result[:16] - exact).abs().max() / exact.std()),
    }


@by_size
def bench_engine_single_images(benchmark, d):
    p = problem(d)
    benchmark.group = f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"
    measure(benchmark, lambda: p.engine.change_each(p.removed, p.added), len(p.removed))


@by_size
def bench_engine_gradient(benchmark, d):
    p = problem(d)
    benchmark.group = f"gradient of 32 swaps of {M}, d={d}, N={N}"

    def call():
        added = p.added[:32].clone().requires_grad_()
        p.engine.score(p.removed[:32], added).sum().backward()
        return added.grad

    measure(benchmark, call, 32)


@by_size
def bench_engine_without_gradient(benchmark, d):
    p = problem(d)
    benchmark.group = f"gradient of 32 swaps of {M}, d={d}, N={N}"
    measure(benchmark, lambda: p.engine.score(p.removed[:32], p.added[:32]), 32)


def bench_gradient_by_autograd(benchmark):
    """Autograd through the covariance of the changed set and eigvalsh(R Σ' Rᵀ), d = 128 only."""
    p = problem(128)
    benchmark.group = f"gradient of 32 swaps of {M}, d=128, N={N}"

    def call():
        added = p.added[:4].double().requires_grad_()
        for r, a in zip(p.removed[:4], added, strict=True):
            kept = torch.ones(N, dtype=torch.bool, device=DEVICE)
            kept[r] = False
            rows = torch.cat([p.reference[kept].double(), a])
            roots = torch.linalg.eigvalsh(p.real.root @ torch.cov(rows.T) @ p.real.root.T).sqrt().sum()
            ((p.mean - rows.mean(0)).square().sum() + rows.var(0).sum() - 2 * roots).backward()
        return added.grad

    measure(benchmark, call, 4, rounds=3)


@by_size
def bench_leave_one_out(benchmark, d):
    p = problem(d)
    benchmark.group = f"leave one out, d={d}, N={N}"
    measure(benchmark, p.engine.leave_one_out, N)


@by_size
def bench_leave_one_out_floor(benchmark, d):
    """One [N, d]×[d, d] product, float32."""
    p = problem(d)
    benchmark.group = f"leave one out, d={d}, N={N}"
    basis, out = torch.randn(d, d, device=DEVICE), torch.empty(N, d, device=DEVICE)
    measure(benchmark, lambda: torch.mm(p.reference, basis, out=out), N)


def bench_leave_one_out_by_force(benchmark):
    """Covariance and eigvalsh of 20 of the N sets, d = 128 only."""
    p = problem(128)
    benchmark.group = f"leave one out, d=128, N={N}"

    def call():
        for i in range(20):
            rows = torch.cat([p.reference[:i], p.reference[i + 1 :]]).double()
            torch.linalg.eigvalsh(p.real.root @ torch.cov(rows.T) @ p.real.root.T)

    measure(benchmark, call, 20, rounds=3)


@by_size
def bench_influence(benchmark, d):
    p = problem(d)
    benchmark.group = f"influence of {M * 32} rows, d={d}"
    rows = p.added[:32].reshape(-1, d)
    measure(benchmark, lambda: p.engine.influence(rows), len(rows))


@by_size
def bench_influence_floor(benchmark, d):
    """Its projection, [n, d]×[d, d] float64."""
    p = problem(d)
    benchmark.group = f"influence of {M * 32} rows, d={d}"
    rows, basis = p.added[:32].reshape(-1, d).double(), torch.randn(d, d, dtype=torch.float64, device=DEVICE)
    out = torch.empty_like(rows)
    measure(benchmark, lambda: torch.mm(rows, basis, out=out), len(rows))


# --- rivals ----------------------------------------------------------------------------------------------------------


def changed_sets(p, count):
    """The changed sample sets, one after the other, float64 [N, d] on the host."""
    for r, a in zip(p.removed[:count], p.added, strict=False):
        rows = p.reference.double().cpu()
        rows[r.cpu()] = a.double().cpu()
        yield rows


@by_size
def bench_eigvalsh(benchmark, d):
    p, count = problem(d), SIZES[d]["eigvalsh"]
    benchmark.group = f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"
    base = p.reference.double()
    mean = base.mean(0)
    scatter = (base - mean).T @ (base - mean)

    def call():
        results = []
        for r, a in zip(p.removed[:count], p.added, strict=False):
            y_r, y_a = base[r] - mean, a.double() - mean
            delta = (y_a.sum(0) - y_r.sum(0)) / N
            cov = (scatter + y_a.T @ y_a - y_r.T @ y_r - N * torch.outer(delta, delta)) / (N - 1)
            roots = torch.linalg.eigvalsh(p.real.root @ cov @ p.real.root.T).clamp(min=0).sqrt().sum()
            offset = (p.mean - mean - delta).square().sum()
            results.append(offset + p.real.trace + cov.diagonal().sum() - 2 * roots)
        return torch.stack(results)

    check(measure(benchmark, call, count, rounds=1), p)


@by_size
def bench_moment_queue(benchmark, d):
    p, count = problem(d), SIZES[d]["eigvalsh"]
    benchmark.group = f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"
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

    distances = measure(benchmark, call, count, rounds=1)
    benchmark.extra_info["error_over_spread"] = float((distances - p.scores[:count]).abs().max() / p.scores.std())


def by_a_tool(benchmark, d, provider, distance):
    """Moments of every changed set from scratch and a tool's own function of (mean, cov, mean, cov), once."""
    p, count = problem(d), SIZES[d][provider]
    real = p.mean.cpu(), p.cov.cpu()
    benchmark.group = f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"

    def call():
        return np.array([float(distance(rows.mean(0), torch.cov(rows.T), *real)) for rows in changed_sets(p, count)])

    check(measure(benchmark, call, count, rounds=1), p)


@by_size
def bench_eigvals_torch_fidelity(benchmark, d):
    def distance(mean, cov, real_mean, real_cov):
        sides = [{"mu": m.numpy(), "sigma": c.numpy()} for m, c in ((mean, cov), (real_mean, real_cov))]
        return fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]

    by_a_tool(benchmark, d, "eigvals", distance)


@by_size
def bench_eigvals_torchmetrics(benchmark, d):
    fid = pytest.importorskip("torchmetrics.image.fid")
    by_a_tool(benchmark, d, "eigvals", fid._compute_fid)


@by_size
def bench_sqrtm_pytorch_fid(benchmark, d):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    by_a_tool(benchmark, d, "sqrtm", lambda *sides: fid_score.calculate_frechet_distance(*(x.numpy() for x in sides)))


# --- growth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [*GROWTH_B, pytest.param(1024, marks=pytest.mark.full)])
def bench_growth_with_candidates(benchmark, candidates):
    p = problem(GROWTH_DIM, N, candidates)
    benchmark.group = f"seconds against B, d={GROWTH_DIM}, N={N}"
    measure(benchmark, lambda: p.engine.score(p.removed, p.added), candidates)


@pytest.mark.parametrize("count", [*GROWTH_N, *(pytest.param(n, marks=pytest.mark.full) for n in (20_000, 50_000))])
def bench_growth_with_reference(benchmark, count):
    p = problem(GROWTH_DIM, count, 64)
    benchmark.group = f"seconds against N, d={GROWTH_DIM}, B=64"
    benchmark.extra_info["N"] = count
    measure(benchmark, lambda: p.engine.score(p.removed, p.added), 64)


def bench_threads(benchmark):
    """Two threads against one on the same candidates: the share of the second core."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core")
    p = problem(GROWTH_DIM, N, 64)
    benchmark.group = f"seconds against N, d={GROWTH_DIM}, B=64"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measure(benchmark, lambda: p.engine.score(p.removed, p.added), 64)
    finally:
        torch.set_num_threads(before)
