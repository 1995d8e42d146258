"""Variances against brute force and against the spread of repeated draws; intervals hold as often as they say."""

import math

import numpy as np
import pytest
import torch

from fastfid import evaluate
from fastfid.distances.kernel_sums import gaussian_kernel, polynomial_kernel
from fastfid.distances.kid_mmd import kid_and_mmd, mmd
from fastfid.distances.precision_recall import prdc
from fastfid.evaluation.intervals import (
    JACKKNIFE_ROWS,
    density_error,
    jackknife_variance,
    line_through,
    mmd_variance,
    mmd_variance_of_sums,
    share_spread,
    wilson_interval,
)
from tests.support.repeated_draws import held, lower_limit, rows

# --- jackknife -------------------------------------------------------------------------------------------------------


def test_jackknife_of_a_mean_is_its_textbook_variance():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=50))
    without = (x.sum() - x) / 49 - x.mean()
    assert jackknife_variance(without) == pytest.approx(x.var().item() / 50, rel=1e-12)


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial"])
def test_mmd_variance_is_the_jackknife_by_brute_force(kernel):
    rng = np.random.default_rng(1)
    real, fake = rows(23, rng).double(), rows(17, rng, 0.5).double()
    options = {"kernel": kernel, "bandwidth": 2.0, "degree": 3}
    of_fake = [mmd(real, torch.cat([fake[:i], fake[i + 1 :]]), **options).value for i in range(17)]
    of_real = [mmd(torch.cat([real[:i], real[i + 1 :]]), fake, **options).value for i in range(23)]
    expected = sum((len(x) - 1) / len(x) * np.square(np.array(x) - np.mean(x)).sum() for x in (of_fake, of_real))
    function = gaussian_kernel(2.0) if kernel == "gaussian" else polynomial_kernel(3, 1 / 4, 1.0)
    assert mmd_variance(fake, real, function) == pytest.approx(expected, rel=1e-9)
    assert mmd_variance(fake[:2], real, function) is None
    whole = {"polynomial": 0, "gaussian": 1}[kernel]  # of every row's sums, with KID's kernel and the median bandwidth
    found = kid_and_mmd(real, fake, 5, 10)
    function = [polynomial_kernel(3, 1 / 4, 1.0), gaussian_kernel(found[1].bandwidth)][whole]
    assert mmd_variance_of_sums(found[2 + whole]) == pytest.approx(mmd_variance(fake, real, function), rel=1e-9)
    assert mmd_variance_of_sums(kid_and_mmd(real, fake[:2], 5, 2)[3]) is None


def test_some_rows_stand_for_all():
    """500 of 3,000 rows: the deviation errs by 1/√(2·500) = 3%, its square by 6%; four times that is allowed."""
    rng = np.random.default_rng(2)
    real, fake, kernel = rows(3000, rng), rows(2500, rng, 0.3), polynomial_kernel(3, 1 / 4, 1.0)
    assert len(fake) > JACKKNIFE_ROWS
    own = mmd_variance(fake, real, kernel)
    whole = mmd_variance_of_all_rows(fake, real, kernel)
    assert own == pytest.approx(whole, rel=4 * math.sqrt(2 / JACKKNIFE_ROWS)) and own != whole


def mmd_variance_of_all_rows(a, b, kernel):
    total = 0.0
    for x, y in ((a, b), (b, a)):
        m, n = len(x), len(y)
        centre = torch.zeros(x.shape[1]).double()
        within = kernel.between(x, x, centre)
        sums = within.sum(1) - within.diagonal()
        values = -2 * sums / ((m - 1) * (m - 2))
        values += 2 * kernel.between(x, y, centre).sum(1) / ((m - 1) * n)
        total += jackknife_variance(values)
    return total


# --- repeated draws --------------------------------------------------------------------------------------------------


def test_kernel_intervals_hold():
    """KID and MMD² away from zero: the spread is the standard error, and 95% of the intervals hold the mean."""
    repeats, found = 100, {"kid": [], "mmd": []}
    for i in range(repeats):
        rng = np.random.default_rng([4, i])
        result = evaluate(rows(80, rng, 0.5), rows(90, rng), metrics=["kid", "mmd"], kid_subset_size=40)
        for name, scores in found.items():
            scores.append(result[name])
    for name, scores in found.items():
        values = np.array([score.value for score in scores])
        ratio = np.mean([score.standard_error**2 for score in scores]) / values.var(ddof=1)
        # the jackknife is never low on average; MMD²'s fixed bandwidth is another matter of a few percent
        assert 1 - 4 * math.sqrt(2 / repeats) < ratio < 1.25 + 4 * math.sqrt(2 / repeats), name
        assert held(values.mean(), [score.interval for score in scores]) > lower_limit(repeats), name


def test_kernel_intervals_of_equal_distributions_are_wide():
    """Where the linear part vanishes, the jackknife's variance is about twice the true one: no false alarm."""
    repeats, scores = 60, []
    for i in range(repeats):
        rng = np.random.default_rng([5, i])
        scores.append(evaluate(rows(60, rng), rows(60, rng), metrics=["mmd"])["mmd"])
    ratio = np.mean([s.standard_error**2 for s in scores]) / np.var([s.value for s in scores], ddof=1)
    assert 1.3 < ratio < 4  # 2 ± 4·√(2/60)·2, and the tail of a sum of squares
    assert held(0.0, [s.interval for s in scores]) > lower_limit(repeats)


@pytest.mark.parametrize("d, k, shift", [(2, 5, 0.8), (8, 3, 0.2)])
def test_neighbour_intervals_hold_over_both_draws(d, k, shift):
    """Precision, recall, density and coverage: both sides are drawn again and again."""
    repeats, rng = 100, np.random.default_rng(11)
    values, intervals = {}, {}
    for _ in range(repeats):
        sides = rows(150, rng, d=d), rows(150, rng, shift, d=d)
        for score in evaluate(*sides[::-1], metrics=["precision", "recall", "density", "coverage"], nearest_k=k).scores:
            values.setdefault(score.metric, []).append(score.value)
            intervals.setdefault(score.metric, []).append(score.interval)
    for name, found in intervals.items():
        truth = np.mean(values[name])  # off by a twentieth of an interval
        assert held(truth, found) > lower_limit(repeats), name


@pytest.mark.parametrize("name", ["precision", "recall", "coverage"])
def test_shares_are_no_binomials(name):
    repeats, rng = 150, np.random.default_rng(11)
    values = [prdc(rows(150, rng, d=2), rows(150, rng, 0.8, d=2))[name] for _ in range(repeats)]
    plain = [wilson_interval(value, 150) for value in values]
    assert held(np.mean(values), plain) < lower_limit(repeats)  # which is why their intervals take more


def test_density_error_is_the_first_order_variance_of_both_draws():
    """Σ_ij b_ij / km: what leaving out one ball, or one sample, would change it by, squared and summed."""
    inside = torch.from_numpy(np.random.default_rng(3).random((7, 5)) < 0.4).double()  # [balls, samples]
    n, m, k = 7, 5, 2
    density = lambda b: b.sum().item() / (k * b.shape[1]) * n / b.shape[0]  # noqa: E731
    jackknife = sum(
        (count - 1) / count * np.square(np.array(left) - np.mean(left)).sum()
        for count, left in (
            (n, [density(torch.cat([inside[:i], inside[i + 1 :]])) for i in range(n)]),
            (m, [density(torch.cat([inside[:, :j], inside[:, j + 1 :]], dim=1)) for j in range(m)]),
        )
    )
    found = density_error(inside.sum(dim=0).long(), inside.sum(dim=1).long(), k)
    assert found**2 == pytest.approx(jackknife, rel=1e-12)


def test_shares_of_few_images():
    rng = np.random.default_rng(0)
    assert share_spread(rows(49, rng), rows(60, rng), 5) is None
    few = evaluate(rows(49, rng), rows(60, rng), metrics=["precision", "recall", "coverage"])
    assert few["coverage"].interval is None and "too few" in few["coverage"].method
    for name, balls, n in (("precision", "real images", 49), ("recall", "samples", 60)):
        assert few[name].interval == pytest.approx(wilson_interval(few[name].value, n))
        assert f"{balls} taken as fixed, as the images are too few" in few[name].method
    for n, words in ((60, "2 random parts of both sides, both drawn anew; wide, as"), (250, "10 random parts")):
        for score in evaluate(rows(n, rng), rows(n, rng), metrics=["precision", "recall", "coverage"]).scores:
            assert f"; spread of {words}" in score.method and ("wide" in score.method) == (n == 60)
    spread = share_spread(rows(50, rng), rows(50, rng).repeat(20, 1), 5)  # of parts that all agree
    assert spread.effects["coverage"] == 1
    error, (low, high) = spread.interval("coverage", 1.0, 50)
    assert error == 0 and low < high == 1


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_wilson_interval():
    z = 1.959964**2
    assert wilson_interval(0.0, 10) == (0.0, pytest.approx(z / (10 + z)))
    assert wilson_interval(1.0, 10) == (pytest.approx(10 / (10 + z)), pytest.approx(1.0))
    low, high = wilson_interval(0.3, 40)  # where (p − 0.3)² = z² p(1 − p)/n
    for p in (low, high):
        assert (p - 0.3) ** 2 == pytest.approx(z * p * (1 - p) / 40)


def test_line_through_points():
    rng = np.random.default_rng(9)
    x = np.linspace(0.1, 1, 12)
    y = 2 + 3 * x + rng.normal(0, 0.1, 12)
    (slope, intercept), cov = np.polyfit(x, y, 1, cov=True)
    assert line_through(x, y) == pytest.approx((slope, intercept, math.sqrt(cov[1, 1])), rel=1e-9)


def test_every_score_of_features_has_an_interval():
    rng = np.random.default_rng(10)
    result = evaluate(rows(120, rng, 0.3), rows(130, rng), kid_subset_size=60)
    without = {score.metric for score in result.scores if score.interval is None}
    assert without == set()
    assert {score.metric for score in result.scores} == {
        "fd", "fd_infinity", "kid", "mmd", "sliced_wasserstein", "precision", "recall", "density", "coverage"
    }  # fmt: skip
    for score in result.scores:
        assert score.interval[0] <= score.value <= score.interval[1] and score.standard_error >= 0
