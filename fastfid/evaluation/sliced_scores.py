"""The sliced Wasserstein distance as a score."""

from __future__ import annotations

import math

from scipy.special import stdtrit

from fastfid.distances.sliced_wasserstein import DIRECTIONS, FACTOR, SortedReal, sliced_jackknife
from fastfid.evaluation.intervals import jackknife_variance
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import Score

GROUPS = 10  # of a side that are left out in turn: as many as the random parts of precision and recall


def sliced_wasserstein_score(pair: Pair) -> Score | str:
    """Sliced W₂ with the jackknife over GROUPS groups of each side, or why it cannot be computed."""
    if reason := pair.missing_features():
        return reason
    real, generated = pair.features
    value = SortedReal(real, DIRECTIONS, pair.settings.seed).distance(generated)
    details = {"directions": DIRECTIONS, "scale": FACTOR * real.shape[1]}
    method = f"3d times the mean of W₂² along {DIRECTIONS} directions"
    name = "sliced_wasserstein", f"Sliced W₂ ({pair.network})", pair.network
    if pair.fewest_rows < 2 * GROUPS:
        method += "; too few images for an interval"
        return Score(*name, value, method=method, details=details)
    sides = sliced_jackknife(real, generated, GROUPS, pair.settings.seed)
    error = math.sqrt(sum(map(jackknife_variance, sides)))
    half = float(stdtrit(GROUPS - 1, 0.975)) * error
    method += f"; jackknife over {GROUPS} groups of samples and of real images"
    return Score(*name, value, error, (value - half, value + half), method, details)
