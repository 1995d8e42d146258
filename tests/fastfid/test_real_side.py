"""One factored side for the distance and for the swap engine: the same limits, the same value."""

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, RealFactor, SwapEngine, frechet_distance, frechet_terms, prepare, trace_sqrt_product
from fastfid.linalg.symmetric import ASYMMETRY, EPS, INDEFINITE

D = 12


def rows(n, seed, d=D):
    scale = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def pair(cov):
    return torch.zeros(len(cov), dtype=torch.float64), cov


def asymmetric(part):
    """A covariance of largest entry 1, one entry of which differs from its mirror image by `part`."""
    cov = torch.diag(torch.arange(1, D + 1, dtype=torch.float64) ** -1.0)
    cov[0, 1], cov[1, 0] = 0.1 + part, 0.1
    return pair(cov)


def indefinite(part):
    """A covariance of largest eigenvalue 1 and lowest −part."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    cov = basis @ torch.diag(torch.tensor([1.0] + [0.1] * (D - 2) + [-part], dtype=torch.float64)) @ basis.T
    return pair((cov + cov.T) / 2)


OTHER = FeatureMoments.from_features(rows(100, 1))
USES = {
    "distance": lambda side: frechet_distance(side, OTHER),
    "prepared": lambda side: frechet_distance(prepare(side), OTHER),
    "engine": lambda side: SwapEngine(side, rows(40, 2)).distance,
    "factor": RealFactor,
    "trace": lambda side: trace_sqrt_product(side[1], OTHER.cov),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("make", [asymmetric, indefinite])
def test_the_limits_are_the_same_everywhere(use, make):
    """1e-4 of the largest entry or eigenvalue, for whatever takes a covariance."""
    assert ASYMMETRY == INDEFINITE == 1e-4
    USES[use](make(0.9e-4))
    with pytest.raises(ValueError, match="not symmetric|positive semidefinite"):
        USES[use](make(1.2e-4))


def test_an_asymmetry_is_halved_and_rounding_left_alone():
    skew = asymmetric(1e-5)
    even = pair((skew[1] + skew[1].T) / 2)
    assert torch.equal(RealFactor(skew).root, RealFactor(even).root)
    assert frechet_distance(skew, OTHER) == frechet_distance(even, OTHER)
    rounded = asymmetric(EPS / 4)  # of an entry of 0.1: its last bit
    assert not torch.equal(rounded[1], rounded[1].T)
    assert torch.equal(RealFactor(rounded).moments.cov, rounded[1])


def test_negative_eigenvalues_are_counted_by_either():
    side = indefinite(5e-5)
    factor = RealFactor(side)
    assert factor.clipped == prepare(side).clipped == 1 and factor.rank == prepare(side).rank == D - 1


def test_a_factor_serves_distance_and_engine():
    real, reference = FeatureMoments.from_features(rows(300, 4)), rows(80, 5)
    generated = FeatureMoments.from_features(reference)
    removed, added = np.arange(6).reshape(2, 3), rows(6, 6).reshape(2, 3, D)
    scores, distances = [], []
    for factored in (RealFactor(real), prepare(real), prepare((real.mean, real.cov))):
        engine = SwapEngine(factored, reference, dtype=torch.float64)
        scores.append(engine.score(removed, added))
        distances += [engine.distance, frechet_distance(factored, generated)]
        assert torch.allclose(factored.root.T @ factored.root, real.cov, rtol=0, atol=1e-14)
        assert (factored.dim, factored.rank) == (D, D)
        assert factored.trace == pytest.approx(torch.trace(real.cov).item(), rel=1e-14)
    assert [RealFactor(real).route, prepare(real).route] == ["eigh", "cholesky"]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0], rtol=1e-9, atol=1e-12)
    assert distances == pytest.approx([frechet_distance(real, generated)] * 6, abs=1e-11)


def test_features_that_never_vary_cost_the_engine_nothing():
    x, reference = rows(300, 4), rows(80, 5)
    x[:, 3] = reference[:, 3] = 1.0
    real = FeatureMoments.from_features(x)
    known = SwapEngine(RealFactor(real), reference).distance
    assert prepare(real).rank == RealFactor(real).rank == D - 1
    assert SwapEngine(prepare(real), reference).distance == pytest.approx(known, abs=1e-11)


def test_a_prepared_side_does_not_follow_its_moments():
    real = FeatureMoments.from_features(rows(300, 4))
    for factored in (prepare(real), RealFactor(real)):
        before = frechet_terms(factored, OTHER)
        real.update(rows(50, 7) + 3)
        assert frechet_terms(factored, OTHER) == before and factored.moments.count != real.count


@pytest.mark.parametrize("make", [prepare, RealFactor, lambda side: frechet_distance(side, OTHER)])
def test_bad_sides_are_named(make):
    mean, cov = OTHER.mean, OTHER.cov
    for side, message in [
        ((mean[:5], cov), r"mean \[d\] and covariance \[d, d\], in this order; got \(5,\) and \(12, 12\)"),
        ((cov, mean), "in this order"),
        ((mean[:0], cov[:0, :0]), "in this order"),
        ((mean * torch.nan, cov), "hold NaN or infinity"),
        ((mean, "cov"), "covariance cannot be read as a tensor"),
        (FeatureMoments(1, mean, cov * 0), "moments hold 1 rows; a covariance needs at least 2"),
        (rows(9, 1), "of type Tensor; pass FeatureMoments.from_features"),
        (rows(9, 1).numpy(), "of type ndarray"),
        (None, "of type NoneType"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(side)


def test_anything_with_a_mean_and_a_covariance_is_a_side():
    class Foreign:
        mean, cov = OTHER.mean.numpy(), OTHER.cov.numpy()

    real = FeatureMoments.from_features(rows(300, 4))
    assert frechet_distance(Foreign(), real) == frechet_distance((OTHER.mean, OTHER.cov), real)
    assert torch.equal(RealFactor(Foreign()).root, RealFactor(OTHER).root)
