"""The metrics beside their rivals on equal inputs: seconds per call; nothing is asserted about time.

KID      100 subsets × 1,000 of 5,000 float32 features, d = 2048.  torch-fidelity makes three kernel matrices a
         subset in float32, 1,229 GFLOP; here one triangle of each side's kernel values and all between the sides are
         made once for all subsets, in float64, 205 GFLOP.  --full: of 20,000, where both make them subset by subset,
         819 GFLOP here.
MMD      5,000 × 5,000, d = 2048, median bandwidth: 205 GFLOP and 8 for the bandwidth.
PRDC     4,000 × 4,000, d = 2048, k = 5 (--full: 10,000 × 10,000): two triangles and the products between the sets,
         4 n² d flops, 131 (819) GFLOP; prdc makes three whole matrices in float64.
moments  10,000 × 2048 and 5,000 × 512: one triangle, n d² flops, of float32 rows multiplied in float64.
Fréchet  d = 512 from moments: SciPy's Schur method (pytorch-fid), general eigenvalues (torch-fidelity), one symmetric
         eigendecomposition and one set of symmetric eigenvalues here.

Where there is a GPU, ours and the square product run on it; the rivals' own functions stay on the host.

extra_info: flops counted as above, GFLOP/s, their share of a square product of torch in the same type made between the
rounds, and the resident host memory a call adds at most, in MB.
"""

import contextlib
import ctypes
import io
import statistics
import threading
import time

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from bench.bench_swap import DEVICE, finished
from fastfid import FeatureMoments, frechet_distance, kid, mmd, prdc, precision_recall

SIDE = 2048  # of the square matrices whose product stands for the machine's peak: 0.1–0.3 s on two cores
PAGE = 4096  # bytes in a page of /proc/self/statm
SAMPLING = 0.005  # seconds between two looks at the resident memory

trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # glibc's; so that one call's heap is not reused


def features(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=generator) * (1 + 0.02 * seed)).to(DEVICE)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


@contextlib.contextmanager
def memory_watched(peaks):
    """Append the growth of the resident memory at its highest, MB."""
    trim_heap(0)
    start, done = resident(), threading.Event()
    highest = [start]

    def watch():
        while not done.wait(SAMPLING):
            highest.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peaks.append((max(highest) - start) / 1e6)


def measure(benchmark, group, call, rounds, flops=None, dtype=torch.float64):
    """Time `call` beside a square product made before every round.

    One untimed call before it is watched for memory, unless it is timed but once: those take seconds, which neither a
    warm-up nor a thread that looks every 5 ms changes.
    """
    benchmark.group, call = group, finished(call)
    square, seconds, peaks = torch.randn(SIDE, SIDE, dtype=dtype, device=DEVICE), [], []
    multiply = finished(lambda: square @ square.T)

    def product():
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)

    def watched():
        with memory_watched(peaks):
            return call()

    if flops:
        product()
        seconds.clear()
    if rounds > 1:
        watched()
    benchmark.pedantic(call if rounds > 1 else watched, setup=product if flops else None, rounds=rounds)
    benchmark.extra_info["memory_mb"] = round(max(peaks))
    if flops and benchmark.stats:
        speed, peak = flops / benchmark.stats.stats.median, 2 * SIDE**3 / statistics.median(seconds)
        name = "sgemm" if dtype == torch.float32 else "dgemm"
        benchmark.extra_info.update(
            flops=flops, gflops=round(speed / 1e9, 1), **{f"share_of_{name}": round(speed / peak, 2)}
        )


def quietly(call):
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints its counts
        return call()


# --- KID and MMD -------------------------------------------------------------------------------------------------

D = 2048


@pytest.fixture(scope="module")
def five_thousand():
    return features(5000, D, 0), features(5000, D, 1)


def test_kid_fastfid(benchmark, five_thousand):
    call = lambda: kid(*five_thousand)  # noqa: E731
    measure(benchmark, "KID 100x1000 of 5000, d=2048", call, rounds=3, flops=4 * 5000**2 * D)


def test_kid_torch_fidelity(benchmark, five_thousand):
    real, generated = (x.cpu() for x in five_thousand)
    call = lambda: kid_features_to_metric(generated, real, verbose=False)  # noqa: E731
    measure(benchmark, "KID 100x1000 of 5000, d=2048", call, rounds=1)


@pytest.fixture(scope="module")
def twenty_thousand():
    return features(20_000, D, 0), features(20_000, D, 1)


@pytest.mark.full
def test_kid_by_subsets_fastfid(benchmark, twenty_thousand):
    call = lambda: kid(*twenty_thousand)  # noqa: E731
    measure(benchmark, "KID 100x1000 of 20000, d=2048", call, rounds=1, flops=100 * 4 * 1000**2 * D)


@pytest.mark.full
def test_kid_by_subsets_torch_fidelity(benchmark, twenty_thousand):
    real, generated = (x.cpu() for x in twenty_thousand)
    call = lambda: kid_features_to_metric(generated, real, verbose=False)  # noqa: E731
    measure(benchmark, "KID 100x1000 of 20000, d=2048", call, rounds=1)


def test_mmd_fastfid(benchmark, five_thousand):
    flops = 4 * 5000**2 * D + 2000**2 * D  # and the pairs of 2,000 rows for the bandwidth
    measure(benchmark, "MMD 5000x5000, d=2048", lambda: mmd(*five_thousand), rounds=2, flops=flops)


# --- neighbours --------------------------------------------------------------------------------------------------

LARGE = [4000, pytest.param(10_000, marks=pytest.mark.full)]


@pytest.mark.parametrize("n", LARGE)
def test_prdc_fastfid(benchmark, n):
    real, generated = features(n, D, 0), features(n, D, 1)
    call, flops = lambda: prdc(real, generated), 4 * n**2 * D
    measure(benchmark, f"PRDC {n}x{n}, d=2048", call, rounds=3 if n < 10_000 else 1, flops=flops, dtype=torch.float32)


@pytest.mark.parametrize("n", LARGE)
def test_prdc_prdc(benchmark, n):
    real, generated = (features(n, D, seed).cpu().numpy() for seed in (0, 1))
    call = lambda: quietly(lambda: compute_prdc(real, generated, 5))  # noqa: E731
    measure(benchmark, f"PRDC {n}x{n}, d=2048", call, rounds=1)


@pytest.fixture(scope="module")
def two_thousand():
    return features(2000, 128, 0), features(2000, 128, 1)


def test_precision_recall_fastfid(benchmark, two_thousand):
    measure(benchmark, "P&R 2000x2000, d=128", lambda: precision_recall(*two_thousand), rounds=7)


def test_precision_recall_torch_fidelity(benchmark, two_thousand):
    real, generated = (x.cpu() for x in two_thousand)
    call = lambda: prc_features_to_metric(generated, real, verbose=False)  # noqa: E731
    measure(benchmark, "P&R 2000x2000, d=128", call, rounds=7)


# --- moments -----------------------------------------------------------------------------------------------------

SHAPES = [(5000, 512), (10_000, 2048), pytest.param(50_000, 2048, marks=pytest.mark.full)]


def rounds_for(n, d):
    return max(1, min(11, int(10e10 / (n * d**2))))  # two seconds or so on two cores


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_moments_fastfid(benchmark, n, d):
    x = features(n, d, 0)
    call = lambda: FeatureMoments.from_features(x).cov  # noqa: E731
    measure(benchmark, f"moments {n}x{d}", call, rounds_for(n, d), flops=n * d**2)


@pytest.mark.parametrize(("n", "d"), SHAPES[:2])
def test_moments_in_batches_of_64_fastfid(benchmark, n, d):
    batches = features(n, d, 0).split(64)

    def call():
        moments = FeatureMoments.empty(d)
        for batch in batches:
            moments.update(batch)
        return moments.cov

    measure(benchmark, f"moments {n}x{d}", call, rounds_for(n, d), flops=n * d**2)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_moments_numpy(benchmark, n, d):
    x = features(n, d, 0).cpu().numpy()
    call = lambda: (x.mean(axis=0), np.cov(x, rowvar=False))  # noqa: E731
    measure(benchmark, f"moments {n}x{d}", call, rounds_for(n, d), flops=n * d**2)


# --- Fréchet -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments():
    return tuple(FeatureMoments.from_features(features(3000, 512, seed)) for seed in (0, 1))


def test_frechet_fastfid(benchmark, moments):
    measure(benchmark, "Fréchet d=512", lambda: frechet_distance(*moments), rounds=5)


def test_frechet_scipy_sqrtm(benchmark, moments):
    a, b = (side.cov.cpu().numpy() for side in moments)
    measure(benchmark, "Fréchet d=512", lambda: scipy.linalg.sqrtm(a @ b).trace().real, rounds=2)


def test_frechet_torch_fidelity(benchmark, moments):
    a, b = ({"mu": side.mean.cpu().numpy(), "sigma": side.cov.cpu().numpy()} for side in moments)
    measure(benchmark, "Fréchet d=512", lambda: fid_statistics_to_metric(a, b, verbose=False), rounds=2)
