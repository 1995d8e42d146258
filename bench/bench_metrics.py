"""The metrics beside their rivals on equal inputs: seconds per call; nothing is asserted about time.

KID      100 subsets × 1,000 of 5,000 features, d = 128: torch-fidelity makes 3 kernel matrices a subset, 77 GFLOP;
         here each of 3 × 5,000² kernel values is made once and summed by membership, 34 GFLOP.
PRDC     2,000 × 2,000, d = 128, k = 5: three distance matrices, 3 GFLOP, in both.
Fréchet  d = 512 from moments: SciPy's Schur method (pytorch-fid), general eigenvalues (torch-fidelity), one symmetric
         eigendecomposition and one set of symmetric eigenvalues here.
"""

import contextlib
import io

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from fastfid import FeatureMoments, frechet_distance, kid, mmd, prdc, precision_recall


def features(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * (1 + 0.05 * seed)


def measure(benchmark, group, call, rounds):
    """Time `call`, after one warm-up unless it is timed but once: those take seconds, which no warm-up changes."""
    benchmark.group = group
    return benchmark.pedantic(call, rounds=rounds, warmup_rounds=int(rounds > 1))


# --- KID and MMD -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five_thousand():
    return features(5000, 128, 0), features(5000, 128, 1)


def test_kid_fastfid(benchmark, five_thousand):
    measure(benchmark, "KID 100x1000, d=128", lambda: kid(*five_thousand), rounds=2)


def test_kid_torch_fidelity(benchmark, five_thousand):
    real, generated = (x.double() for x in five_thousand)  # float64, for the same digits
    call = lambda: kid_features_to_metric(generated, real, verbose=False)  # noqa: E731
    measure(benchmark, "KID 100x1000, d=128", call, rounds=1)


def test_mmd_fastfid(benchmark, five_thousand):
    measure(benchmark, "MMD 5000x5000, d=128", lambda: mmd(*five_thousand), rounds=1)


# --- neighbours --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_thousand():
    return features(2000, 128, 0), features(2000, 128, 1)


def test_prdc_fastfid(benchmark, two_thousand):
    measure(benchmark, "PRDC 2000x2000, d=128", lambda: prdc(*two_thousand), rounds=5)


def test_prdc_prdc(benchmark, two_thousand):
    real, generated = (x.double().numpy() for x in two_thousand)

    def call():
        with contextlib.redirect_stdout(io.StringIO()):
            return compute_prdc(real, generated, 5)

    measure(benchmark, "PRDC 2000x2000, d=128", call, rounds=5)


def test_precision_recall_fastfid(benchmark, two_thousand):
    measure(benchmark, "P&R 2000x2000, d=128", lambda: precision_recall(*two_thousand), rounds=5)


def test_precision_recall_torch_fidelity(benchmark, two_thousand):
    real, generated = two_thousand
    call = lambda: prc_features_to_metric(generated, real, verbose=False)  # noqa: E731
    measure(benchmark, "P&R 2000x2000, d=128", call, rounds=5)


# --- Fréchet -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments():
    return tuple(FeatureMoments.from_features(features(3000, 512, seed)) for seed in (0, 1))


def test_frechet_fastfid(benchmark, moments):
    measure(benchmark, "Fréchet d=512", lambda: frechet_distance(*moments), rounds=5)


def test_frechet_scipy_sqrtm(benchmark, moments):
    a, b = (side.cov.numpy() for side in moments)
    measure(benchmark, "Fréchet d=512", lambda: scipy.linalg.sqrtm(a @ b).trace().real, rounds=2)


def test_frechet_torch_fidelity(benchmark, moments):
    a, b = ({"mu": side.mean.numpy(), "sigma": side.cov.numpy()} for side in moments)
    measure(benchmark, "Fréchet d=512", lambda: fid_statistics_to_metric(a, b, verbose=False), rounds=2)


def test_moments_fastfid(benchmark):
    x = features(5000, 512, 0)
    measure(benchmark, "moments 5000x512", lambda: FeatureMoments.from_features(x), rounds=5)


def test_moments_numpy(benchmark):
    x = features(5000, 512, 0).numpy()
    measure(benchmark, "moments 5000x512", lambda: (x.mean(axis=0), np.cov(x, rowvar=False)), rounds=5)
