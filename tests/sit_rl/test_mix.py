"""A mix of rewards: what each component adds, and what is refused."""

import numpy as np
import pytest
import torch

from sit_rl.reward.advantages import advantages
from sit_rl.reward.mix import Part, mix

N = 60
LABELS = torch.arange(N) % 3


def credits_of(*seeds):
    return [torch.from_numpy(np.random.default_rng(seed).normal(size=N)) for seed in seeds]


@pytest.mark.parametrize("how", ["batch", "class"])
def test_one_component_has_the_advantages_it_has_alone(how):
    (credit,) = credits_of(0)
    found = mix([Part("fd", credit, weight=1.0, fade=0.7)], LABELS, how, 3.0)
    assert torch.equal(found.advantage, advantages(credit, LABELS, how, 3.0) * 0.7)
    assert found.shares == {"fd": pytest.approx(1)} and found.correlations == {}
    # the weight of the only component says nothing
    torch.testing.assert_close(mix([Part("fd", credit, 5.0, 0.7)], LABELS, how, 3.0).advantage, found.advantage)


def test_components_are_standardised_then_weighted_and_averaged():
    a, b, c = credits_of(0, 1, 2)
    found = mix(
        [Part("a", a, 2.0), Part("b", 1e6 * b, 1.0, fade=0.5), Part("c", 1e-9 * c + 7, 1.0)], LABELS, "batch", 9
    )
    a, b, c = ((x - x.mean()) / x.std() for x in (a, b, c))
    torch.testing.assert_close(found.advantage, (2 * a + 0.5 * b + c) / 4, rtol=1e-6, atol=1e-6)


def test_shares_are_parts_of_the_variance():
    a, b, c = credits_of(0, 1, 2)
    parts = [Part("a", a, 2.0), Part("b", b, 1.0, fade=0.5), Part("c", -a + 0.1 * c, 0.5)]
    found = mix(parts, LABELS, "class", 3.0)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["a"] > 0.5 and found.shares["c"] < 0
    pulls = np.stack([p.weight * p.fade / 3.5 * advantages(p.credit, LABELS, "class", 3.0) for p in parts])
    covariances = np.cov(np.vstack([pulls, pulls.sum(0)]))
    np.testing.assert_allclose(list(found.shares.values()), covariances[:3, 3] / covariances[3, 3], rtol=1e-9)


def test_correlations_are_pearson_s_of_the_standardised_credits():
    a, b = credits_of(0, 1)
    parts = [Part("a", a), Part("b", a + b), Part("c", -3 * a + 1)]
    found = mix(parts, LABELS, "batch", 9.0).correlations
    expected = np.corrcoef(np.stack([p.credit for p in parts]))
    assert found.keys() == {"a", "b"} and found["a"].keys() == {"b", "c"} and found["b"].keys() == {"c"}
    assert found["a"]["b"] == pytest.approx(expected[0, 1]) and found["b"]["c"] == pytest.approx(expected[1, 2])
    assert found["a"]["c"] == pytest.approx(-1)


def test_a_mix_that_has_faded_out_pushes_nothing():
    a, b = credits_of(0, 1)
    found = mix([Part("a", a, fade=0.0), Part("b", b, fade=0.0)], LABELS, "batch", 3.0)
    assert not found.advantage.any() and found.shares == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: [], "different names, got none"),
        (lambda a, b: [Part("kid", a), Part("kid", b)], "different names, got kid, kid"),
        (lambda a, b: [Part("fd", a), Part("kid", b, 0.0)], "component kid has weight 0.0"),
        (lambda a, b: [Part("fd", a), Part("kid", b, -1.0)], "component kid has weight -1.0"),
        (lambda a, b: [Part("fd", a), Part("kid", b, float("nan"))], "component kid has weight nan"),
        (lambda a, b: [Part("fd", a), Part("kid", b[:-1])], r"component kid has credits \(59,\), fd has \(60,\)"),
        (lambda a, b: [Part("fd", a), Part("kid", torch.ones(N))], "^reward component kid: all 60 rewards equal 1"),
        (lambda a, b: [Part("fd", a), Part("kid", b.log())], "^reward component kid: .* rewards are NaN"),
        (lambda a, b: [Part("fd", a), Part("mine", 4 - 2 * a)], "components fd, mine cancel"),
    ],
)
def test_mixes_that_mean_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        mix(make(*credits_of(0, 1)), LABELS, "batch", 9.0)
