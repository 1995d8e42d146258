"""Leave-one-out changes of the Fréchet distance against every distance computed anew, regular, singular, constant."""

import math

import pytest
import torch

from fastfid import FeatureMoments, SwapEngine, frechet_distance, prepare
from fastfid.distances.leave_one_out import SHIFT, TOL, LeaveOneOut

moments = FeatureMoments.from_features


def features(n, d, seed, decay=1.0):
    """Rows whose standard deviations fall as i^−decay in directions that both sides share; mean `seed`/10."""
    turned, _ = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64))
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / torch.arange(1, d + 1, dtype=torch.float64) ** decay @ turned + seed / 10


def without_each(x, other):
    """FD(x without row i, other) − FD(x, other) from the rows themselves."""
    other, whole = prepare(moments(other)), frechet_distance(moments(x), moments(other))
    return torch.tensor(
        [frechet_distance(moments(torch.cat([x[:i], x[i + 1 :]])), other) - whole for i in range(len(x))],
        dtype=torch.float64,
    )


def bound(x, y):
    """The module's own, 2√c (2√s + TOL) √λ_max, and the √(8ε) of each root that the distances themselves may lose."""
    largest = math.sqrt(torch.linalg.eigvals(moments(x).cov @ moments(y).cov).real.max().item())
    c = max((len(side) - 1) / (len(side) - 2) for side in (x, y))
    return 2 * math.sqrt(c) * (2 * math.sqrt(SHIFT) + TOL + x.shape[1] * 4.3e-8) * largest


@pytest.mark.parametrize(
    ("n", "m", "d", "decay"),
    [
        (50, 60, 8, 1),  # regular
        (50, 60, 8, 5),  # eigenvalues of the product down to 1e-18 of the largest
        (30, 60, 40, 1),  # either side, both, and one at the edge of singular
        (60, 30, 40, 1),
        (20, 25, 40, 1),
        (41, 41, 40, 1),
        (9, 7, 1, 1),
        (3, 3, 5, 1),
    ],
)
def test_both_sides_equal_every_distance_anew(n, m, d, decay):
    x, y = features(n, d, 1, decay), features(m, d, 2, decay)
    for a, b in ((moments(x), moments(y)), (prepare(moments(x)), moments(y)), (moments(x), prepare(moments(y)))):
        both = LeaveOneOut(a, b)
        torch.testing.assert_close(both.without_first(x), without_each(x, y), rtol=0, atol=bound(x, y))
        torch.testing.assert_close(both.without_second(y), without_each(y, x), rtol=0, atol=bound(x, y))


def test_regular_sides_are_far_within_the_bound():
    x, y = features(80, 6, 1), features(90, 6, 2)
    expected = without_each(x, y)
    found = LeaveOneOut(moments(x), moments(y)).without_first(x)
    # no eigenvalue is near the shift, so only the rule's error is left: 2·TOL·√λ_max, λ_max about 1
    assert (found - expected).abs().max() < 4 * TOL < 1e-5 * expected.std()


def test_equal_to_the_swap_engine():
    x, y = features(70, 12, 1), features(50, 12, 2)
    engine = SwapEngine(moments(y), x, dtype=torch.float64)
    found = LeaveOneOut(moments(x), moments(y)).without_first(x)
    torch.testing.assert_close(found, engine.leave_one_out(), rtol=0, atol=bound(x, y))


def test_constant_features_change_nothing_but_the_rest():
    x, y = features(40, 5, 1), features(45, 5, 2)
    padded = [torch.cat([side[:, :2], torch.full((len(side), 1), 3.0), side[:, 2:]], dim=1) for side in (x, y)]
    expected = LeaveOneOut(moments(x), moments(y)).without_second(y)
    found = LeaveOneOut(*map(moments, padded)).without_second(padded[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=bound(x, y))
    still = torch.full((6, 3), 2.0, dtype=torch.float64)
    assert LeaveOneOut(moments(still), moments(still + 1)).without_first(still).abs().max() == 0


def test_rows_in_blocks(monkeypatch):
    x, y = features(40, 5, 1), features(45, 5, 2)
    both = LeaveOneOut(moments(x), moments(y))
    whole = both.without_first(x)
    monkeypatch.setattr("fastfid.distances.leave_one_out.ROWS", 7)
    torch.testing.assert_close(both.without_first(x), whole, rtol=0, atol=1e-14)
