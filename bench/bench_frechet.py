"""Fréchet distance of two given moments at d = 2048 beside its rivals, in seconds; nothing is asserted about time.

fastfid             both sides fresh: a Cholesky factor (d³/3 flops), M = Lᵀ Σ_b L (d³), its eigenvalues (4d³/3)
fastfid, prepared   the same with the reference side factored once before, by `fastfid.frechet.prepare`
fastfid, eigh       the route of singular sides: one eigh (the factor), M by two full products, its eigenvalues
pytorch-fid         its own `calculate_frechet_distance` where it is installed and runs, else the same in our words:
                    SciPy's Schur square root of the product, once more with 1e-6·I added to both if it is not finite
torchmetrics        its way in our words: general eigenvalues of the product by torch
torch-fidelity      its own `fid_statistics_to_metric`: general eigenvalues of the product by NumPy

The rivals are run once, without a warm-up: they take from six to tens of seconds, which no warm-up changes.  All
share the sets: 5,000 and 6,000 normal rows in a random basis with variances 1/i, about Inception's spectrum.
Where there is a GPU, fastfid and torch's way run on it; the tools' own functions stay on the host.
extra_info holds the difference from the eigh route relative to tr Σ_a + tr Σ_b.
"""

import inspect

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

import fastfid.frechet
from bench.bench_swap import DEVICE, finished
from fastfid import FeatureMoments
from fastfid.frechet import frechet_distance, frechet_terms, prepare

DIM = 2048
GROUP = f"Fréchet d={DIM}"

try:
    from pytorch_fid.fid_score import calculate_frechet_distance
except ImportError:
    calculate_frechet_distance = None
if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:  # SciPy 1.18 dropped what pytorch-fid 0.3.0 passes
    calculate_frechet_distance = None


def sample_moments(rows: int, shift: float, seed: int) -> FeatureMoments:
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(1, DIM + 1)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0)))[0]
    scale = index**-0.5 * (1 + shift * torch.cos(index))
    samples = (torch.randn(rows, DIM, generator=generator) * scale) @ basis.T + 0.02 * shift
    return FeatureMoments.from_features(samples).to(DEVICE)


@pytest.fixture(scope="module")
def moments():
    return sample_moments(5000, 0.0, 1), sample_moments(6000, 0.3, 2)


@pytest.fixture(scope="module")
def exact(moments):
    """Terms by the eigh route."""
    with pytest.MonkeyPatch.context() as patch:
        without_cholesky(patch)
        return frechet_terms(*moments)


def without_cholesky(patch):
    patch.setattr(fastfid.frechet, "_cholesky_root", lambda cov: None)


def measure(benchmark, exact, call, rounds):
    benchmark.group = GROUP
    distance = benchmark.pedantic(finished(call), rounds=rounds, warmup_rounds=int(rounds > 1))
    benchmark.extra_info["difference_from_eigh"] = float(abs(distance - exact.total) / exact.trace_term)


def test_fastfid(benchmark, moments, exact):
    measure(benchmark, exact, lambda: frechet_distance(*moments), rounds=3)


def test_fastfid_prepared_reference(benchmark, moments, exact):
    reference = prepare(moments[0])
    measure(benchmark, exact, lambda: frechet_distance(reference, moments[1]), rounds=3)


def test_fastfid_eigh_route(benchmark, moments, exact, monkeypatch):
    without_cholesky(monkeypatch)
    measure(benchmark, exact, lambda: frechet_distance(*moments), rounds=1)


def test_torch_eigvals_as_torchmetrics(benchmark, moments, exact):
    a, b = moments

    def call():
        root = torch.linalg.eigvals(a.cov @ b.cov).sqrt().real.sum()
        return ((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root).item()

    measure(benchmark, exact, call, rounds=1)


def test_torch_fidelity(benchmark, moments, exact):
    a, b = ({"mu": side.mean.cpu().numpy(), "sigma": side.cov.cpu().numpy()} for side in moments)
    measure(benchmark, exact, lambda: fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID], rounds=1)


def test_scipy_sqrtm_as_pytorch_fid(benchmark, moments, exact):
    (mean_a, cov_a), (mean_b, cov_b) = ((side.mean.cpu().numpy(), side.cov.cpu().numpy()) for side in moments)
    benchmark.extra_info["own_code"] = calculate_frechet_distance is not None

    def in_our_words():
        root = scipy.linalg.sqrtm(cov_a @ cov_b)
        if not np.isfinite(root).all():
            ridge = 1e-6 * np.eye(DIM)
            root = scipy.linalg.sqrtm((cov_a + ridge) @ (cov_b + ridge))
        return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root.real)

    def own_code():
        return calculate_frechet_distance(mean_a, cov_a, mean_b, cov_b)

    measure(benchmark, exact, own_code if calculate_frechet_distance else in_our_words, rounds=1)
