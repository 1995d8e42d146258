"""KID and MMD against torch-fidelity, double loops in Python, a closed form, and the laws they obey."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from fastfid import kid, mmd
from fastfid.distances import kernel_sums, kid_mmd
from fastfid.distances.kernel_sums import gaussian_kernel, polynomial_kernel
from fastfid.distances.kid_mmd import kid_and_mmd

# Kernel values of unit-variance features with γ = 1/d lie near (1 + 1)³ = 8; three float64 means of them differ between
# summation orders by some 1e-15 each.
ABSOLUTE = 1e-13


def features(n, d, seed=0, shift=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) + shift).to(dtype)


def fidelity_kid(generated, real, subsets, subset_size, **options):
    scores = kid_features_to_metric(
        generated, real, kid_subsets=subsets, kid_subset_size=subset_size, verbose=False, **options
    )
    return scores[KEY_METRIC_KID_MEAN], scores[KEY_METRIC_KID_STD]


# --- KID ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_real", "n_generated", "subsets", "subset_size"),
    [(120, 90, 50, 80), (300, 300, 100, 300), (2000, 1500, 4, 41)],  # the first two by the whole matrix, the last not
)
def test_equal_to_torch_fidelity_with_generated_as_its_input_1(n_real, n_generated, subsets, subset_size):
    real, generated = features(n_real, 16, 1), features(n_generated, 16, 2, shift=0.2)
    ours = kid(real, generated, subsets=subsets, subset_size=subset_size)
    assert (ours.mean, ours.std) == pytest.approx(fidelity_kid(generated, real, subsets, subset_size), abs=ABSOLUTE)
    if subset_size < n_real and n_real != n_generated:  # the order of drawing matters, so the roles do
        swapped = fidelity_kid(real, generated, subsets, subset_size)
        assert abs(ours.mean - swapped[0]) > 1e-6


def test_other_kernels_and_seeds_equal_torch_fidelity():
    real, generated = features(100, 8, 1), features(100, 8, 2, shift=0.2)
    ours = kid(real, generated, 20, 50, degree=2, gamma=0.3, coef=0.5, seed=7)
    expected = fidelity_kid(
        generated,
        real,
        20,
        50,
        kid_kernel_poly_degree=2,
        kid_kernel_poly_gamma=0.3,
        kid_kernel_poly_coef0=0.5,
        rng_seed=7,
    )
    assert (ours.mean, ours.std) == pytest.approx(expected, abs=ABSOLUTE)
    assert (ours.degree, ours.gamma, ours.coef, ours.seed) == (2, 0.3, 0.5, 7)


def test_float32_features_are_computed_in_float64():
    real, generated = features(100, 16, 1, dtype=torch.float32), features(100, 16, 2, dtype=torch.float32)
    assert kid(real, generated, 10, 50).mean == kid(real.double(), generated.double(), 10, 50).mean
    # torch-fidelity keeps float32 kernels: 8 values of 6e-8 relative error, averaged; 1e-5 is its loss, not ours.
    assert kid(real, generated, 10, 50).mean == pytest.approx(fidelity_kid(generated, real, 10, 50)[0], abs=1e-5)


def test_the_smallest_subset_by_hand():
    real, generated = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    # k = (xy + 1)³: real pair 1, generated pair 343, between 1, 1, 27, 64
    assert kid(real, generated, subsets=3, subset_size=2).mean == 1 + 343 - 2 * (1 + 1 + 27 + 64) / 4
    assert float(kid(real, generated, 3, 2)) == 251.5 + 46 and kid(real, generated, 3, 2).std == 0


def test_small_blocks_change_nothing(monkeypatch):
    real, generated = features(120, 5, 1), features(90, 5, 2)
    whole = kid(real, generated, 30, 41), mmd(real, generated)
    monkeypatch.setattr(kid_mmd, "COLUMNS", 7)
    monkeypatch.setattr(kernel_sums, "COLUMNS", 7)
    monkeypatch.setattr(kernel_sums, "PANEL_BLOCKS", 3)
    assert kid(real, generated, 30, 41).mean == pytest.approx(whole[0].mean, abs=ABSOLUTE)
    assert mmd(real, generated).value == pytest.approx(whole[1].value, abs=ABSOLUTE)


@pytest.mark.parametrize(("n", "m", "subset_size"), [(120, 90, 50), (700, 600, 20)])  # by whole matrices; by subsets
def test_both_together_are_each_alone(n, m, subset_size):
    real, generated = features(n, 16, 1, shift=3.0), features(m, 16, 2, shift=3.1)
    together = kid_and_mmd(real, generated, 30, subset_size, seed=5)
    alone = kid(real, generated, 30, subset_size, seed=5), mmd(real, generated)
    assert (together[0].mean, together[0].std) == pytest.approx((alone[0].mean, alone[0].std), rel=1e-9)
    assert together[1].value == pytest.approx(alone[1].value, abs=ABSOLUTE)
    assert together[0].subset_size == subset_size and together[1].bandwidth == alone[1].bandwidth
    for sums, kernel in zip(
        together[2:], (polynomial_kernel(3, 1 / 16, 1.0), gaussian_kernel(alone[1].bandwidth)), strict=True
    ):
        within, between = (kernel.between(generated, x, torch.zeros(16).double()) for x in (generated, real))
        torch.testing.assert_close(sums.generated, within.sum(dim=1) - within.diagonal(), rtol=1e-12, atol=0)
        torch.testing.assert_close(sums.generated_to_real, between.sum(dim=1), rtol=1e-12, atol=0)
        torch.testing.assert_close(sums.real_to_generated, between.sum(dim=0), rtol=1e-12, atol=0)
        within = kernel.between(real, real, torch.zeros(16).double())
        torch.testing.assert_close(sums.real, within.sum(dim=1) - within.diagonal(), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="median distance is 0"):
        kid_and_mmd(OK, OK, 2, 3)
    with pytest.raises(ValueError, match="subset_size 6 exceeds"):
        kid_and_mmd(OK, OK, 2, 6)


# --- MMD ---------------------------------------------------------------------------------------------------------


def mmd_by_loops(x, y, kernel, biased):
    def mean(a, b, skip):
        values = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return math.fsum(values) / len(values)

    return mean(x, x, not biased) + mean(y, y, not biased) - 2 * mean(x, y, False)


KERNELS = {
    "gaussian": lambda p, q: math.exp(-sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / (2 * 1.7**2)),
    "polynomial": lambda p, q: (sum(a * b for a, b in zip(p, q, strict=True)) / len(p) + 1) ** 3,
}


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_mmd_equals_double_loops(kernel, estimator):
    x, y = features(13, 3, 1), features(7, 3, 2, shift=0.5)
    expected = mmd_by_loops(x.tolist(), y.tolist(), KERNELS[kernel], estimator == "biased")
    found = mmd(x, y, kernel, bandwidth=1.7, estimator=estimator, scale=1000.0)
    assert found.value == float(found) == pytest.approx(1000 * expected, abs=1000 * ABSOLUTE)
    bandwidth = 1.7 if kernel == "gaussian" else None
    assert (found.kernel, found.bandwidth, found.estimator, found.scale) == (kernel, bandwidth, estimator, 1000.0)


def test_mmd_over_all_rows_is_kid_of_one_whole_subset():
    x, y = features(60, 4, 1), features(60, 4, 2)
    assert mmd(x, y, "polynomial").value == pytest.approx(kid(x, y, 1, 60).mean, abs=ABSOLUTE)


def test_two_gaussians_in_closed_form():
    """E k(x, y) = (s/(s + 2))^{d/2} exp(−|μ|²/(2(s + 2))), s = σ², for unit Gaussians whose means differ by μ."""
    d, s, shift, n = 2, 4.0, 1.0, 4000
    plain = (s / (s + 2)) ** (d / 2)
    expected = 2 * plain * (1 - math.exp(-d * shift**2 / (2 * (s + 2))))
    found = mmd(features(n, d, 1), features(n, d, 2, shift), bandwidth=math.sqrt(s)).value
    # Away from zero the estimate's standard deviation is below 4·std(k)/√n; std(k) < 0.3 here: 5 of them.
    assert found == pytest.approx(expected, abs=5 * 4 * 0.3 / math.sqrt(n) / 2)
    assert abs(mmd(features(n, d, 1), features(n, d, 3), bandwidth=2.0).value) < 3 / n  # degenerate: order 1/n


def test_gaussian_laws():
    x, y = features(50, 6, 1), features(40, 6, 2, shift=0.3)
    value = mmd(x, y, bandwidth=2.0).value
    assert mmd(y, x, bandwidth=2.0).value == pytest.approx(value, abs=ABSOLUTE)
    assert mmd(3 * x, 3 * y, bandwidth=6.0).value == pytest.approx(value, abs=ABSOLUTE)
    assert mmd(x, x.flip(0), estimator="biased").value == pytest.approx(0, abs=ABSOLUTE)
    # x + 1e4 is itself rounded to 1e4·ε = 2e-12, and nothing more is lost about the common mean
    assert mmd(x + 1e4, y + 1e4, bandwidth=2.0).value == pytest.approx(value, abs=1e-11)


def test_median_bandwidth():
    x, y = features(30, 3, 1), features(20, 3, 2)
    pooled = torch.cat([x, y]).numpy()
    distances = [np.linalg.norm(p - q) for i, p in enumerate(pooled) for q in pooled[:i]]
    # 1225 pairs: an odd number, so the median is one of them
    assert mmd(x, y).bandwidth == pytest.approx(np.median(distances), rel=1e-12)
    # In a cluster 1e-5 wide |x|² + |y|² − 2x·y keeps 1e-6 of a squared distance: those are summed anew.
    tight = torch.cat([x * 1e-5, y[:5]])
    distances = [np.linalg.norm(p - q) for i, p in enumerate(tight.numpy()) for q in tight.numpy()[:i]]
    assert mmd(tight[:20], tight[20:]).bandwidth == pytest.approx(np.median(distances), rel=1e-9)
    # Above 1000 rows a side a sample: |x − y|²/2 of unit Gaussians is χ² with d = 3, whose median is 2.366.  The median
    # of 2000 rows' distances varies by about 1/√2000 = 2%.
    sampled = mmd(features(1500, 3), features(1200, 3, 1)).bandwidth
    assert sampled == pytest.approx(math.sqrt(2 * 2.366), rel=0.05)


# --- errors ------------------------------------------------------------------------------------------------------

OK, NAN = torch.zeros(5, 3), torch.tensor([[0.0], [torch.nan], [1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kid(OK, torch.zeros(9, 3)), "subset_size 1000 exceeds the 5 real or 9 .* pass subset_size=5 or less"),
        (lambda: kid(OK, OK, subset_size=1), "at least 2 rows"),
        (lambda: kid(OK, torch.zeros(5, 2)), "real has d = 3, generated has d = 2"),
        (lambda: kid(OK, torch.zeros(0, 3)), r"generated features must be \[n, d\].*\(0, 3\)"),
        (lambda: kid(NAN, NAN), "real feature row 1 holds NaN"),
        (lambda: kid(OK, torch.zeros(5, 3, device="meta")), "generated is a tensor of shape .* on the device meta"),
        (lambda: mmd(OK, OK, kernel="cosine"), "unknown kernel 'cosine'"),
        (lambda: mmd(OK, OK), "median distance is 0"),
        (lambda: mmd(OK, OK, bandwidth=-1.0), "bandwidth is -1.0; pass a positive number or 'median'"),
        (lambda: mmd(OK, OK, bandwidth="mean"), "bandwidth is 'mean'"),
        (lambda: mmd(OK, OK, bandwidth=1.0, estimator="u"), "unknown estimator 'u'"),
        (lambda: mmd(OK[:1], OK, bandwidth=1.0), "pass estimator='biased'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
