"""Distances of features of any scale that float64 holds: the same number in another unit."""

import math

import numpy as np
import pytest
import torch

from fastfid import (
    DensityRatioReward,
    FeatureMoments,
    FrechetDistance,
    KernelReward,
    SlicedWassersteinReward,
    SwapEngine,
    diff,
    evaluate,
    frechet_distance,
    frechet_terms,
    kid,
    mmd,
    prdc,
    precision_recall,
    prepare,
    sliced_wasserstein,
    swap_change_ref,
    trace_sqrt_product,
)
from fastfid.distances.leave_one_out import LeaveOneOut
from fastfid.linalg.units import SAFE_EXPONENT, unit_of

generator = torch.Generator().manual_seed(0)
X = torch.randn(60, 8, dtype=torch.float64, generator=generator)
Y = 1.3 * torch.randn(50, 8, dtype=torch.float64, generator=generator) + 0.2
FEW = X[:6]  # of singular covariance

SCALES = (1e-150, 1e-100, 1e-60, 2.0**-130, 2.0**130, 1e60, 1e100, 1e150)


def moments(x):
    return FeatureMoments.from_features(x)


def by_pair(x, y):
    """Without counts, so that a singular covariance has to be found out."""
    return frechet_distance((moments(x).mean, moments(x).cov), (moments(y).mean, moments(y).cov))


def metric_of(x, y):
    metric = FrechetDistance()
    metric.update(x, real=True)
    metric.update(y, real=False)
    return metric.compute()


REMOVED, ADDED = torch.tensor([[0, 1], [2, 3]]), torch.randn(2, 2, 8, dtype=torch.float64, generator=generator)


def engine(x, y, dtype=torch.float64, backend="auto"):
    return SwapEngine(moments(y), x, dtype=dtype, backend=backend)


def scaled_like(x, rows):
    """Rows in the unit of x, a multiple of X or of its first rows."""
    return rows * (x[0, 0] / X[0, 0])


# Functions of two sets of features that grow with the square of the unit.
SQUARES = {
    "features": lambda x, y: frechet_distance(moments(x), moments(y)),
    "swapped": lambda x, y: frechet_distance(moments(y), moments(x)),
    "pairs": by_pair,
    "prepared": lambda x, y: frechet_distance(prepare(moments(x)), moments(y)),
    "metric": metric_of,
    "terms": lambda x, y: frechet_terms(moments(x), moments(y)).root_term,
    "trace": lambda x, y: trace_sqrt_product(moments(x).cov, moments(y).cov),
    "first rows": lambda x, y: LeaveOneOut(moments(x), moments(y)).without_first(x),
    "second rows": lambda x, y: LeaveOneOut(moments(x), moments(y)).without_second(y),
    "engine": lambda x, y: engine(x, y).distance,
    "engine, score": lambda x, y: engine(x, y).score(REMOVED, scaled_like(x, ADDED)),
    "engine, float32": lambda x, y: engine(x, y, torch.float32).change(REMOVED, scaled_like(x, ADDED)),
    "engine, torch": lambda x, y: engine(x, y, backend="torch").change(REMOVED, scaled_like(x, ADDED)),
    "engine, anew": lambda x, y: swap_change_ref(engine(x, y), REMOVED, scaled_like(x, ADDED)),
    "engine, each": lambda x, y: engine(x, y).change_each(REMOVED[:, 0], scaled_like(x, ADDED[:, 0])),
    "engine, leave one out": lambda x, y: engine(x, y).leave_one_out(),
    "engine, influence": lambda x, y: engine(x, y).influence(scaled_like(x, Y)),
    "engine, replace": lambda x, y: engine(x, y).replace(REMOVED[0], scaled_like(x, ADDED[0])).distance,
    "evaluate": lambda x, y: evaluate(x, y, metrics=["fd"], cache=False)["fd"].value,
}


CHANGES = ("first rows", "engine, anew", "engine, score", "engine, torch", "engine, each", "engine, leave one out")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("name", SQUARES)
def test_distances_follow_the_square_of_the_unit(name, few, scale):
    if few and name == "engine, influence":
        pytest.skip("of a singular set it is as large as its smallest eigenvalue is small")
    x, y = (FEW if few else X), Y
    expected = torch.as_tensor(SQUARES[name](x, y), dtype=torch.float64)
    found = torch.as_tensor(SQUARES[name](scale * x, scale * y), dtype=torch.float64) / scale / scale
    # Rounding of the scaled features, and of another path to the factor: some d·ε of the traces, 20 here.  Changes of a
    # singular set are known to the shift of its spectrum, and float32 products err by 1e-7 of the traces.
    coarse = "float32" in name or (few and name in CHANGES)
    tolerance = 1e-6 if coarse else 1e-11
    torch.testing.assert_close(found, expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("scales", [(1e-100, 1e100), (1e-60, 1e-90), (1e90, 1e20)])
def test_sides_of_different_scales(scales):
    x, y = scales[0] * X, scales[1] * Y
    found = frechet_distance(moments(x), moments(y))
    # beside the larger side's traces the smaller side is nothing to float64
    larger = max((x, y), key=lambda side: side.abs().max())
    assert found == pytest.approx((larger.mean(0).square().sum() + moments(larger).cov.trace()).item(), rel=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_follow_the_unit(scale):
    def gradient(factor):
        x, y = (factor * X).requires_grad_(), (factor * Y).requires_grad_()
        frechet_distance(moments(x), moments(y)).backward()
        return torch.cat([x.grad, y.grad])

    torch.testing.assert_close(gradient(scale) / scale, gradient(1.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_scores_without_a_unit(scale):
    for score in (prdc, precision_recall):
        assert score(scale * X, scale * Y) == score(X, Y)
    assert mmd(scale * X, scale * Y).value == pytest.approx(mmd(X, Y).value, rel=1e-9)
    gamma = 1 / 8 / scale**2
    assert kid(scale * X, scale * Y, 3, 20, gamma=gamma).mean == pytest.approx(kid(X, Y, 3, 20).mean, rel=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_the_engine_keeps_its_reference_and_its_gradients_in_their_unit(scale):
    made = engine(scale * X, scale * Y)
    torch.testing.assert_close(made.reference, scale * X, rtol=1e-15, atol=0)
    assert made.real.dim == 8 and made.distance > 0 and made.report()["count"] == 60
    gradients = []
    for factor in (1.0, scale):
        added = (factor * ADDED).requires_grad_()
        engine(factor * X, factor * Y).score(REMOVED, added).sum().backward()
        gradients.append(added.grad / factor)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_intervals_follow_the_unit():
    metrics = ["fd", "fd_infinity", "precision", "recall", "density", "coverage", "mmd"]
    x, y = (torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    expected = evaluate(x, 1.1 * y, metrics=metrics).scores
    for scale in SCALES:
        found = evaluate(scale * x, scale * 1.1 * y, metrics=metrics).scores
        for score, score_expected in zip(found, expected, strict=True):
            square = scale if score.metric in ("fd", "fd_infinity") else 1
            for value, value_expected in zip(score.interval, score_expected.interval, strict=True):
                assert value / square / square == pytest.approx(value_expected, rel=1e-8), score.metric


def test_the_difference_follows_the_unit():
    z = X.flip(0) * 1.1
    for noise in (False, True):
        expected = diff(X, z, Y, same_noise=noise)
        for scale in SCALES:
            found = diff(scale * X, scale * z, scale * Y, same_noise=noise)
            for value, value_expected in zip(found.interval, expected.interval, strict=True):
                assert value / scale / scale == pytest.approx(value_expected, rel=1e-8)


def test_what_leaves_float64_is_said():
    with pytest.raises(ValueError, match="kernel values of these features leave float64; scale the features"):
        kid(1e100 * X, 1e100 * Y, 3, 20)
    left_out = evaluate(1e100 * X, 1e100 * Y, metrics=["kid", "mmd"], kid_subset_size=20).left_out
    assert [left.metric for left in left_out] == ["kid"] and "leave float64" in left_out[0].reason
    with pytest.raises(
        ValueError, match="variances are up to .*e-3.*, which float64 resolves to a few digits; multiply"
    ):
        frechet_distance(moments(1e-158 * X), moments(1e-158 * Y))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        frechet_distance(moments(1e160 * X), moments(1e160 * Y))


def test_other_distances_say_what_leaves_float64():
    for scale in (1e160, 1e300):
        for measure in (sliced_wasserstein, mmd):
            with pytest.raises(ValueError, match="of these features leave float64"):
                measure(scale * X, scale * Y)
        for make in (SlicedWassersteinReward, DensityRatioReward, lambda x: KernelReward(x, "gaussian")):
            with pytest.raises(ValueError, match="leave float64"):
                make(scale * X)


@pytest.mark.parametrize("scale", [1e10, 1e100, 1e160])
def test_a_discriminator_of_far_features_ends_at_once(scale):
    for real, rows in ((Y, scale * X), (Y / scale if scale < 1e150 else Y, X * scale)):
        with pytest.raises(ValueError, match="are beyond 1e.08 standard deviations of the real ones"):
            DensityRatioReward(real).prepare(rows)


@pytest.mark.parametrize("scale", [1e-160, 1e-100, 1e100, 1e160])
def test_an_engine_between_scales_that_no_network_has_says_so(scale):
    """Not that the rows are no part of the reference, and no error of a solver."""
    try:
        found = SwapEngine(moments(Y), scale * X).leave_one_out()
    except ValueError as refused:
        assert "scales of reference_features and of the real features differ by more than" in str(refused)
    else:
        assert torch.isfinite(found).all()


def test_units_are_powers_of_two_and_1_in_the_usual_range():
    eye = torch.eye(3, dtype=torch.float64)
    for exponent in range(-SAFE_EXPONENT // 2 + 1, SAFE_EXPONENT // 2 - 1, 13):
        assert unit_of(eye * 2.0**exponent) == unit_of(eye * 2.0**exponent, eye) == 1
    assert unit_of(torch.zeros(3, 3)) == unit_of(eye[:0, :0]) == 1
    unit = unit_of(1e-200 * eye, 1e-250 * eye)
    assert math.frexp(unit)[0] == 0.5 and np.isclose(math.log10(unit), 112.5, atol=0.5)
