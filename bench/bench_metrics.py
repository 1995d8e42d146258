"""The metrics next to their rivals on equal inputs: seconds per call. No time is asserted.

KID      100 subsets × 1,000 of 5,000 float32 features, d = 2048.  torch-fidelity makes three kernel matrices per subset
         in float32: 1,229 GFLOP.  fastfid makes one triangle of each side's kernel values and all values between the
         sides once for all subsets, in float64: 205 GFLOP.  --full: of 20,000 features, for which both make them
         subset by subset: 819 GFLOP here.
MMD      5,000 × 5,000, d = 2048, median bandwidth: 205 GFLOP, and 8 for the bandwidth.
PRDC     4,000 × 4,000, d = 2048, k = 5 (--full: 10,000 × 10,000).  fastfid: two triangles and the products between the
         sets, 4 n² d flops, 131 (819) GFLOP in float32.  prdc: three full matrices, 6 n² d, in float64.
P&R      2,000 × 2,000, d = 128, k = 3.  torch-fidelity makes three full matrices in float32.
moments  10,000 × 2048 and 5,000 × 512: one triangle, n d² flops, of float32 rows multiplied in float64.

If there is a GPU, fastfid and torch's product run on it; the rivals' own functions run on the host.  A rival that is
not installed is skipped, and errors that need it are left out.

extra_info: see bench/measuring.py, and the most memory that a call adds, in MB (`memory_mb`): resident memory of the
host, or of torch's allocator on a GPU.  Our errors are relative to other code in float64, on fewer rows if all rows
would take longer than the timed call.  Errors of rivals are relative to fastfid, which computes in float64 (KID) or
exactly (neighbours).
"""

import contextlib
import io
import threading
from functools import lru_cache

import numpy as np
import pytest
import torch

from bench.measuring import DEVICE, finished, installed, peak_bytes, record, release_free_memory, rival
from fastfid import FeatureMoments, kid, mmd, prdc, precision_recall

D = 2048
F32, F64 = torch.float32, torch.float64
FEW = 1000  # rows on which errors are measured
PAGE = 4096  # bytes in a page of /proc/self/statm
SAMPLING = 0.005  # seconds between two readings of the resident memory


def features(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=generator) * (1 + 0.02 * seed)).to(DEVICE)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


@contextlib.contextmanager
def memory_watched(peaks):
    """Appends the highest growth of the resident memory, in MB."""
    release_free_memory()
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


def measure(benchmark, group, call, rounds):
    """The result of the timed `call`, and a note of the memory that it takes.

    On a CPU, a thread reads the memory during an untimed call before the rounds.  A call that runs only once takes
    seconds.  A thread that reads every 5 ms does not change this time, so the timed call itself is watched.
    """
    if DEVICE.type == "cuda":
        benchmark.group = group
        benchmark.extra_info["memory_mb"] = round(peak_bytes(call) / 1e6)
        return benchmark.pedantic(finished(call), rounds=rounds)
    benchmark.group, peaks = group, []

    def watched():
        with memory_watched(peaks):
            return call()

    if rounds > 1:
        watched()
    result = benchmark.pedantic(call if rounds > 1 else watched, rounds=rounds)
    benchmark.extra_info["memory_mb"] = round(max(peaks))
    return result


def size(*arrays):
    """Bytes."""
    return sum(array.nbytes for array in arrays)


def quietly(call):
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints its counts
        return call()


# --- KID and MMD -------------------------------------------------------------------------------------------------

FULL = pytest.mark.full
KID_SETS = [5000, pytest.param(20_000, marks=FULL)]
SUBSETS, SUBSET = 100, 1000  # the defaults of all tools


@pytest.fixture(scope="module", params=KID_SETS)
def kid_sets(request):
    return features(request.param, D, 0), features(request.param, D, 1)


def kid_group(sets):
    return f"KID {SUBSETS}x{SUBSET} of {len(sets[0])}, d={D}"


def kid_by_torch_fidelity(sets, **options):
    real, generated = (x.cpu() for x in sets)
    metric_kid = rival("torch_fidelity.metric_kid")
    return metric_kid.kid_features_to_metric(generated, real, verbose=False, **options)[metric_kid.KEY_METRIC_KID_MEAN]


def test_kid_fastfid(benchmark, kid_sets):
    n = len(kid_sets[0])
    found = measure(benchmark, kid_group(kid_sets), lambda: kid(*kid_sets), rounds=3 if n <= 5000 else 1)
    flops = 4 * D * min(n**2, SUBSETS * SUBSET**2)
    error = None
    if installed("torch_fidelity"):
        exact = kid_by_torch_fidelity([x.double() for x in kid_sets], kid_subsets=1)
        error = abs(kid(*kid_sets, subsets=1).mean - exact) / found.std
    record(benchmark, {F64: flops}, size(*kid_sets), error=error, unit="std over subsets")


def test_kid_torch_fidelity(benchmark, kid_sets):
    found = measure(benchmark, kid_group(kid_sets), lambda: kid_by_torch_fidelity(kid_sets), rounds=1)
    exact, flops = kid(*kid_sets), SUBSETS * 6 * SUBSET**2 * D
    record(benchmark, {F32: flops}, size(*kid_sets), error=abs(found - exact.mean) / exact.std, unit="std over subsets")


def mmd_in_float64(real, generated, sigma):
    """Unbiased MMD² by its definition."""
    x, y = real.double(), generated.double()
    within = [torch.exp(-torch.cdist(z, z).square() / (2 * sigma**2)).sum() - len(z) for z in (x, y)]
    between = torch.exp(-torch.cdist(x, y).square() / (2 * sigma**2)).mean()
    return sum(s / (len(z) * (len(z) - 1)) for s, z in zip(within, (x, y), strict=True)) - 2 * between


def test_mmd_fastfid(benchmark):
    n, sets = 5000, (features(5000, D, 0), features(5000, D, 1))
    found = measure(benchmark, f"MMD {n}x{n}, d={D}", lambda: mmd(*sets), rounds=2)
    flops = {F64: 4 * n**2 * D + 2000**2 * D}  # and the pairs of 2,000 rows for the bandwidth
    few = [x[:FEW] for x in sets]
    exact = mmd_in_float64(*few, found.bandwidth)
    error = abs(mmd(*few, bandwidth=found.bandwidth).value / exact - 1)
    record(benchmark, flops, size(*sets), error=error, unit="value")


# --- neighbours --------------------------------------------------------------------------------------------------

LARGE = [4000, pytest.param(10_000, marks=FULL)]


def prdc_by_prdc(real, generated):
    return quietly(lambda: rival("prdc").compute_prdc(real, generated, 5))


def score_error(found, exact):
    """Largest difference of two sets of scores."""
    return max(abs(found[name] - exact[name]) for name in exact)


@pytest.mark.parametrize("n", LARGE)
def test_prdc_fastfid(benchmark, n):
    sets = features(n, D, 0), features(n, D, 1)
    measure(benchmark, f"PRDC {n}x{n}, d={D}", lambda: prdc(*sets), rounds=3 if n < 10_000 else 1)
    few = [x[:FEW] for x in sets]
    error = None
    if installed("prdc"):
        error = score_error(prdc(*few), prdc_by_prdc(*(x.cpu().double().numpy() for x in few)))
    record(benchmark, {F32: 4 * n**2 * D}, size(*sets), error=error, unit="1")


@pytest.mark.parametrize("n", LARGE)
def test_prdc_prdc(benchmark, n):
    sets = features(n, D, 0), features(n, D, 1)
    arrays = [x.cpu().numpy() for x in sets]
    found = measure(benchmark, f"PRDC {n}x{n}, d={D}", lambda: prdc_by_prdc(*arrays), rounds=1)
    error = score_error(found, prdc(*sets))
    record(benchmark, {F64: 6 * n**2 * D}, size(*arrays), error=error, unit="1")


@pytest.fixture(scope="module")
def two_thousand():
    return features(2000, 128, 0), features(2000, 128, 1)


def by_torch_fidelity(real, generated):
    metric_prc = rival("torch_fidelity.metric_prc")
    found = metric_prc.prc_features_to_metric(generated, real, verbose=False)
    return {"precision": found[metric_prc.KEY_METRIC_PRECISION], "recall": found[metric_prc.KEY_METRIC_RECALL]}


def test_precision_recall_fastfid(benchmark, two_thousand):
    found = measure(benchmark, "P&R 2000x2000, d=128", lambda: precision_recall(*two_thousand), rounds=7)
    error = None
    if installed("torch_fidelity"):
        error = score_error(found, by_torch_fidelity(*(x.cpu().double() for x in two_thousand)))
    record(benchmark, {F32: 4 * 2000**2 * 128}, size(*two_thousand), error=error, unit="1")


def test_precision_recall_torch_fidelity(benchmark, two_thousand):
    host = [x.cpu() for x in two_thousand]
    found = measure(benchmark, "P&R 2000x2000, d=128", lambda: by_torch_fidelity(*host), rounds=7)
    error = score_error(found, precision_recall(*two_thousand))
    record(benchmark, {F32: 6 * 2000**2 * 128}, size(*host), error=error, unit="1")


# --- moments -----------------------------------------------------------------------------------------------------

SHAPES = [(5000, 512), (10_000, 2048), pytest.param(50_000, 2048, marks=FULL)]


def rounds_for(n, d):
    return max(1, min(11, int(10e10 / (n * d**2))))  # about two seconds on two cores


@lru_cache(1)
def rows_and_covariance(n, d):
    """Features [n, d] and their covariance in float64 by its definition."""
    x = features(n, d, 0)
    centred = x.double() - x.double().mean(0)
    return x, centred.T @ centred / (n - 1)


def measure_moments(benchmark, n, d, call):
    """`call` returns the covariance."""
    x, exact = rows_and_covariance(n, d)
    found = measure(benchmark, f"moments {n}x{d}", call, rounds_for(n, d))
    error = (torch.as_tensor(found).to(exact) - exact).abs().max() / exact.abs().max()
    record(benchmark, {F64: n * d**2}, size(x, exact), error=error, unit="largest entry")


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_moments_fastfid(benchmark, n, d):
    x, _ = rows_and_covariance(n, d)
    measure_moments(benchmark, n, d, lambda: FeatureMoments.from_features(x).cov)


@pytest.mark.parametrize(("n", "d"), SHAPES[:2])
def test_moments_in_batches_of_64_fastfid(benchmark, n, d):
    batches = rows_and_covariance(n, d)[0].split(64)

    def call():
        moments = FeatureMoments.empty(d)
        for batch in batches:
            moments.update(batch)
        return moments.cov

    measure_moments(benchmark, n, d, call)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_moments_numpy(benchmark, n, d):
    x = rows_and_covariance(n, d)[0].cpu().numpy()
    measure_moments(benchmark, n, d, lambda: (x.mean(axis=0), np.cov(x, rowvar=False))[1])


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_moments_torch(benchmark, n, d):
    """The full product; half of it is counted, as for the others."""
    x, _ = rows_and_covariance(n, d)
    measure_moments(benchmark, n, d, lambda: torch.cov(x.double().T))
