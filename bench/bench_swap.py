"""Fréchet distances of swapped sets: the engine beside the routes it replaces.  pytest bench/ --benchmark-only

Providers score the same candidates, a slow one fewer of them and once: compare `seconds_per_candidate` in the extra
info (bench/measuring.py tells what else is there).  The first provider of a group is ours.  Times are reported, never
asserted; bench/swap_ratios.py alternates the engine with its own floors.

    engine          SwapEngine, default precision, reference prepared before; `first score after a refresh` makes the
                    weight plan and the memory that later ones find
    projection      the engine's own product of new rows and basis, [B·m, d]×[d, d] float32: its floor
    eigvalsh        moments of the changed set by a rank update, R Σ' Rᵀ, float64 symmetric eigenvalues
    eigvals         moments of the changed set from scratch, torch-fidelity's and torchmetrics' own functions (general
                    eigenvalues)
    sqrtm           moments from scratch, pytorch-fid's own function (SciPy's matrix root of Σ_r Σ'), once
    moment queue    FD-loss's algorithm: running sums with rows evicted and added, eigvalsh(R Σ' Rᵀ) in float32 products

Errors are of at most 16 candidates, from an engine in float64: eigvalsh, which shares none of its arithmetic, tells by
its own how far that one is to be trusted.

Where there is a GPU, the sets and the engine are on it, and a round ends when its work is done; the tools' own
functions take NumPy arrays and stay on the host.

`--full` adds the growth with B up to 1,024 and with N up to 50,000.

Legend: N reference samples, d features, B candidates, m replaced in each, k = 2m, Q nodes.
"""

from functools import cached_property

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from bench.measuring import DEVICE, EIGH, EIGVALS, EIGVALSH, SQRTM, finished, record
from fastfid import FeatureMoments, RealFactor, SwapEngine, frechet_distance

M = 50
N = 5000
SIZES = {  # candidates a provider scores
    128: {"engine": 128, "eigvalsh": 32, "eigvals": 4, "sqrtm": 4},
    2048: {"engine": 128, "eigvalsh": 2, "eigvals": 1, "sqrtm": 1},
}
F32, F64 = torch.float32, torch.float64
SINGLE, DOUBLE = 4, 8  # bytes
CHECKED = 16  # candidates whose error is told: float64 takes them in 0.3 s at d = 2048
SPREAD = "std of the scores"
GRADIENTS = 32  # candidates that are differentiated
GRADIENTS_BY_AUTOGRAD = 4
INFLUENCES = 32 * M  # rows
LEFT_OUT_BY_FORCE = 20
GROWTH_DIM = 512
GROWTH_B = (1, 4, 16, 64, 256)
GROWTH_N = (2_500, 5_000, 10_000)
_prepared: dict = {}


class Problem:
    """Real moments, reference [N, d], removed [B, m], added [B, m, d], an engine and a float64 one to judge it."""

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

    @cached_property
    def judge(self):
        return SwapEngine(self.real, self.reference.double(), dtype=F64)

    @cached_property
    def exact(self):
        return self.judge.score(self.removed[:CHECKED], self.added[:CHECKED].double())

    def error(self, distances):
        """Largest error of the first distances in units of SPREAD; None where there is one candidate and no spread."""
        if len(self.scores) < 2:
            return None
        found = torch.as_tensor(distances[:CHECKED]).to(self.exact)
        return (found - self.exact[: len(found)]).abs().max() / self.scores.std()


def problem(d, count=N, candidates=None):
    key = (d, count, candidates or SIZES[d]["engine"])
    if key not in _prepared:
        _prepared[key] = Problem(*key)
    return _prepared[key]


def score_group(d):
    return f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"


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


def measure(benchmark, call, rounds=5):
    """The result of `call` after a few timed rounds, the first of several unnoticed."""
    return benchmark.pedantic(finished(call), rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)


def largest_difference(found, exact, unit):
    """Largest error of `found` as a multiple of `unit`."""
    return (found.to(exact) - exact).abs().max() / unit


def check(distances, p):
    """Rivals and engine agree: 1e-6 covers the engine's float32 rows and eigenvalues of a non-symmetric product."""
    np.testing.assert_allclose(torch.as_tensor(distances).cpu(), p.scores[: len(distances)].cpu(), rtol=1e-6)


by_size = pytest.mark.parametrize("d", SIZES)


# --- flops and bytes -------------------------------------------------------------------------------------------------


def last_nodes(engine):
    """The nodes of the engine's last call."""
    return engine._node_cache[tuple(engine._last[name] for name in ("nodes", "lo", "hi"))]


def weighted_positions(engine):
    """Weights a product of two rows is summed with: functions times length of every slice of the plan.

    Without the extension, for there is no plan then: Q d.
    """
    nodes = last_nodes(engine)
    if not engine._extension:
        return len(nodes.tau) * engine.real.dim
    plan = nodes.plan(np.dtype(np.float32))
    return int((plan.terms * np.diff(plan.bounds)).sum())


def score_flops(engine):
    """Of a candidate: projection 2 m d², Gram matrices k² a position, twice that without the extension, LDLᵀ Q k³/3."""
    d, k, halves = engine.real.dim, 2 * M, 1 if engine._extension else 2
    return 2 * M * d**2 + halves * k**2 * weighted_positions(engine) + len(last_nodes(engine).tau) * k**3 / 3


def gradient_flops(engine):
    """Beyond `score_flops`, as csrc/cpu/gradient_kernel.h goes: columns of the inverses that belong to added rows, by
    substitution in their own corner (m³/3 a node) and back (k² m); products with the rows, 2 m k a position; 2 m d².
    """
    d, k = engine.real.dim, 2 * M
    inverses = len(last_nodes(engine).tau) * (M**3 / 3 + k**2 * M)
    return inverses + 2 * M * k * weighted_positions(engine) + 2 * M * d**2


def singles_flops(engine):
    """Of one image, without its projection: three products of two rows 3 d, and a multiply-add of each a position."""
    return 3 * engine.real.dim + 6 * weighted_positions(engine)


def score_bytes(d, candidates):
    """Added and removed rows, projections of the removed ones, the basis."""
    return SINGLE * (3 * candidates * M * d + d**2)


def product_bytes(n, d, item):
    """[n, d]×[d, d]."""
    return item * (2 * n * d + d**2)


# --- the engine ------------------------------------------------------------------------------------------------------


@by_size
def bench_prepare(benchmark, d):
    p = problem(d)
    benchmark.group = f"prepare, d={d}, N={N}"
    engine = measure(benchmark, lambda: SwapEngine(p.real, p.reference), rounds=2)
    # one triangle of the covariance, R Σ_g Rᵀ, its eigenvectors, Rᵀ U in float64; the reference projected in float32
    flops = {F64: N * d**2 + (4 + EIGH + 2) * d**3, F32: 2 * N * d**2}
    moved = SINGLE * (2 * N * d + d**2) + DOUBLE * 2 * d**2  # reference twice; R, and the basis in both types
    # by Cholesky and eigvalsh, in which none of prepare's arithmetic but the moments occurs
    exact = frechet_distance((p.mean, p.cov), FeatureMoments.from_features(p.reference))
    record(benchmark, flops, moved, error=abs(engine.distance / exact - 1), unit="distance")
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
    measure(benchmark, lambda: prepare_parts(p), rounds=2)
    flops = {F64: 2 * N * d**2 + (4 + EIGH + 2) * d**3, F32: 2 * N * d**2}
    record(benchmark, flops, SINGLE * 2 * N * d + DOUBLE * d**2)


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
    """The first call of an engine, which is prepared before: its weight plan and its memory are made in it."""
    p, count = problem(d), SIZES[d]["engine"]
    benchmark.group = score_group(d)
    used = []

    def refresh():
        used[:] = [SwapEngine(p.real, p.reference)]

    call = finished(lambda: used[0].score(p.removed, p.added))
    distances = benchmark.pedantic(call, setup=refresh, rounds=2)
    # the plan is not counted: its singular value decompositions are of small matrices and their number is not known
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


def gradient_of(engine, removed, added):
    added = added.clone().requires_grad_()
    engine.score(removed, added).sum().backward()
    return added.grad


def record_gradient(benchmark, p, gradient, flops, moved):
    """Its error is that of the candidates autograd differentiates."""
    few = slice(GRADIENTS_BY_AUTOGRAD)
    exact = gradient_of(p.judge, p.removed[few], p.added[few].double())
    error = largest_difference(gradient[few], exact, exact.abs().max())
    record(benchmark, flops, moved, len(gradient), error, "largest entry")


@by_size
def bench_engine_gradient(benchmark, d):
    p = problem(d)
    benchmark.group = f"gradient of {GRADIENTS} swaps of {M}, d={d}, N={N}"
    removed, added = p.removed[:GRADIENTS], p.added[:GRADIENTS]
    gradient = measure(benchmark, lambda: gradient_of(p.engine, removed, added))
    # autograd through the torch route, without the extension, is not counted
    flops = score_flops(p.engine) + gradient_flops(p.engine) if p.engine._extension else None
    moved = score_bytes(d, GRADIENTS) + SINGLE * added.numel()
    record_gradient(benchmark, p, gradient, flops and {F32: GRADIENTS * flops}, moved)


@by_size
def bench_engine_without_gradient(benchmark, d):
    p = problem(d)
    benchmark.group = f"gradient of {GRADIENTS} swaps of {M}, d={d}, N={N}"
    distances = measure(benchmark, lambda: p.engine.score(p.removed[:GRADIENTS], p.added[:GRADIENTS]))
    record(benchmark, {F32: GRADIENTS * score_flops(p.engine)}, score_bytes(d, GRADIENTS), len(distances))


def bench_gradient_by_autograd(benchmark):
    """Autograd through the covariance of the changed set and eigvalsh(R Σ' Rᵀ), d = 128 only."""
    d, count = 128, GRADIENTS_BY_AUTOGRAD
    p = problem(d)
    benchmark.group = f"gradient of {GRADIENTS} swaps of {M}, d={d}, N={N}"

    def call():
        added = p.added[:count].double().requires_grad_()
        for r, a in zip(p.removed[:count], added, strict=True):
            kept = torch.ones(N, dtype=torch.bool, device=DEVICE)
            kept[r] = False
            rows = torch.cat([p.reference[kept].double(), a])
            roots = torch.linalg.eigvalsh(p.real.root @ torch.cov(rows.T) @ p.real.root.T).sqrt().sum()
            ((p.mean - rows.mean(0)).square().sum() + rows.var(0).sum() - 2 * roots).backward()
        return added.grad

    gradient = measure(benchmark, call, rounds=3)
    # the covariance and its two gradients 2 N d² each, R Σ' Rᵀ and back 4 d³ each, eigenvectors and their outer product
    flops = {F64: count * (6 * N * d**2 + (8 + EIGH + 2) * d**3)}
    record_gradient(benchmark, p, gradient, flops, count * (SINGLE * (N + 2 * M) * d + DOUBLE * d**2))


@by_size
def bench_leave_one_out(benchmark, d):
    p = problem(d)
    benchmark.group = f"leave one out, d={d}, N={N}"
    changes, exact = measure(benchmark, p.engine.leave_one_out), p.judge.leave_one_out()
    moved = SINGLE * 2 * N * d + DOUBLE * N  # rows and their projections; changes
    error = largest_difference(changes, exact, exact.std())
    record(benchmark, {F32: N * singles_flops(p.engine)}, moved, N, error, "std of the changes")


@by_size
def bench_leave_one_out_floor(benchmark, d):
    """One [N, d]×[d, d] product, float32."""
    p = problem(d)
    benchmark.group = f"leave one out, d={d}, N={N}"
    basis, out = torch.randn(d, d, device=DEVICE), torch.empty(N, d, device=DEVICE)
    measure(benchmark, lambda: torch.mm(p.reference, basis, out=out))
    record(benchmark, {F32: 2 * N * d**2}, product_bytes(N, d, SINGLE), N)


def bench_leave_one_out_by_force(benchmark):
    """Covariance and eigvalsh of some of the N sets, d = 128 only."""
    d, count = 128, LEFT_OUT_BY_FORCE
    p = problem(d)
    benchmark.group = f"leave one out, d={d}, N={N}"

    def call():
        distances = []
        for i in range(count):
            rows = torch.cat([p.reference[:i], p.reference[i + 1 :]]).double()
            roots = torch.linalg.eigvalsh(p.real.root @ torch.cov(rows.T) @ p.real.root.T).clamp(min=0).sqrt().sum()
            offset = (p.mean - rows.mean(0)).square().sum()
            distances.append(offset + p.real.trace + rows.var(0).sum() - 2 * roots)
        return torch.stack(distances)

    changes, exact = measure(benchmark, call, rounds=3) - p.judge.distance, p.judge.leave_one_out()
    flops = {F64: count * (2 * N * d**2 + (4 + EIGVALSH) * d**3)}
    error = largest_difference(changes, exact[:count], exact.std())
    record(benchmark, flops, count * (SINGLE * N * d + DOUBLE * d**2), count, error, "std of the changes")


@by_size
def bench_influence(benchmark, d):
    """In float64 throughout; no error, for there is nothing finer to hold it against."""
    p = problem(d)
    benchmark.group = f"influence of {INFLUENCES} rows, d={d}"
    rows = p.added.reshape(-1, d)[:INFLUENCES]
    measure(benchmark, lambda: p.engine.influence(rows))
    moved = SINGLE * rows.numel() + DOUBLE * (d**2 + len(rows))
    record(benchmark, {F64: 2 * len(rows) * d**2}, moved, len(rows))


@by_size
def bench_influence_floor(benchmark, d):
    """Its projection, [n, d]×[d, d] float64."""
    p = problem(d)
    benchmark.group = f"influence of {INFLUENCES} rows, d={d}"
    rows, basis = p.added.reshape(-1, d)[:INFLUENCES].double(), torch.randn(d, d, dtype=F64, device=DEVICE)
    out = torch.empty_like(rows)
    measure(benchmark, lambda: torch.mm(rows, basis, out=out))
    record(benchmark, {F64: 2 * len(rows) * d**2}, product_bytes(len(rows), d, DOUBLE), len(rows))


# --- rivals ----------------------------------------------------------------------------------------------------------


def by_rank_update(p):
    """The function i ↦ distance of candidate i in float64: the reference's moments updated, eigenvalues of R Σ' Rᵀ."""
    base = p.reference.double()
    mean = base.mean(0)
    scatter = (base - mean).T @ (base - mean)

    def distance(i):
        y_r, y_a = base[p.removed[i]] - mean, p.added[i].double() - mean
        delta = (y_a.sum(0) - y_r.sum(0)) / N
        cov = (scatter + y_a.T @ y_a - y_r.T @ y_r - N * torch.outer(delta, delta)) / (N - 1)
        roots = torch.linalg.eigvalsh(p.real.root @ cov @ p.real.root.T).clamp(min=0).sqrt().sum()
        return (p.mean - mean - delta).square().sum() + p.real.trace + cov.diagonal().sum() - 2 * roots

    return distance


def by_tool(p, distance):
    """The function i ↦ distance of candidate i, from moments of the changed set and a tool's distance of moments."""
    real = p.mean.cpu(), p.cov.cpu()

    def of_candidate(i):
        rows = p.reference.double().cpu()
        rows[p.removed[i].cpu()] = p.added[i].double().cpu()
        return float(distance(rows.mean(0), torch.cov(rows.T), *real))

    return of_candidate


def torch_fidelity_distance(*moments):
    mean, cov, real_mean, real_cov = (x.numpy() for x in moments)
    sides = {"mu": mean, "sigma": cov}, {"mu": real_mean, "sigma": real_cov}
    return fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]


def torchmetrics_distance(*moments):
    return pytest.importorskip("torchmetrics.image.fid")._compute_fid(*moments)


def pytorch_fid_distance(*moments):
    return pytest.importorskip("pytorch_fid.fid_score").calculate_frechet_distance(*(x.numpy() for x in moments))


def classical_flops(d):
    """Of a candidate: two updates of rank m, R Σ' Rᵀ by two products, and its eigenvalues."""
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
    """Moments of every changed set from scratch and a tool's own function of (mean, cov, mean, cov), once.

    Flops: the covariance 2 N d², Σ_r Σ' 2 d³, and `root`·d³ of its eigenvalues or root by the textbooks.
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


# --- growth ----------------------------------------------------------------------------------------------------------


def measure_growth(benchmark, p):
    distances = measure(benchmark, lambda: p.engine.score(p.removed, p.added))
    count = len(distances)
    flops = {F32: count * score_flops(p.engine)}
    record(benchmark, flops, score_bytes(p.d, count), count, p.error(distances), SPREAD)


@pytest.mark.parametrize("candidates", [*GROWTH_B, pytest.param(1024, marks=pytest.mark.full)])
def bench_growth_with_candidates(benchmark, candidates):
    benchmark.group = f"seconds against B, d={GROWTH_DIM}, N={N}"
    measure_growth(benchmark, problem(GROWTH_DIM, N, candidates))


@pytest.mark.parametrize("count", [*GROWTH_N, *(pytest.param(n, marks=pytest.mark.full) for n in (20_000, 50_000))])
def bench_growth_with_reference(benchmark, count):
    benchmark.group = f"seconds against N, d={GROWTH_DIM}, B=64"
    benchmark.extra_info["N"] = count
    measure_growth(benchmark, problem(GROWTH_DIM, count, 64))


@pytest.mark.parametrize("threads", ["all", "one"])
def bench_threads(benchmark, threads):
    """All threads against one on the same candidates: the share of the other cores."""
    before = torch.get_num_threads()
    if before == 1:
        pytest.skip("one thread")
    benchmark.group = f"threads, d={GROWTH_DIM}, N={N}, B=64"
    torch.set_num_threads(before if threads == "all" else 1)
    try:
        measure_growth(benchmark, problem(GROWTH_DIM, N, 64))
    finally:
        torch.set_num_threads(before)
