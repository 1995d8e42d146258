"""Precision, recall, density and coverage as scores."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastfid.evaluation.intervals import PARTS, density_error, normal_interval, wilson_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import Score


def share_score(metric: str) -> Callable[[Pair], Score | str]:
    """Precision and recall, as the protocol counts them."""
    counted, balls = ("samples", "reference") if metric == "precision" else ("reference", "samples")

    def score(pair: Pair) -> Score | str:
        if reason := _too_few_neighbours(pair):
            return reason
        inclusive = pair.protocol.inclusive
        value = (pair.protocol_scores if inclusive else pair.balls.scores())[metric]
        n = len(getattr(pair, counted).features)
        measured = pair.protocol.distances if inclusive else "exact"
        details = {"nearest_k": pair.nearest_k, "inclusive": inclusive, "distances": measured}
        method = f"k = {pair.nearest_k}, distance {'<=' if inclusive else '<'} radius, {measured}"
        if pair.share_spread is None:
            method += f"; binomial over {counted}, {balls} taken as fixed, as the images are too few for both"
            error, interval = math.sqrt(value * (1 - value) / n), wilson_interval(value, n)
            return Score(metric, metric.capitalize(), pair.network, value, error, interval, method, details)
        return _share_score(pair, metric, value, n, method, details)

    return score


def _share_score(pair: Pair, metric: str, share: float, n: int, method: str, details: dict) -> Score:
    """The `share` of n images with its interval over both draws."""
    spread = pair.share_spread
    error, interval = spread.interval(metric, share, n)
    method += f"; spread of {spread.parts} random parts of both sides, both drawn anew"
    if spread.parts < PARTS:
        method += f"; wide, as the images are too few for {PARTS}"
    details = {**details, "parts": spread.parts}
    return Score(metric, metric.capitalize(), pair.network, share, error, interval, method, details)


def density_score(pair: Pair) -> Score | str:
    """Density (Naeem et al. 2020), or why it cannot be computed."""
    if reason := _too_few_neighbours(pair):
        return reason
    details = {"nearest_k": pair.nearest_k, "inclusive": False, "distances": "exact"}
    method = f"k = {pair.nearest_k}, distance < radius, exact; mean over samples and balls, both sides drawn anew"
    value = pair.balls.scores()["density"]
    error = density_error(pair.balls.around, pair.balls.within, pair.nearest_k)
    return Score("density", "Density", pair.network, value, error, normal_interval(value, error), method, details)


def coverage_score(pair: Pair) -> Score | str:
    """Coverage (Naeem et al. 2020), or why it cannot be computed."""
    if reason := _too_few_neighbours(pair):
        return reason
    value = pair.balls.scores()["coverage"]
    details = {"nearest_k": pair.nearest_k, "inclusive": False, "distances": "exact"}
    method = f"k = {pair.nearest_k}, distance < radius, exact"
    if pair.share_spread is None:
        method += "; too few images for an interval"
        return Score("coverage", "Coverage", pair.network, value, method=method, details=details)
    return _share_score(pair, "coverage", value, len(pair.reference.features), method, details)


def _too_few_neighbours(pair: Pair) -> str | None:
    if reason := pair.missing_features():
        return reason
    k, available = pair.nearest_k, min(len(pair.samples.features), len(pair.reference.features))
    if available <= k:
        return f"{available} images have no neighbour number {k}; pass nearest_k={available - 1} or less (--nearest-k)"
    return None
