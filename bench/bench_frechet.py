"""Fréchet distance of two given moments by different matrix roots. No time is asserted.

fastfid             both sides new: a Cholesky factor (d³/3 flops), M = Lᵀ Σ_b L (d³), and tr √M (4d³/3).  The trace
                    comes from the eigenvalues for d = 512, from a band and log-determinants for d = 2048
fastfid, prepared   the same with the reference side factored once before, by `prepare`
fastfid, eigh       the route for singular sides: one eigh (the factor), M by two full products, its eigenvalues
pytorch-fid         its own `calculate_frechet_distance` if it is installed and runs; otherwise the same steps written
                    here: SciPy's Schur square root of the product, and again with 1e-6·I added to both sides if the
                    first result is not finite
torchmetrics        its method written here: general eigenvalues of the product by torch
torch-fidelity      its own `fid_statistics_to_metric`: general eigenvalues of the product by NumPy

d = 512 and 2048.  For 2048 the rivals run once, without a warm-up: they take from six to tens of seconds, and a warm-up
would not change this.  All use the same sets: 5,000 and 6,000 normal rows in a random basis with variances 1/i, similar
to Inception's spectrum.  If there is a GPU, fastfid and torch's method run on it; the tools' own functions run on the
host.  A tool that is not installed is skipped.

extra_info: see bench/measuring.py.  Errors are relative to tr Σ_a + tr Σ_b.  The exact distance squares nothing: for
centred rows A and B in triangular form, tr √(Σ_a Σ_b) is the sum of the singular values of A Bᵀ.
"""

import inspect

import numpy as np
import pytest
import scipy.linalg
import torch

import fastfid.linalg.factors
from bench.measuring import CHOLESKY, DEVICE, EIGH, EIGVALS, EIGVALSH, SQRTM, finished, installed, record, rival
from fastfid import FeatureMoments
from fastfid.distances.frechet import frechet_distance
from fastfid.distances.real_side import prepare

DIMS = (512, 2048)


def own_code_of_pytorch_fid():
    """pytorch-fid's function; None if it is missing, or if SciPy ≥ 1.18 lacks the argument that it passes to sqrtm."""
    if not installed("pytorch_fid") or "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        return None
    return rival("pytorch_fid.fid_score").calculate_frechet_distance


def draw(dim: int, rows: int, shift: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(1, dim + 1)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0]
    scale = index**-0.5 * (1 + shift * torch.cos(index))
    return (torch.randn(rows, dim, generator=generator) * scale) @ basis.T + 0.02 * shift


@pytest.fixture(scope="module", params=DIMS)
def samples(request):
    return draw(request.param, 5000, 0.0, 1), draw(request.param, 6000, 0.3, 2)


@pytest.fixture(scope="module")
def moments(samples):
    return tuple(FeatureMoments.from_features(rows).to(DEVICE) for rows in samples)


@pytest.fixture(scope="module")
def exact(samples):
    """The distance, and tr Σ_a + tr Σ_b."""
    means = [rows.double().mean(0) for rows in samples]
    centred = [rows.double() - mean for rows, mean in zip(samples, means, strict=True)]
    triangles = [torch.linalg.qr(rows, mode="r").R / (len(rows) - 1) ** 0.5 for rows in centred]
    trace = sum(triangle.square().sum() for triangle in triangles)
    roots = torch.linalg.svdvals(triangles[0] @ triangles[1].T).sum()
    return ((means[0] - means[1]).square().sum() + trace - 2 * roots).item(), trace.item()


def without_cholesky(patch):
    patch.setattr(fastfid.linalg.factors, "cholesky_root", lambda cov: None)


def measure(benchmark, moments, exact, call, flops, rounds=None):
    """`flops` in multiples of d³. `rounds` holds for d = 2048; otherwise there are three."""
    dim, (truth, trace) = moments[0].dim, exact
    rounds = 3 if rounds is None or dim < DIMS[-1] else rounds
    benchmark.group = f"Fréchet distance by matrix roots, d={dim}"
    distance = benchmark.pedantic(finished(call), rounds=rounds, warmup_rounds=int(rounds > 1))
    moved = sum(side.cov.nbytes for side in moments)
    error = abs(distance - truth) / trace
    record(benchmark, {torch.float64: flops * dim**3}, moved, error=error, unit="tr Σ_a + tr Σ_b")


def test_fastfid(benchmark, moments, exact):
    flops = CHOLESKY + 1 + EIGVALSH
    measure(benchmark, moments, exact, lambda: frechet_distance(*moments), flops)


def test_fastfid_prepared_reference(benchmark, moments, exact):
    reference = prepare(moments[0])
    measure(benchmark, moments, exact, lambda: frechet_distance(reference, moments[1]), 1 + EIGVALSH)


def test_fastfid_eigh_route(benchmark, moments, exact, monkeypatch):
    without_cholesky(monkeypatch)
    flops = EIGH + 4 + EIGVALSH
    measure(benchmark, moments, exact, lambda: frechet_distance(*moments), flops, rounds=1)


def test_torch_eigvals_as_torchmetrics(benchmark, moments, exact):
    a, b = moments

    def call():
        root = torch.linalg.eigvals(a.cov @ b.cov).sqrt().real.sum()
        return ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root).item()

    measure(benchmark, moments, exact, call, 2 + EIGVALS, rounds=1)


def test_torch_fidelity(benchmark, moments, exact):
    metric_fid = rival("torch_fidelity.metric_fid")
    a, b = ({"mu": side.mean.cpu().numpy(), "sigma": side.cov.cpu().numpy()} for side in moments)

    def call():
        return metric_fid.fid_statistics_to_metric(a, b, verbose=False)[metric_fid.KEY_METRIC_FID]

    measure(benchmark, moments, exact, call, 2 + EIGVALS, rounds=1)


def test_scipy_sqrtm_as_pytorch_fid(benchmark, moments, exact):
    (mean_a, cov_a), (mean_b, cov_b) = ((side.mean.cpu().numpy(), side.cov.cpu().numpy()) for side in moments)
    calculate_frechet_distance = own_code_of_pytorch_fid()
    benchmark.extra_info["own_code"] = calculate_frechet_distance is not None

    def in_our_words():
        root = scipy.linalg.sqrtm(cov_a @ cov_b)
        if not np.isfinite(root).all():
            ridge = 1e-6 * np.eye(len(cov_a))
            root = scipy.linalg.sqrtm((cov_a + ridge) @ (cov_b + ridge))
        return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root.real)

    def own_code():
        return calculate_frechet_distance(mean_a, cov_a, mean_b, cov_b)

    call = own_code if calculate_frechet_distance else in_our_words
    measure(benchmark, moments, exact, call, 2 + SQRTM, rounds=1)
