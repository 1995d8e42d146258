"""The compiled kernels against NumPy, and the CUDA kernel's source run block by block on the CPU."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import oracles
import pytest

from fastfid import _C

HERE = Path(__file__).resolve().parent
SLACK = 1e-3
EPS = {np.float32: 1.2e-7, np.float64: 2.2e-16}


def problem(removed, added, rank, dtype, batch=2, nodes=3, seed=0):
    """Rows of a consistent change: removed rows are taken from a larger set of which the spectrum holds all."""
    rng = np.random.default_rng(seed)
    spectrum = np.geomspace(1, 1e-4, rank)
    total = removed + 2 * rank + 2
    # orthonormal columns times √λ: leverages of all rows sum to the rank, so any `removed` of them are consistent
    scores = np.linalg.qr(rng.standard_normal((batch, total, rank)))[0] * np.sqrt(spectrum)
    rows_r = scores[:, :removed]
    rows_a = rng.standard_normal((batch, added, rank)) * np.sqrt(spectrum / total)
    return rows_r.astype(dtype), rows_a.astype(dtype), spectrum, np.geomspace(1e-4, 1.0, nodes)


def tolerance(rows_r, rows_a, dtype):
    """k pivots rounded at some ε each: measured over all shapes below, at most 3.6·ε·k (float32: 1.2·ε·k)."""
    return 10 * EPS[dtype] * max(1, rows_r.shape[1] + rows_a.shape[1])


SHAPES = [(1, 0), (0, 1), (1, 1), (2, 3), (5, 1), (6, 0), (7, 9), (15, 17), (33, 31), (50, 50)]
SHAPES += [(0, 101), (101, 0), (120, 136)]


@pytest.mark.parametrize("baseline", [False, True], ids=["chosen", "baseline"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("removed, added", SHAPES)
@pytest.mark.parametrize("rank", [1, 41, 300])
def test_logdets_match_numpy(removed, added, rank, dtype, baseline):
    rows_r, rows_a, spectrum, tau_squares = problem(removed, added, rank, dtype)
    logdets, bad, _ = _C.swap_logdet(rows_r, rows_a, spectrum, tau_squares, SLACK, 1, baseline=baseline)
    expected = oracles.log_determinants(np.concatenate([rows_r, rows_a], 1), removed, spectrum, tau_squares)
    assert bad == -1
    np.testing.assert_allclose(logdets, expected, rtol=0, atol=tolerance(rows_r, rows_a, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_widest_change(dtype):
    rows_r, rows_a, spectrum, tau_squares = problem(256, 256, 257, dtype, batch=1, nodes=1)
    logdets, bad, _ = _C.swap_logdet(rows_r, rows_a, spectrum, tau_squares, SLACK, 1)
    expected = oracles.log_determinants(np.concatenate([rows_r, rows_a], 1), 256, spectrum, tau_squares)
    assert bad == -1
    np.testing.assert_allclose(logdets, expected, rtol=0, atol=tolerance(rows_r, rows_a, dtype))


def test_small_changes_keep_their_digits_in_float32():
    # rows so small that 1 + g rounds to 1: the log-determinant is the trace of J·G to first order, error g² = 1e-18
    rows_r, rows_a, spectrum, tau_squares = problem(3, 4, 50, np.float32)
    rows_r, rows_a = rows_r * np.float32(1e-4), rows_a * np.float32(1e-4)
    logdets, _, _ = _C.swap_logdet(rows_r, rows_a, spectrum, tau_squares, SLACK, 1)
    expected = oracles.log_determinants(np.concatenate([rows_r, rows_a], 1), 3, spectrum, tau_squares)
    assert abs(expected).max() < 1e-6
    np.testing.assert_allclose(logdets, expected, rtol=1e-4, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thread_count_never_changes_a_bit(batch, dtype):
    arguments = problem(11, 13, 77, dtype, batch=batch, nodes=5)
    one = _C.swap_logdet(*arguments, SLACK, 1)[0]
    for threads in (2, 3, 16):
        np.testing.assert_array_equal(_C.swap_logdet(*arguments, SLACK, threads)[0], one)


def test_first_wrong_pivot_is_reported():
    rows_r, rows_a, spectrum, tau_squares = problem(4, 4, 30, np.float64, batch=5)
    rows_r[3] *= 50  # leverage far above one: these rows cannot be part of the reference
    logdets, bad, pivot = _C.swap_logdet(rows_r, rows_a, spectrum, tau_squares, SLACK, 1)
    assert bad == 3 and pivot > SLACK
    assert np.isnan(logdets[3]).any() and np.isfinite(logdets[[0, 1, 2, 4]]).all()


def test_no_candidates_no_nodes_no_rows():
    rows_r, rows_a, spectrum, tau_squares = problem(2, 2, 5, np.float32)
    assert _C.swap_logdet(rows_r[:0], rows_a[:0], spectrum, tau_squares, SLACK, 4)[0].shape == (0, 3)
    assert _C.swap_logdet(rows_r, rows_a, spectrum, tau_squares[:0], SLACK, 4)[0].shape == (2, 0)
    np.testing.assert_array_equal(_C.swap_logdet(rows_r[:, :0], rows_a[:, :0], spectrum, tau_squares, SLACK, 4)[0], 0)


def test_bindings_name_what_is_wrong():
    rows_r, rows_a, spectrum, tau_squares = problem(2, 2, 5, np.float32)
    with pytest.raises(ValueError, match=r"removed_rows must be \[B, m_r, r\].*\[2, 2, 4\]"):
        _C.swap_logdet(rows_r[:, :, :4], rows_a, spectrum, tau_squares, SLACK, 1)
    with pytest.raises(ValueError, match=r"spectrum must be \[r\]"):
        _C.swap_logdet(rows_r, rows_a, spectrum[:3], tau_squares, SLACK, 1)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        _C.swap_logdet(rows_r, rows_a, spectrum, tau_squares, SLACK, 0)
    with pytest.raises(ValueError, match="float32 or float64"):
        _C.swap_logdet(rows_r.astype(np.float16), rows_a.astype(np.float16), spectrum, tau_squares, SLACK, 1)
    with pytest.raises(ValueError, match="dtype of added_rows"):
        _C.swap_logdet(rows_r.astype(np.float64), rows_a, spectrum, tau_squares, SLACK, 1)


# -------------------------------------------------------------------------------------------------------- CUDA source


@pytest.fixture(scope="module")
def kernel_on_cpu(tmp_path_factory):
    """The CUDA kernel as C++ over tests/cuda_block.h: (matrices, removed, order) → logdets, bad."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    library = tmp_path_factory.mktemp("cuda") / "ldl_logdet.so"
    source = HERE / "ldl_logdet_on_cpu.cpp"
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))

    def run(matrices, removed, order=0):
        count, k = matrices.shape[:2]
        logdets, bad = np.empty(count), np.empty(count, np.int32)
        function = loaded.ldl_logdet_float if matrices.dtype == np.float32 else loaded.ldl_logdet_double
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (matrices, logdets, bad)]
        completed = function(*pointers, count, k, removed, ctypes.c_double(SLACK), order)
        assert completed, "threads of a block met different barriers"
        return logdets, bad

    return run


def grams(removed, added, dtype, rank=60):
    """Gram matrices [6, k, k] whose upper triangles hold NaN: the kernel reads the lower ones only."""
    rows_r, rows_a, spectrum, tau_squares = problem(removed, added, rank, np.float64)
    rows = np.concatenate([rows_r, rows_a], 1)
    gram = np.einsum("bkr,qr,blr->bqkl", rows, 1 / (spectrum + tau_squares[:, None]), rows).astype(dtype)
    signs = np.diag(np.where(np.arange(removed + added) < removed, -1.0, 1.0))
    expected = np.linalg.slogdet(gram.astype(np.float64) + signs)[1].ravel()
    gram[:, :, np.triu(np.ones(gram.shape[2:], bool), 1)] = np.nan
    return np.ascontiguousarray(gram.reshape(-1, removed + added, removed + added)), expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("removed, added", [(1, 0), (0, 1), (1, 1), (9, 7), (16, 17), (50, 50), (128, 128)])
def test_cuda_kernel_matches_numpy(kernel_on_cpu, removed, added, dtype):
    matrices, expected = grams(removed, added, dtype)
    logdets, bad = kernel_on_cpu(matrices, removed)
    np.testing.assert_array_equal(bad, -1)
    np.testing.assert_allclose(logdets, expected, rtol=0, atol=10 * EPS[dtype] * (removed + added))


def test_cuda_kernel_has_its_barriers(kernel_on_cpu):
    # a thread that runs ahead may read NaN, which equals NaN in the comparison of orders: values count too
    matrices, expected = grams(20, 23, np.float32)
    forwards = kernel_on_cpu(matrices, 20, order=0)[0]
    np.testing.assert_allclose(forwards, expected, rtol=0, atol=10 * EPS[np.float32] * 43)
    for order in (1, 2):
        np.testing.assert_array_equal(kernel_on_cpu(matrices, 20, order)[0], forwards)


def test_cuda_kernel_reports_the_first_wrong_pivot(kernel_on_cpu):
    matrices, _ = grams(5, 6, np.float64)
    matrices[2] *= 1e4
    logdets, bad = kernel_on_cpu(matrices, 5)
    assert bad[2] == 0 and np.isnan(logdets[2])
    np.testing.assert_array_equal(np.delete(bad, 2), -1)


def test_cuda_launch_without_a_device():
    """Built with CUDA, the extension imports without a driver and says 35 or 100; built without, it has no launch."""
    if not _C.has_cuda:
        assert not hasattr(_C, "ldl_logdet_cuda")
        return
    status = _C.cuda_device_status()
    assert status in (0, 35, 100)
    # an empty launch reads no address: it succeeds with a device and reports the missing one otherwise
    assert _C.ldl_logdet_cuda(0, 0, 0, count=0, k=8, removed=4, slack=SLACK, is_double=False) == status
    with pytest.raises(ValueError, match="k <= 256"):
        _C.ldl_logdet_cuda(0, 0, 0, count=1, k=257, removed=4, slack=SLACK, is_double=False)
