"""How the time of a score grows with candidates B, reference samples N and threads.

    pytest bench/bench_swap_growth.py --benchmark-only [--full]     --full: B up to 1,024 and N up to 50,000

Problem, errors and devices are those of bench/bench_swap.py.
"""

import pytest
import torch

from bench.measuring import record
from bench.swap_problem import F32, SPREAD, N, measure, problem, score_bytes, score_flops

GROWTH_DIM = 512
GROWTH_B = (1, 4, 16, 64, 256)
GROWTH_N = (2_500, 5_000, 10_000)


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
    """The same candidates on all threads and on one."""
    before = torch.get_num_threads()
    if before == 1:
        pytest.skip("one thread")
    benchmark.group = f"threads, d={GROWTH_DIM}, N={N}, B=64"
    torch.set_num_threads(before if threads == "all" else 1)
    try:
        measure_growth(benchmark, problem(GROWTH_DIM, N, 64))
    finally:
        torch.set_num_threads(before)
