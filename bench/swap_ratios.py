"""Time of the swap engine relative to the matrix products that it cannot avoid: alternating runs in one process.

    python -m bench.swap_ratios --rounds 15
    python -m bench.swap_ratios --rounds 5 --rivals     compares with other tools, half a minute per round

The speed of a machine changes within seconds, so two times from different moments give no exact ratio.  Every round
therefore runs each product right before the engine's call and notes their ratio.  The command prints the medians and
quartiles of the ratios.  d = 2048, N = 5,000, B = 128, m = 50, float32, as in bench_swap.py.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import torch
import tyro
from tqdm import tqdm

from bench.bench_swap_calls import prepare_parts
from bench.measuring import finished, installed
from bench.swap_problem import SIZES, Problem
from bench.swap_rivals import (
    by_rank_update,
    by_tool,
    pytorch_fid_distance,
    torch_fidelity_distance,
    torchmetrics_distance,
)
from fastfid import SwapEngine

D, N, GRADIENT_CANDIDATES, INFLUENCE_CANDIDATES = 2048, 5000, 32, 32
TOOLS = {
    "torchmetrics": torchmetrics_distance,
    "torch-fidelity": torch_fidelity_distance,
    "pytorch-fid": pytorch_fid_distance,
}


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    finished(call)()
    return time.perf_counter() - start


def product(rows: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """[n, d]×[d, d] into preallocated memory."""
    rows, basis = rows.reshape(-1, D).to(dtype), torch.randn(D, D, dtype=dtype, device=rows.device)
    out = torch.empty_like(rows)
    return lambda: torch.mm(rows, basis, out=out)


@dataclass(frozen=True)
class Ratio:
    """Seconds of `call` divided by those of `floor`, times `scale`. `before` runs first and is not timed."""

    floor: Callable[[], object]
    call: Callable[[], object]
    before: Callable[[], object] = lambda: None
    scale: float = 1.0


def ratios_of(p: Problem) -> dict[str, Ratio]:
    """Ratios of the engine to its lower bounds, by name."""
    few, rows = p.removed[:GRADIENT_CANDIDATES], p.added[:INFLUENCE_CANDIDATES].reshape(-1, D)
    added = p.added[:GRADIENT_CANDIDATES].clone().requires_grad_()
    projection, fresh = product(p.added, torch.float32), []

    def refresh():
        fresh[:] = [SwapEngine(p.real, p.reference)]

    return {
        "score / projection": Ratio(projection, lambda: p.engine.score(p.removed, p.added)),
        "first score after a refresh / projection": Ratio(
            projection, lambda: fresh[0].score(p.removed, p.added), refresh
        ),
        "score, all removing the same rows / projection": Ratio(
            projection, lambda: p.engine.score(p.removed[:1].expand(len(p.removed), -1), p.added)
        ),
        "change_each / projection": Ratio(projection, lambda: p.engine.change_each(p.removed, p.added)),
        "leave_one_out / [N, d]×[d, d]": Ratio(product(p.reference, torch.float32), p.engine.leave_one_out),
        "influence / projection in float64": Ratio(product(rows, torch.float64), lambda: p.engine.influence(rows)),
        "prepare / its parts": Ratio(lambda: prepare_parts(p), lambda: SwapEngine(p.real, p.reference)),
        "score and gradient / score": Ratio(
            lambda: p.engine.score(few, added.detach()), lambda: p.engine.score(few, added).sum().backward()
        ),
    }


def rivals_of(p: Problem) -> dict[str, Ratio]:
    """Time of a candidate by the methods that the engine replaces, relative to the engine's time of one of B."""
    classical = "rank update, float64 eigvalsh"
    routes = {
        classical: by_rank_update(p),
    }
    for name, distance in TOOLS.items():
        if installed(name.replace("-", "_")):
            routes[name] = by_tool(p, distance)
        else:
            print(f"{name} is left out: it is not installed")
    candidates = len(p.removed)
    ratios = {
        f"{name} / score, a candidate": Ratio(
            lambda: p.engine.score(p.removed, p.added), lambda route=route: route(0), scale=candidates
        )
        for name, route in routes.items()
    }
    # the ratio if the engine were nothing but its projection
    ceiling = Ratio(product(p.added, torch.float32), lambda: routes[classical](0), scale=candidates)
    return ratios | {f"{classical} / projection alone, a candidate": ceiling}


def main(rounds: int = 15, rivals: bool = False) -> None:
    """Prints the ratios of `rounds` alternating runs: of the engine to its lower bounds, or of rivals to the engine."""
    p = Problem(D, N, SIZES[D]["engine"])
    measured = rivals_of(p) if rivals else ratios_of(p)
    for ratio in measured.values():  # the first call of each makes pages, plans and threads
        ratio.before(), ratio.floor(), ratio.call()
    ratios: dict[str, list[float]] = {name: [] for name in measured}
    for _ in tqdm(range(rounds), unit="round"):
        for name, ratio in measured.items():
            ratio.before()
            base = seconds(ratio.floor)
            ratios[name].append(ratio.scale * seconds(ratio.call) / base)
    p.engine.score(p.removed, p.added)
    print(f"{torch.get_num_threads()} threads, {rounds} rounds, {p.engine.report()['nodes']} nodes\n")
    print("| ratio | median | quartiles |\n|---|---:|---:|")
    for name, values in ratios.items():
        low, middle, high = quantiles(values, n=4)
        digits = 2 if middle < 100 else 0
        print(f"| {name} | {middle:,.{digits}f} | {low:,.{digits}f}, {high:,.{digits}f} |")


if __name__ == "__main__":
    tyro.cli(main)
