"""Precision, recall, density and coverage as scores.

Legend: n images that a share is counted over.
"""

from __future__ import annotations

import math

from fastfid.evaluation.intervals import PARTS, density_error, normal_interval, wilson_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import REAL, Details, Score


def precision_score(pair: Pair) -> Score | str:
    """Precision as the protocol counts it (share of samples in a real image's ball), or why it cannot be computed."""
    return _too_few_neighbours(pair) or _ball_share(pair, "precision", ("samples", "real"))


def recall_score(pair: Pair) -> Score | str:
    """Recall as the protocol counts it (share of real images in a sample's ball), or why it cannot be computed."""
    return _too_few_neighbours(pair) or _ball_share(pair, "recall", ("real", "samples"))


def _ball_share(pair: Pair, metric: str, roles: tuple[str, str]) -> Score:
    """Precision or recall; `roles` are the sides whose images are counted and whose balls they lie in."""
    counted, balls = (REAL if role == "real" else role for role in roles)
    inclusive = pair.protocol.inclusive
    value = (pair.protocol_scores if inclusive else pair.balls.scores())[metric]
    real, generated = pair.features
    n = len(generated if counted == "samples" else real)
    measured = pair.protocol.distances if inclusive else "exact"
    details = {"nearest_k": pair.nearest_k, "inclusive": inclusive, "distances": measured}
    method = f"k = {pair.nearest_k}, distance {'<=' if inclusive else '<'} radius, {measured}"
    if pair.share_spread is not None:
        return _share_score(pair, metric, value, n, method, details)
    method += f"; binomial over {counted}, {balls} taken as fixed, as the images are too few for both"
    error, interval = math.sqrt(value * (1 - value) / n), wilson_interval(value, n)
    return Score(metric, metric.capitalize(), pair.network, value, error, interval, method, details)


def density_score(pair: Pair) -> Score | str:
    """Density (Naeem et al. 2020), or why it cannot be computed."""
    if reason := _too_few_neighbours(pair):
        return reason
    method = f"k = {pair.nearest_k}, distance < radius, exact; mean over samples and balls, both sides drawn anew"
    value = pair.balls.scores()["density"]
    error = density_error(pair.balls.around, pair.balls.within, pair.nearest_k)
    interval = normal_interval(value, error)
    return Score("density", "Density", pair.network, value, error, interval, method, _exact_details(pair))


def coverage_score(pair: Pair) -> Score | str:
    """Coverage (Naeem et al. 2020), or why it cannot be computed."""
    if reason := _too_few_neighbours(pair):
        return reason
    value = pair.balls.scores()["coverage"]
    details = _exact_details(pair)
    method = f"k = {pair.nearest_k}, distance < radius, exact"
    if pair.share_spread is None:
        method += "; too few images for an interval"
        return Score("coverage", "Coverage", pair.network, value, method=method, details=details)
    real, _ = pair.features
    return _share_score(pair, "coverage", value, len(real), method, details)


def _share_score(pair: Pair, metric: str, share: float, n: int, method: str, details: Details) -> Score:
    """The `share` of n images with its interval over draws of both sides; there must be a `share_spread`."""
    spread = pair.share_spread
    assert spread is not None
    error, interval = spread.interval(metric, share, n)
    method += f"; spread of {spread.parts} random parts of both sides, both drawn anew"
    if spread.parts < PARTS:
        method += f"; wide, as the images are too few for {PARTS}"
    details = {**details, "parts": spread.parts}
    return Score(metric, metric.capitalize(), pair.network, share, error, interval, method, details)


def _exact_details(pair: Pair) -> Details:
    """What density and coverage record: no protocol changes how they count."""
    return {"nearest_k": pair.nearest_k, "inclusive": False, "distances": "exact"}


def _too_few_neighbours(pair: Pair) -> str | None:
    """Why there is no k-th neighbour on a side, or None."""
    if reason := pair.missing_features():
        return reason
    k, available = pair.nearest_k, pair.fewest_rows
    if available <= k:
        return f"{available} images have no neighbour number {k}; pass nearest_k={available - 1} or less (--nearest-k)"
    return None
