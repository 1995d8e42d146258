"""What the benches share: the device, the machine's peak, and the numbers that stand beside every time.

`record` puts into pytest-benchmark's extra_info, for one call of what was timed:

    threads, candidates   what the call scores; seconds_per_candidate is the median divided by them
    flops                 counted by hand for the algorithm as it runs, a multiply-add as two, leading terms only
    bytes                 least traffic: what is given read once, what is returned written once, nothing between
    gflops                10⁹ flops a second
    share_of_peak         seconds these flops take in square products of the same type, over the seconds taken
    peak                  which products: "sgemm" (float32), "dgemm" (float64) or both; peak_gflops has their speed
    error, error_unit     largest difference from float64, and the quantity it is a multiple of

Rates are of the median.  The peak is measured right after the rounds, on the same threads: a machine's speed moves from
one minute to the next, and a share of what it gave minutes ago would say little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GEMM = {torch.float32: "sgemm", torch.float64: "dgemm"}  # what BLAS calls a product of matrices
SIDE = 1536  # of the square matrices whose product stands for the peak: 0.03–0.08 s on two cores
PRODUCTS = 2  # of which the fastest counts

# Flops of dense factorisations of an n×n matrix, in n³, leading terms.
CHOLESKY = 1 / 3  # Golub & Van Loan, Matrix Computations, 4th ed. 2013, section 4.2
EIGVALSH = 4 / 3  # the same, section 8.3: reduction to tridiagonal form, whose eigenvalues take O(n²)
# With vectors, LAPACK's way: divide and conquer without deflation, whose merges take n³(1 + 1/4 + 1/16 …) = 4/3 n³, and
# n reflections of n/2 entries on average applied to its n columns, 2 n³.
EIGH = EIGVALSH + 4 / 3 + 2
EIGVALS = 10  # of a general matrix, the QR algorithm (Golub & Van Loan, section 7.5)
SQRTM = 25 + 1 / 3 + 3  # Schur form, its root, their product (Higham, Functions of Matrices, 2008, algorithm 6.3)


def finished(call: Callable) -> Callable:
    """`call` until its work is done: a GPU's kernels go on when their launch returns."""

    def until_done(*arguments):
        result = call(*arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    return until_done


def peak(dtype: torch.dtype) -> float:
    """Flops a second of the fastest of a few square products of this type."""
    a, b = torch.randn(2, SIDE, SIDE, dtype=dtype, device=DEVICE)
    out, best = torch.empty_like(a), float("inf")
    multiply = finished(lambda: torch.mm(a, b, out=out))
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best


def record(
    benchmark,
    flops: dict[torch.dtype, float] | None = None,
    moved: float | None = None,
    candidates: int = 1,
    error: float | None = None,
    unit: str | None = None,
) -> None:
    """Fill extra_info as this module says: flops of one call by type, bytes `moved`, error."""
    extra = benchmark.extra_info
    extra |= {"threads": torch.get_num_threads(), "candidates": candidates}
    if moved is not None:
        extra["bytes"] = moved
    if error is not None:
        extra |= {"error": float(error), "error_unit": unit}
    if flops is not None:
        extra["flops"] = sum(flops.values())
    if not benchmark.stats:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    extra["seconds_per_candidate"] = seconds / candidates
    if flops is not None:
        peaks = {dtype: peak(dtype) for dtype in flops}
        extra |= {
            "gflops": sum(flops.values()) / seconds / 1e9,
            "share_of_peak": sum(count / peaks[dtype] for dtype, count in flops.items()) / seconds,
            "peak": " and ".join(GEMM[dtype] for dtype in flops),
            "peak_gflops": {GEMM[dtype]: speed / 1e9 for dtype, speed in peaks.items()},
        }
