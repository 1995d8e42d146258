"""Least times of the GPU route from counted flops and bytes and published peaks.  Computed, not measured.

    python -m bench.roofline             prints the table
    python -m bench.roofline --write     writes bench/results/roofline.csv

For every phase of scoring B candidates, with the tiles and the padding of the kernels,

    time ≥ max(flops / peak of the unit that computes them, bytes / memory bandwidth).

This assumes that units and memory are always busy and that nothing else takes time.  It is a lower bound for
measurements, not a prediction.  The factor phase is a chain of k dependent steps and will stay far above it.

    centre       sums over the rows of a candidate        float64; added and removed rows are read once
    projection   W_a = Y_a P, [B·m, d] × [d, r]           tf32x3: three tensor-core products for one float32 product
    rows         look up, spread out and join W_r and W_a float32; each is read and written
    gram         one K×K matrix a function of the plan    tf32x3; W is read once from memory, matrices are written
    mix          functions to nodes, [Q, F] × [F, k²]     float32; reads the functions' matrices, writes the nodes'
    factor       B·Q eliminations of k columns            float32: k³/3 by csrc/cuda, which keeps a triangle
    call         launches that cannot overlap, one wait   LAUNCHES of a score times LAUNCH seconds
    moments      scatter of N rows, lower tiles           tf32x3; once per reference, not once per score

The plan's counts (`Plan`) are those of the benchmark's spectrum, which bench.swap_problem counts:

    python -m bench.roofline --count     prepares that problem, some 10 s, and prints them

Legend: B candidates, m rows removed and added each, k = 2m, K tile ≥ k, d features, r = d rank, Q nodes, F functions of
the plan, N reference rows.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

TABLE = Path(__file__).resolve().parent / "results" / "roofline.csv"
COLUMNS = ("device", "nodes", "phase", "unit", "gflop", "megabytes", "milliseconds", "bound_by", "status")
STATUS = "computed, not measured"

# The problem of the project's benchmark: candidates, rows per swap, features, reference rows.
B, M, D, N = 128, 50, 2048, 5000

# Tile orders of plan_grams for k = 100 and of moments.
GRAM_TILE, MOMENT_TILE = 128, 64

# Kernels of a score, counted by the tests on a pretended device and rounded up; and the seconds from one launch to the
# next that a stream needs for kernels without work, 2 to 4 µs on current GPUs (assumed, not measured here).
LAUNCHES, LAUNCH = 64, 3e-6

# The same of all scores of a trainer's step: subsets, single swaps, rows left out.
STEP_LAUNCHES = 224


class Plan(NamedTuple):
    """Nodes Q, functions F, and weighted positions: Σ over functions of the length of their slice."""

    nodes: int
    functions: int
    positions: int


PLAN = Plan(nodes=16, functions=105, positions=6528)

FLOAT32, FLOAT64 = 4, 8  # bytes


class Device(NamedTuple):
    """Published dense peaks: flops a second in float64, float32 and on tf32 tensor cores, and memory bytes a second."""

    name: str
    float64: float
    float32: float
    tf32: float
    bandwidth: float


DEVICES = (
    # NVIDIA A100 datasheet (2022), A100 80GB SXM: FP64 9.7, FP32 19.5 TFLOPS, TF32 156 TFLOPS, 2,039 GB/s
    Device("A100 SXM", 9.7e12, 19.5e12, 156e12, 2039e9),
    # NVIDIA H100 datasheet (2024), H100 SXM: FP64 34, FP32 67 TFLOPS, TF32 989 TFLOPS with sparsity, half of it dense
    Device("H100 SXM", 34e12, 67e12, 494.5e12, 3350e9),
    # NVIDIA H200 datasheet (2024): as the H100, with 4.8 TB/s
    Device("H200", 34e12, 67e12, 494.5e12, 4800e9),
    # NVIDIA Blackwell datasheet (2025), HGX B200, one GPU: FP64 37, FP32 75 TFLOPS, TF32 2.2 PFLOPS with sparsity
    Device("B200", 37e12, 75e12, 1100e12, 7700e9),
)


class Phase(NamedTuple):
    """Work of one phase: the unit, the flops that it executes, and the least bytes moved to and from memory."""

    name: str
    unit: str
    flops: float
    bytes: float


def phases(plan: Plan = PLAN) -> list[Phase]:
    """Flops and bytes of one score with this plan, and of the reference's moments."""
    k, matrices = 2 * M, B * plan.nodes
    rows = B * M * D * FLOAT32  # the added rows, or their projections
    grams = B * plan.functions * k**2 * FLOAT32
    of_nodes = matrices * k**2 * FLOAT32
    tiles = -(-D // MOMENT_TILE)
    lower = tiles * (tiles + 1) // 2
    return [
        Phase("centre", "float64", 3 * 2 * B * M * D, 2 * rows),
        Phase("projection", "tf32x3", 3 * 2 * B * M * D * D, 2 * rows + D * D * FLOAT32),
        Phase("rows", "float32", 4 * 2 * B * M * D, 8 * rows),
        Phase("gram", "tf32x3", 3 * 2 * B * GRAM_TILE**2 * plan.positions, 2 * rows + grams),
        Phase("mix", "float32", 2 * B * plan.nodes * plan.functions * k**2, grams + of_nodes),
        Phase("factor", "float32", matrices * k**3 / 3, of_nodes + 2 * matrices * FLOAT64),
        Phase("moments", "tf32x3", 3 * 2 * lower * MOMENT_TILE**2 * N, N * D * FLOAT32 + D * D * FLOAT64),
    ]


def bound(device: Device, phase: Phase) -> tuple[float, str]:
    """Least seconds of a phase on a device, and what limits it: "arithmetic" or "memory"."""
    peak = {"tf32x3": device.tf32, "float32": device.float32, "float64": device.float64}[phase.unit]
    arithmetic, memory = phase.flops / peak, phase.bytes / device.bandwidth
    return max(arithmetic, memory), "arithmetic" if arithmetic >= memory else "memory"


def score_bound(device: Device, plan: Plan = PLAN) -> float:
    """Least seconds of a score: the sum of its phases, and its launches."""
    return sum(bound(device, phase)[0] for phase in phases(plan) if phase.name != "moments") + LAUNCHES * LAUNCH


def table() -> list[dict]:
    """Rows of each device: the phases, the launches, their sum, and the same for one candidate."""
    rows = []
    for device in DEVICES:
        found = phases()
        rows += [_row(device, phase, *bound(device, phase)) for phase in found]
        call = Phase("call", "launches", 0, 0)
        rows.append(_row(device, call, LAUNCHES * LAUNCH, f"{LAUNCHES} launches of {LAUNCH * 1e6:g} µs, assumed"))
        score = [phase for phase in found if phase.name != "moments"]
        total = Phase("score", "all", sum(p.flops for p in score), sum(p.bytes for p in score))
        rows.append(_row(device, total, score_bound(device), "sum of its phases"))
        one = Phase("score, a candidate", "all", total.flops / B, total.bytes / B)
        rows.append(_row(device, one, score_bound(device) / B, f"of {B}"))
    return rows


def _row(device: Device, phase: Phase, seconds: float, bound_by: str) -> dict:
    return {
        "device": device.name,
        "nodes": PLAN.nodes,
        "phase": phase.name,
        "unit": phase.unit,
        "gflop": f"{phase.flops / 1e9:.3f}",
        "megabytes": f"{phase.bytes / 1e6:.1f}",
        "milliseconds": f"{seconds * 1e3:.4f}",
        "bound_by": bound_by,
        "status": STATUS,
    }


def main() -> None:
    """Command line, described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {os.path.join('bench', 'results', TABLE.name)}")
    parser.add_argument("--count", action="store_true", help="count the plan of the benchmark's spectrum and stop")
    options = parser.parse_args()
    if options.count:
        print(counted())
        return
    _write(sys.stdout)
    if options.write:
        with open(TABLE, "w", newline="") as file:
            _write(file)


def counted() -> Plan:
    """The plan's counts of the benchmark's problem, prepared here."""
    from bench.swap_problem import Problem, last_nodes, weighted_positions

    problem = Problem(D, N, 4)
    nodes = last_nodes(problem.engine)
    functions = int(nodes.plan(np.dtype(np.float32)).terms.sum())
    return Plan(len(nodes), functions, weighted_positions(problem.engine))


def _write(file) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table())


if __name__ == "__main__":
    main()
