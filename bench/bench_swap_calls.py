"""The other calls of the swap engine next to their lower bounds: prepare, gradients, leave-one-out, influence.

Problem, errors and devices are those of bench/bench_swap.py.
"""

import torch

from bench.measuring import DEVICE, EIGH, EIGVALSH, peak_bytes, record
from bench.swap_problem import (
    DOUBLE,
    F32,
    F64,
    SINGLE,
    M,
    N,
    by_size,
    largest_difference,
    last_nodes,
    measure,
    problem,
    product_bytes,
    score_bytes,
    score_flops,
    singles_flops,
    weighted_positions,
)
from fastfid import FeatureMoments, SwapEngine, frechet_distance

GRADIENTS = 32  # candidates that are differentiated
GRADIENTS_BY_AUTOGRAD = 4
INFLUENCES = 32 * M  # rows
LEFT_OUT_BY_FORCE = 20


@by_size
def bench_prepare(benchmark, d):
    p = problem(d)
    benchmark.group = f"prepare, d={d}, N={N}"
    engine = measure(benchmark, lambda: SwapEngine(p.real, p.reference), rounds=2)
    # one triangle of the covariance, R Σ_g Rᵀ, its eigenvectors, Rᵀ U in float64; the reference projected in float32
    flops = {F64: N * d**2 + (4 + EIGH + 2) * d**3, F32: 2 * N * d**2}
    moved = SINGLE * (2 * N * d + d**2) + DOUBLE * 2 * d**2  # reference twice; R, and the basis in both types
    # Cholesky and eigvalsh share only the moments with prepare
    exact = frechet_distance((p.mean, p.cov), FeatureMoments.from_features(p.reference))
    record(benchmark, flops, moved, error=abs(engine.distance / exact - 1), unit="distance")
    benchmark.extra_info["peak_bytes"] = peak_bytes(lambda: SwapEngine(p.real, p.reference))


def prepare_parts(p):
    """What prepare cannot avoid: a float64 eigh, the products around it, the projection of the reference."""
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


def gradient_flops(engine):
    """Flops of a gradient in addition to `score_flops`, as in csrc/cpu/gradient_kernel.h.

    The columns of the inverses that belong to added rows: substitution in their own corner (m³/3 per node) and back
    (k² m).  Products with the rows: 2 m k per position.  The way back through the projection: 2 m d².
    """
    d, k = engine.real.dim, 2 * M
    inverses = len(last_nodes(engine).tau) * (M**3 / 3 + k**2 * M)
    return inverses + 2 * M * k * weighted_positions(engine) + 2 * M * d**2


def gradient_of(engine, removed, added):
    added = added.clone().requires_grad_()
    engine.score(removed, added).sum().backward()
    return added.grad


def record_gradient(benchmark, p, gradient, flops, moved):
    """The error is measured on the candidates that autograd also differentiates."""
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
    # without the extension, autograd goes through the torch route, which is not counted
    flops = score_flops(p.engine) + gradient_flops(p.engine) if p.engine.options.cpp else None
    moved = score_bytes(d, GRADIENTS) + SINGLE * added.numel()
    record_gradient(benchmark, p, gradient, flops and {F32: GRADIENTS * flops}, moved)


@by_size
def bench_engine_without_gradient(benchmark, d):
    p = problem(d)
    benchmark.group = f"gradient of {GRADIENTS} swaps of {M}, d={d}, N={N}"
    distances = measure(benchmark, lambda: p.engine.score(p.removed[:GRADIENTS], p.added[:GRADIENTS]))
    record(benchmark, {F32: GRADIENTS * score_flops(p.engine)}, score_bytes(d, GRADIENTS), len(distances))


def bench_gradient_by_autograd(benchmark):
    """Autograd through the covariance of the changed set and eigvalsh(R Σ' Rᵀ), only for d = 128."""
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
    """Covariance and eigvalsh of some of the N sets, only for d = 128."""
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
    """All in float64. There is no error, because nothing more accurate is there to compare with."""
    p = problem(d)
    benchmark.group = f"influence of {INFLUENCES} rows, d={d}"
    rows = p.added.reshape(-1, d)[:INFLUENCES]
    measure(benchmark, lambda: p.engine.influence(rows))
    moved = SINGLE * rows.numel() + DOUBLE * (d**2 + len(rows))
    record(benchmark, {F64: 2 * len(rows) * d**2}, moved, len(rows))


@by_size
def bench_influence_floor(benchmark, d):
    """The projection alone, [n, d]×[d, d] float64."""
    p = problem(d)
    benchmark.group = f"influence of {INFLUENCES} rows, d={d}"
    rows, basis = p.added.reshape(-1, d)[:INFLUENCES].double(), torch.randn(d, d, dtype=F64, device=DEVICE)
    out = torch.empty_like(rows)
    measure(benchmark, lambda: torch.mm(rows, basis, out=out))
    record(benchmark, {F64: 2 * len(rows) * d**2}, product_bytes(len(rows), d, DOUBLE), len(rows))
