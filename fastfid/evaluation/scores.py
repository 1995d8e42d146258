"""Every metric of a pair: a Score with its interval and method, or the reason why it is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from fastfid.evaluation.classes_and_outliers import outliers_obstacle
from fastfid.evaluation.frechet_scores import fd_infinity_score, fd_score, sfid_score
from fastfid.evaluation.inception_score import classifier_score
from fastfid.evaluation.kernel_scores import kid_score, mmd_score
from fastfid.evaluation.neighbour_scores import coverage_score, density_score, share_score
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import LeftOut, Score
from fastfid.features.extraction import PROGRESS_DELAY

METRIC_SCORES: dict[str, Callable[[Pair], Score | str | None]] = {
    "fd": fd_score,
    "fd_infinity": fd_infinity_score,
    "sfid": sfid_score,
    "is": classifier_score,
    "kid": kid_score,
    "mmd": mmd_score,
    "density": density_score,
    "coverage": coverage_score,
    "outliers": outliers_obstacle,
    **{name: share_score(name) for name in ("precision", "recall")},
}


def compute(pair: Pair, metrics: Sequence[str], warnings: list[str]) -> tuple[list[Score], list[LeftOut]]:
    """Every metric's Score, and those that cannot be computed with the reason; repairs are told in `warnings`."""
    scores, left_out = [], []
    for metric in _with_bar(metrics, pair):
        found = METRIC_SCORES[metric](pair)
        if isinstance(found, str):
            left_out.append(LeftOut(metric, pair.network, found))
        elif found is not None:
            scores.append(found)
            warnings += _repairs(found, pair)
    return scores, left_out


def _repairs(score: Score, pair: Pair) -> list[str]:
    if score.metric == "kid":
        wanted, size = pair.settings.kid_subset_size or pair.protocol.kid_subset_size, score.details["subset_size"]
        return [f"KID subsets shrank from {wanted} to the {size} images there are"] if size < wanted else []
    clipped = score.details.get("clipped", 0)
    values = "eigenvalue was" if clipped == 1 else "eigenvalues were"
    return [f"{clipped} {values} below 0 under the root of {score.label} and taken for 0"] if clipped else []


def _with_bar(metrics: Sequence[str], pair: Pair):
    """The metrics, with a bar on stderr if they take more than PROGRESS_DELAY seconds."""
    from tqdm import tqdm

    hidden = not pair.settings.progress
    name = f"metrics ({pair.network})"
    return tqdm(metrics, unit="metric", desc=name, file=sys.stderr, delay=PROGRESS_DELAY, disable=hidden)
