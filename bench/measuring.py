"""What all benchmarks share: the device, the speed of the machine's matrix products, and the numbers next to each time.

`record` writes these into pytest-benchmark's extra_info, for one call of the timed function:

    threads, candidates   the number of threads, and what the call scores; seconds_per_candidate is the median divided
                          by the candidates
    flops                 counted by hand for the algorithm as it runs; a multiply-add counts as two, leading terms only
    bytes                 least possible traffic: inputs read once, results written once, nothing between
    gflops                10⁹ flops per second
    share_of_peak         time of these flops as square products of the same type, divided by the measured time
    peak                  which products: "sgemm" (float32), "dgemm" (float64) or both; peak_gflops has their speed
    error, error_unit     largest difference from float64, in multiples of this quantity

Rates use the median.  The peak is measured right after the rounds with the same threads, because the speed of a machine
changes within minutes.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import time
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GEMM = {torch.float32: "sgemm", torch.float64: "dgemm"}  # what BLAS calls a product of matrices
# Order of the square products that measure the peak. On two cores, 1536 takes 0.03–0.08 s. On a GPU it would take less
# than a millisecond, close to the time of a launch.
SIDE = {"cpu": 1536, "cuda": 8192}
PRODUCTS = 2  # products that are timed; the fastest counts

# Flops of dense factorisations of an n×n matrix, in n³, leading terms.
CHOLESKY = 1 / 3  # Golub & Van Loan, Matrix Computations, 4th ed. 2013, section 4.2
EIGVALSH = 4 / 3  # the same, section 8.3: reduction to tridiagonal form, whose eigenvalues take O(n²)
# With eigenvectors, as LAPACK computes them: divide and conquer without deflation, whose merges take
# n³(1 + 1/4 + 1/16 …) = 4/3 n³, and n reflections of n/2 entries on average, applied to n columns, 2 n³.
EIGH = EIGVALSH + 4 / 3 + 2
EIGVALS = 10  # of a general matrix, the QR algorithm (Golub & Van Loan, section 7.5)
SQRTM = 25 + 1 / 3 + 3  # Schur form, its root, their product (Higham, Functions of Matrices, 2008, algorithm 6.3)


def rival(module: str) -> ModuleType:
    """The module of another tool. Skips the benchmark with the module's name if it is not installed."""
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[test]'")


def installed(module: str) -> bool:
    """Whether another tool is installed."""
    return importlib.util.find_spec(module.split(".")[0]) is not None


def finished(call: Callable) -> Callable:
    """`call`, and a wait until the GPU has done its work: a launch returns before its kernel has run."""

    def until_done(*arguments):
        result = call(*arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    return until_done


def peak(dtype: torch.dtype) -> float:
    """Flops per second of the fastest of a few square products of this type."""
    side = SIDE[DEVICE.type]
    a, b = torch.randn(2, side, side, dtype=dtype, device=DEVICE)
    out = torch.empty_like(a)
    seconds = device_seconds if DEVICE.type == "cuda" else host_seconds
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(PRODUCTS))


def host_seconds(call: Callable) -> float:
    """Seconds of one call, by the host's clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def device_seconds(call: Callable) -> float:
    """Seconds of the GPU for one call, by its own events: without the launch."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_bytes(call: Callable) -> int | None:
    """Most memory that `call` takes in addition to what is there before it, its result included.

    On a GPU, bytes of torch's allocator; on a CPU, resident memory of the process, and None if the system is not Linux.
    """
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = finished(call)()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        release_free_memory()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # resets the peak (proc(5))
        except OSError:
            return None
        before, kept = _resident("VmRSS"), call()
        peak = _resident("VmHWM") - before
    del kept
    return peak


def release_free_memory() -> None:
    """Give free memory back to the system: what a call reuses of it would not show in its peak, or in its time."""
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # of glibc alone


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(field)).split()[1])


def record(
    benchmark,
    flops: dict[torch.dtype, float] | None = None,
    moved: float | None = None,
    candidates: int = 1,
    error: float | None = None,
    unit: str | None = None,
) -> None:
    """Writes extra_info as described above: flops of one call by type, bytes `moved`, error."""
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
