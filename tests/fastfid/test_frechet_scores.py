"""FD, sFID and FD∞ as scores: their intervals, and the subsets of FD∞."""

import math

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, evaluate, frechet_distance
from fastfid.distances.leave_one_out import LeaveOneOut
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.scores import compute
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import SideInNetwork
from fastfid.protocols import protocol_named
from tests.support.repeated_draws import held, lower_limit, rows
from tests.support.small_network import features


def test_leave_one_out_and_jackknife_against_brute_force():
    fake, real = features(30, 1, 0.3).double(), features(40, 2).double()
    whole = frechet_distance(FeatureMoments.from_features(fake), FeatureMoments.from_features(real))

    def without(x, other, i):
        kept = torch.cat([x[:i], x[i + 1 :]])
        return frechet_distance(FeatureMoments.from_features(kept), FeatureMoments.from_features(other)) - whole

    changes = {}
    for name, x, other in (("fake", fake, real), ("real", real, fake)):
        changes[name] = torch.tensor([without(x, other, i) for i in range(len(x))], dtype=torch.float64)
        moments = [FeatureMoments.from_features(rows) for rows in (x.float(), other)]
        ours = LeaveOneOut(*moments).without_first(x.float())
        torch.testing.assert_close(ours, changes[name], rtol=1e-3, atol=2e-5)  # float32 rows
    expected = sum(  # the textbook's formula, from the leave-one-out distances themselves
        (len(c) - 1) / len(c) * ((whole + c) - (whole + c).mean()).square().sum() for c in changes.values()
    )
    score = evaluate(fake.float(), real.float(), metrics=["fd"])["fd"]
    assert score.standard_error == pytest.approx(expected.sqrt().item(), rel=1e-3)
    low, high = score.interval
    assert high - score.value == pytest.approx(1.959964 * score.standard_error) == score.value - low
    assert score.method.startswith("jackknife over samples and real images;")
    assert score.details["jackknife_bias_samples"] == pytest.approx(29 * changes["fake"].mean().item(), rel=1e-2)
    assert score.details["jackknife_bias_real"] == pytest.approx(39 * changes["real"].mean().item(), rel=1e-2)


def test_standard_error_is_the_spread_of_repeated_draws():
    """60 independent draws of both sides: their spread against the mean of the jackknife's errors, within 25%."""
    scores = [evaluate(features(300, 1000 + i, 0.3), features(300, 5000 + i), metrics=["fd"])["fd"] for i in range(60)]
    spread = np.std([score.value for score in scores], ddof=1)
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(spread, rel=0.25)  # of 60: ± 9%


def test_fd_infinity_removes_the_bias_of_finite_n():
    """Two sets of one distribution: FD_N falls like 1/N, its limit is 0."""
    fake, real = features(2000, 1), features(40000, 2)
    result = evaluate(fake, real, metrics=["fd", "fd_infinity"])
    infinity = result["fd_infinity"]
    assert abs(infinity.value) < 0.3 * result["fd"].value and infinity.details["slope"] > 0
    assert infinity.details["sizes"][0] == 200 and infinity.details["sizes"][-1] == 2000
    assert infinity.details["distances"][-1] == pytest.approx(result["fd"].value, rel=1e-9)
    few = evaluate(features(20, 1), real, metrics=["fd_infinity"]).left_out[0]
    assert few.reason == "20 samples are too few for subsets of 16 and more; d = 8 needs at least 32"


def test_fd_infinity_measures_the_subsets_it_draws():
    """Large subsets take the others' rows out of the whole: equal up to rounding, far below 1e-9."""
    fake, real = features(400, 1), features(500, 2)
    details = evaluate(fake, real, metrics=["fd_infinity"])["fd_infinity"].details
    rng, reference = np.random.RandomState(2020), FeatureMoments.from_features(real)
    for size, distance in zip(details["sizes"], details["distances"], strict=True):
        chosen = fake[torch.from_numpy(rng.choice(400, size, replace=False))]
        assert distance == pytest.approx(frechet_distance(FeatureMoments.from_features(chosen), reference), rel=1e-9)


def test_fd_infinity_intervals_hold_the_distance_of_the_distributions():
    """N(0, I) against N(½, 2I) in two dimensions: FD = 2·¼ + 2(√2 − 1)² exactly."""
    truth = 2 * 0.25 + 2 * (math.sqrt(2) - 1) ** 2
    repeats, scores = 60, []
    for i in range(repeats):
        rng = np.random.default_rng([7, i])
        fake = 0.5 + math.sqrt(2) * rows(200, rng, d=2)
        scores.append(evaluate(fake, rows(2000, rng, d=2), metrics=["fd_infinity"])["fd_infinity"])
    assert held(truth, [score.interval for score in scores]) > lower_limit(repeats)
    spread = np.std([score.value for score in scores], ddof=1)
    assert np.mean([score.standard_error for score in scores]) < 2 * spread  # wide by the line's part, not useless


def test_subsets_side_by_side_are_subsets_in_turn():
    """FD∞ takes its subsets in threads where torch has several: the same distances, and torch keeps its threads."""
    rng, threads = np.random.default_rng(12), torch.get_num_threads()
    fake, real, found = rows(200, rng, 0.3, d=6), rows(150, rng, d=6), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(evaluate(fake, real, metrics=["fd_infinity"])["fd_infinity"].details)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert found[1]["distances"] == pytest.approx(found[0]["distances"], rel=1e-12)
    generator = np.random.RandomState(2020)
    subsets = [fake[generator.choice(200, size, replace=False)] for size in found[0]["sizes"]]
    reference = FeatureMoments.from_features(real)
    expected = [frechet_distance(FeatureMoments.from_features(subset), reference) for subset in subsets]
    assert found[0]["distances"] == pytest.approx(expected, rel=1e-9)


def test_sfid_intervals_hold():
    def material(rng, n, shift):
        spatial = rows(n, rng, shift, d=6) * torch.tensor([1, 1, 1, 1, 0.5, 2.0])
        moments = FeatureMoments.from_features(spatial)
        return SideInNetwork("x", "inception", moments, {}, spatial, spatial=moments, spatial_features=spatial)

    repeats, scores = 100, []
    for i in range(repeats):
        rng = np.random.default_rng([9, i])
        (found,), _ = compute(
            Pair(material(rng, 200, 0.4), material(rng, 250, 0.0), protocol_named(None), Settings()), ["sfid"], []
        )
        scores.append(found)
    values = np.array([score.value for score in scores])
    ratio = np.mean([score.standard_error**2 for score in scores]) / values.var(ddof=1)
    assert 1 - 4 * math.sqrt(2 / repeats) < ratio < 1.25 + 4 * math.sqrt(2 / repeats)
    assert held(values.mean(), [score.interval for score in scores]) > lower_limit(repeats)


# --- FDr -------------------------------------------------------------------------------------------------------------


def test_fdr_is_fd_in_units_of_real_against_real():
    real, other, fake = features(200, 1), features(150, 2), features(100, 3, shift=0.4)
    result = evaluate(fake, real, metrics=["fd"], split=other)
    chosen = other[torch.linspace(0, 149, 100).round().long()]
    floor = evaluate(chosen, real, metrics=["fd"])["fd"]
    score = result["fdr"]
    assert score.value == pytest.approx(result["fd"].value / floor.value, rel=1e-9)
    assert score.details["fd_of_real_images"] == pytest.approx(floor.value, rel=1e-9)
    relative = math.hypot(result["fd"].standard_error / result["fd"].value, floor.standard_error / floor.value)
    assert score.standard_error == pytest.approx(score.value * relative, rel=1e-9)
    assert evaluate(chosen, real, metrics=["fd"], split=chosen)["fdr"].value == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        (features(40, 2), "holds 40 images, fewer than the 50 samples"),
        (FeatureMoments.from_features(features(60, 2)), "holds statistics only"),
        (features(50, 1), "they are the same images"),
    ],
)
def test_a_split_that_cannot_serve_is_a_reason(split, reason):
    result = evaluate(features(50, 3), features(50, 1), metrics=["fd"], split=split)
    (left,) = result.left_out
    assert left.metric == "fdr" and reason in left.reason and [score.metric for score in result.scores] == ["fd"]
