"""FD(A) − FD(B): the better side, the interval over what both share, and mistakes."""

import json
import re

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, frechet_distance
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import evaluate
from tests.support.small_network import features, pixels, small

pytestmark = pytest.mark.usefixtures("own_cache")


def test_diff_tells_the_better_one():
    real = features(300, 1)
    near, far = features(250, 2, 0.02), features(260, 3, 0.5)
    result = diff(near, far, real)
    assert result.better == "A" and result.interval[1] < 0 and diff(far, near, real).better == "B"
    a, b = (evaluate(x, real, metrics=["fd"])["fd"] for x in (near, far))
    assert (result.a, result.b) == pytest.approx((a.value, b.value), rel=1e-12)
    assert result.difference == pytest.approx(a.value - b.value) and "is nearer to the real images" in result.table()
    same = diff(features(250, 4), features(250, 5), real)
    assert same.better is None and same.interval[0] < 0 < same.interval[1]
    assert "no difference can be told" in same.table()
    report = json.loads(result.to_json())
    assert report["schema"] == "fastfid.difference/2" and set(report["provenance"]) >= {"A", "B", "real"}


def test_diff_interval_pairs_what_the_sides_share():
    """Against 40 independent draws of all three sides: the spread of the difference, within a third."""
    results = [
        diff(features(200, 100 + i, 0.3), features(200, 300 + i, 0.3), features(200, 500 + i)) for i in range(40)
    ]
    spread = np.std([r.difference for r in results], ddof=1)
    assert np.mean([r.standard_error for r in results]) == pytest.approx(spread, rel=0.33)  # of 40: ± 11%
    fake, real = features(200, 1, 0.3), features(200, 2)
    assert diff(fake, fake, real, same_noise=True).standard_error == pytest.approx(0, abs=1e-12)
    assert diff(fake, fake, real).standard_error > 0.01
    fixed = diff(fake, features(200, 3), FeatureMoments.from_features(real))
    assert "real images taken as fixed" in fixed.method


def test_unequal_sizes_are_told_with_their_bias():
    real, near, far = features(300, 1), features(200, 2, 0.1), features(60, 3, 0.1)
    (warning,) = diff(near, far, real).warnings
    numbers = [float(x) for x in re.findall(r"large by (\S+) |of B by (\S+),|would be (\S+) ", warning) for x in x if x]
    biases = []
    for rows in (near, far):
        value = evaluate(rows, real, metrics=["fd"])["fd"].value
        moments = [FeatureMoments.from_features(torch.cat([rows[:i], rows[i + 1 :]])) for i in range(len(rows))]
        without = np.mean([frechet_distance(each, FeatureMoments.from_features(real)) for each in moments])
        biases.append((len(rows) - 1) * (without - value))
    assert numbers[:2] == pytest.approx(biases, rel=2e-3) and biases[1] > 2 * biases[0] > 0  # about 1/N
    assert numbers[2] == pytest.approx(diff(near, far, real).difference - (biases[0] - biases[1]), rel=1e-2)
    assert "A has 200 images and B has 60" in warning and "compare 60 images of each" in warning
    assert diff(near, features(200, 4), real).warnings == []


def test_diff_mistakes():
    fake, real = features(20, 1), features(30, 2)
    with pytest.raises(ValueError, match="same_noise pairs images, but A has 20 and B 30; pass equal numbers"):
        diff(fake, real, real, same_noise=True)
    with pytest.raises(ValueError, match="^A holds statistics only, and an interval needs its images"):
        diff(FeatureMoments.from_features(fake), fake, real)
    with pytest.raises(ValueError, match="diff compares in one network, 2 were given"):
        diff(pixels(9, 1), pixels(9, 2), pixels(9, 3), features=[small("x")[0], small("y")[0]])
