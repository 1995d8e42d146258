"""The source of the CUDA kernel, run block by block on the CPU."""

import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from fastfid import _C, triton_kernels
from tests.support.kernel_problems import EPS, problem

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SLACK = 1e-3


@pytest.fixture(scope="module")
def cuda_source(tmp_path_factory):
    """The CUDA kernel's source as a C++ library over tests/cuda_block.h."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    library = tmp_path_factory.mktemp("cuda") / "ldl_logdet.so"
    source = SUPPORT / "ldl_logdet_on_cpu.cpp"
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def kernel_on_cpu(cuda_source):
    """The kernel block by block: (matrices, removed, order, first block to run) → logdets, bad of the blocks run.

    With `nodes`, also the smallest eigenvalue of I − G_rr of every `nodes`th matrix.
    """

    def run(matrices, removed, order=0, first=0, nodes=None):
        count, k = matrices.shape[:2]
        logdets, bad = np.zeros(count), np.zeros(count, np.int32)
        remaining = np.full(-(-count // (nodes or 1)), np.nan)
        function = cuda_source.ldl_logdet_float if matrices.dtype == np.float32 else cuda_source.ldl_logdet_double
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (matrices, logdets, bad, remaining)]
        completed = function(*pointers, first, count, nodes or 1, k, removed, ctypes.c_double(SLACK), order)
        assert completed, "threads of a block met different barriers"
        return (logdets[first:], bad[first:]) if nodes is None else (logdets, bad, remaining)

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


@pytest.mark.parametrize("dtype, atol", [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("removed, added", [(1, 0), (1, 1), (9, 7), (50, 50), (128, 128)])
def test_cuda_kernel_tells_what_remains(kernel_on_cpu, removed, added, dtype, atol):
    """By the factor of the first node of each candidate, of three; sweeps change no log-determinant."""
    matrices, expected = grams(removed, added, dtype)
    logdets, bad, remaining = kernel_on_cpu(matrices, removed, nodes=3)
    np.testing.assert_allclose(logdets, expected, rtol=0, atol=10 * EPS[dtype] * (removed + added))
    np.testing.assert_array_equal(bad, -1)
    leading = np.tril(np.nan_to_num(matrices[::3, :removed, :removed].astype(np.float64)))
    leading += np.tril(leading, -1).transpose(0, 2, 1)
    least = 1 - np.linalg.eigvalsh(leading)[:, -1]
    assert remaining.shape == (2,) and (remaining >= least - atol).all() and (remaining <= 1.2 * least + atol).all()
    backwards = kernel_on_cpu(matrices, removed, order=1, nodes=3)
    np.testing.assert_array_equal(backwards[2], remaining)


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cuda_kernel_beyond_two_to_the_32_elements(kernel_on_cpu, dtype):
    """Blocks whose matrices start past 2³² elements, where offsets of 32 bits, signed or not, would read the first."""
    removed, added = 70, 72  # more than a Triton program takes
    matrices, expected = grams(removed, added, dtype)
    k = removed + added
    first = 2**32 // k**2 + 1
    reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; only the pages written take memory
    size = (first + len(matrices)) * k * k * matrices.itemsize
    far = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve), dtype)
    far = far.reshape(-1, k, k)
    far[first:] = matrices
    logdets, bad = kernel_on_cpu(far, removed, first=first)
    np.testing.assert_array_equal(bad, -1)
    np.testing.assert_allclose(logdets, expected, rtol=0, atol=10 * EPS[dtype] * k)


@pytest.fixture()
def by_cuda(cuda_source, monkeypatch):
    """fastfid/triton_kernels/ldl_logdet.py with the block-by-block kernel behind it instead of a device's."""
    pytest.importorskip("triton")
    module = triton_kernels.load("ldl_logdet")

    def launch(gram, logdets, bad, remaining, *, count, nodes, k, removed, slack, is_double, stream):
        function = cuda_source.ldl_logdet_double if is_double else cuda_source.ldl_logdet_float
        pointers = [ctypes.c_void_p(address) for address in (gram, logdets, bad, remaining)]
        return 0 if function(*pointers, 0, count, nodes, k, removed, ctypes.c_double(slack), 0) else 700

    monkeypatch.setattr(module, "_cuda_kernel", lambda: launch)
    monkeypatch.setattr(module, "factor_obstacle", lambda *_: "")
    monkeypatch.setattr(module, "check_device", lambda **_: None)
    monkeypatch.setattr(torch.cuda, "current_stream", mock.Mock())
    return module


def symmetric_grams(removed, added):
    """As `grams`, [2, 3, k, k] float32 tensors of two candidates, with both triangles."""
    lower = torch.from_numpy(np.nan_to_num(grams(removed, added, np.float64)[0])).float()
    return (lower.tril() + lower.tril(-1).mT).unflatten(0, (2, 3))


def test_the_cuda_kernel_is_taken_where_it_can_be(by_cuda):
    matrices = symmetric_grams(60, 70)
    found, expected = by_cuda.ldl_logdet(matrices, 60), by_cuda.ldl_logdet_ref(matrices, 60)
    np.testing.assert_allclose(found.logdets, expected.logdets, rtol=0, atol=20 * EPS[np.float32] * 130)
    np.testing.assert_allclose(found.remaining, expected.remaining, rtol=0.1, atol=1e-4)
    matrices[1] *= 1e4
    wrong = by_cuda.ldl_logdet(matrices, 60).logdets
    assert wrong[1].isnan().all() and wrong[0].isfinite().all()


@pytest.mark.parametrize("status", [1, 700])
def test_a_cuda_factor_that_is_refused(by_cuda, monkeypatch, status):
    """Too little shared memory (1): Triton would be next, whose programs are too narrow; other errors are raised."""
    monkeypatch.setattr(by_cuda, "_cuda_kernel", lambda: lambda *_, **__: status)
    told = {1: (ValueError, "order 140 exceed a program's 128"), 700: (RuntimeError, "CUDA error 700 on cpu; pass")}
    with pytest.raises(told[status][0], match=told[status][1]):
        by_cuda.ldl_logdet(symmetric_grams(70, 70), 70)


@pytest.mark.parametrize("k", [1, 100, 199, 256])
def test_shared_memory_is_counted_as_the_kernel_counts_it(cuda_source, k):
    pytest.importorskip("triton")
    cuda_source.shared_bytes.restype = ctypes.c_int64
    for dtype in (torch.float32, torch.float64):
        counted = triton_kernels.load("ldl_logdet").ldl_shared_bytes(k, dtype)
        assert counted == cuda_source.shared_bytes(k, dtype == torch.float64)


def test_cuda_launch_without_a_device():
    """Built with CUDA, the extension imports without a driver and says 35 or 100; built without, it has no launch."""
    if not _C.has_cuda:
        assert not hasattr(_C, "ldl_logdet_cuda")
        return
    status = _C.cuda_device_status()
    assert status in (0, 35, 100)
    # an empty launch reads no address: it succeeds with a device and reports the missing one otherwise
    assert _C.ldl_logdet_cuda(0, 0, 0, 0, count=0, nodes=1, k=8, removed=4, slack=SLACK, is_double=False) == status
    sizes = {"count": 2, "nodes": 1, "k": 8, "removed": 4}
    for wrong in ({"k": 257}, {"k": 0}, {"count": -1}, {"count": 2**62}, {"nodes": 0}, {"nodes": 3}, {"removed": 9}):
        with pytest.raises(ValueError, match="need count >= 0 .* 1 <= k <= 256"):
            _C.ldl_logdet_cuda(0, 0, 0, 0, **(sizes | wrong), slack=SLACK, is_double=False)
