"""Least times of the GPU route from counted flops and bytes and published peaks.  Computed, not measured.

    python -m bench.roofline             prints the table
    python -m bench.roofline --write     writes bench/results/roofline.csv

For every phase of scoring B candidates, with the tiles and the padding of the kernels,

    time ≥ max(flops / peak of the unit that computes them, bytes / memory bandwidth).

This assumes that units and memory are always busy and that nothing else takes time.  It is a lower bound for
measurements, not a prediction.  The factor phase is a chain of k dependent steps and will stay far above it.

    projection   W_a = Y_a P, [B·m, d] × [d, r]          tf32x3: three tensor-core products for one float32 product
    gram         B·Q tiles G += S_p S_pᵀ, K² each        tf32x3; W is read once from memory and Q times from cache
    factor       B·Q eliminations of k columns           float32 units: 3 K² per column, mask and sum, then multiply-add
    moments      scatter of N rows, lower tiles          tf32x3; once per reference, not once per score

Legend: B candidates, m rows removed and added each, k = 2m, K tile ≥ k, d features, r = d rank, Q nodes, N reference
rows.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).resolve().parent / "results" / "roofline.csv"
COLUMNS = ("device", "nodes", "phase", "unit", "gflop", "megabytes", "milliseconds", "bound_by", "status")
STATUS = "computed, not measured"

# The problem of the project's benchmark: candidates, rows per swap, features, reference rows.  NODES: numbers of nodes
# for the default tolerance and for a finer one.
B, M, D, N = 128, 50, 2048, 5000
NODES = (12, 16)

# Tile orders of swap_logdet for k = 100 and of moments.
GRAM_TILE, MOMENT_TILE = 128, 64

FLOAT32, FLOAT64 = 4, 8  # bytes


class Device(NamedTuple):
    """Published dense peaks: flops per second in float32 and on tf32 tensor cores, and memory bytes per second."""

    name: str
    float32: float
    tf32: float
    bandwidth: float


DEVICES = (
    # NVIDIA A100 datasheet (2022), A100 80GB SXM: FP32 19.5 TFLOPS, TF32 156 TFLOPS, 2,039 GB/s
    Device("A100 SXM", 19.5e12, 156e12, 2039e9),
    # NVIDIA H100 datasheet (2024), H100 SXM: FP32 67 TFLOPS, TF32 989 TFLOPS with sparsity, half of it dense, 3.35 TB/s
    Device("H100 SXM", 67e12, 494.5e12, 3350e9),
    # NVIDIA Blackwell datasheet (2025), HGX B200, one GPU: FP32 75 TFLOPS, TF32 2.2 PFLOPS with sparsity, 7.7 TB/s
    Device("B200", 75e12, 1100e12, 7700e9),
)


class Phase(NamedTuple):
    """Work of one phase: the unit, the flops that it executes, and the least bytes moved to and from memory."""

    name: str
    unit: str
    flops: float
    bytes: float


def phases(nodes: int) -> list[Phase]:
    """Flops and bytes of one score with Q = `nodes`, and of the reference's moments."""
    k, programs = 2 * M, B * nodes
    rows = B * M * D * FLOAT32  # the added rows, or their projections
    tiles = -(-D // MOMENT_TILE)
    lower = tiles * (tiles + 1) // 2
    return [
        Phase("projection", "tf32x3", 3 * 2 * B * M * D * D, 2 * rows + D * D * FLOAT32),
        Phase("gram", "tf32x3", 3 * 2 * programs * GRAM_TILE**2 * D, 2 * rows + nodes * D * FLOAT32),
        Phase("factor", "float32", 3 * programs * k * GRAM_TILE**2, 2 * programs * FLOAT64),
        Phase("moments", "tf32x3", 3 * 2 * lower * MOMENT_TILE**2 * N, N * D * FLOAT32 + D * D * FLOAT64),
    ]


def bound(device: Device, phase: Phase) -> tuple[float, str]:
    """Least seconds of a phase on a device, and what limits it: "arithmetic" or "memory"."""
    peak = device.tf32 if phase.unit == "tf32x3" else device.float32
    arithmetic, memory = phase.flops / peak, phase.bytes / device.bandwidth
    return max(arithmetic, memory), "arithmetic" if arithmetic >= memory else "memory"


def table() -> list[dict]:
    """One row per device, number of nodes and phase, and one for the sum of a score's three phases."""
    rows = []
    for device in DEVICES:
        for nodes in NODES:
            bounds = {phase: bound(device, phase) for phase in phases(nodes)}
            rows += [_row(device, nodes, phase, *found) for phase, found in bounds.items()]
            score = [phase for phase in bounds if phase.name != "moments"]
            total = Phase("score", "all", sum(p.flops for p in score), sum(p.bytes for p in score))
            rows.append(_row(device, nodes, total, sum(bounds[p][0] for p in score), "sum of its phases"))
    return rows


def _row(device: Device, nodes: int, phase: Phase, seconds: float, bound_by: str) -> dict:
    return {
        "device": device.name,
        "nodes": nodes,
        "phase": phase.name,
        "unit": phase.unit,
        "gflop": f"{phase.flops / 1e9:.1f}",
        "megabytes": f"{phase.bytes / 1e6:.1f}",
        "milliseconds": f"{seconds * 1e3:.4f}",
        "bound_by": bound_by,
        "status": STATUS,
    }


def main() -> None:
    """Command line, described at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {os.path.join('bench', 'results', TABLE.name)}")
    options = parser.parse_args()
    _write(sys.stdout)
    if options.write:
        with open(TABLE, "w", newline="") as file:
            _write(file)


def _write(file) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table())


if __name__ == "__main__":
    main()
