"""What the swap engine costs beside the matrix products it cannot do without: alternating runs in one process.

    python -m bench.swap_ratios --rounds 15

A machine's speed moves from one second to the next, and a ratio of two times taken apart moves with it.  Every round
runs each product right before the engine's call and notes their ratio; medians and quartiles of the ratios are printed.
d = 2048, N = 5,000, B = 128, m = 50, float32, as in bench_swap.py.
"""

import time
from collections.abc import Callable
from statistics import quantiles

import torch
import tyro
from tqdm import tqdm

from bench.bench_swap import SIZES, Problem, finished, prepare_parts
from fastfid import SwapEngine

D, N, GRADIENT_CANDIDATES, INFLUENCE_CANDIDATES = 2048, 5000, 32, 32


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    finished(call)()
    return time.perf_counter() - start


def product(rows: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """[n, d]×[d, d] into memory of its own."""
    rows, basis = rows.reshape(-1, D).to(dtype), torch.randn(D, D, dtype=dtype, device=rows.device)
    out = torch.empty_like(rows)
    return lambda: torch.mm(rows, basis, out=out)


def pairs(p: Problem) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name of a ratio: (what it is a multiple of, what is measured)."""
    few, rows = p.removed[:GRADIENT_CANDIDATES], p.added[:INFLUENCE_CANDIDATES].reshape(-1, D)
    added = p.added[:GRADIENT_CANDIDATES].clone().requires_grad_()
    projection = product(p.added, torch.float32)
    return {
        "score / projection": (projection, lambda: p.engine.score(p.removed, p.added)),
        "score, all removing the same rows / projection": (
            projection,
            lambda: p.engine.score(p.removed[:1].expand(len(p.removed), -1), p.added),
        ),
        "change_each / projection": (projection, lambda: p.engine.change_each(p.removed, p.added)),
        "leave_one_out / [N, d]×[d, d]": (product(p.reference, torch.float32), p.engine.leave_one_out),
        "influence / projection in float64": (product(rows, torch.float64), lambda: p.engine.influence(rows)),
        "prepare / its parts": (lambda: prepare_parts(p), lambda: SwapEngine(p.real, p.reference)),
        "score and gradient / score": (
            lambda: p.engine.score(few, added.detach()),
            lambda: p.engine.score(few, added).sum().backward(),
        ),
    }


def main(rounds: int = 15) -> None:
    """Print the ratios of `rounds` alternating runs."""
    p = Problem(D, N, SIZES[D]["engine"])
    measured = pairs(p)
    for floor, call in measured.values():  # pages, plans and threads that the first call of each makes
        floor(), call()
    ratios: dict[str, list[float]] = {name: [] for name in measured}
    for _ in tqdm(range(rounds), unit="round"):
        for name, (floor, call) in measured.items():
            base = seconds(floor)
            ratios[name].append(seconds(call) / base)
    p.engine.score(p.removed, p.added)
    print(f"{torch.get_num_threads()} threads, {rounds} rounds, {p.engine.report()['nodes']} nodes\n")
    print("| ratio | median | quartiles |\n|---|---:|---:|")
    for name, values in ratios.items():
        low, middle, high = quantiles(values, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f}, {high:.2f} |")


if __name__ == "__main__":
    tyro.cli(main)
