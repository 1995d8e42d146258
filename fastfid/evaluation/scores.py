"""Every metric of a pair: a Score with its interval and method, or the reason why it is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

from fastfid.distances.class_scores import order_warning
from fastfid.evaluation.classes_and_outliers import missing_outliers
from fastfid.evaluation.frechet_scores import fd_infinity_score, fd_score, sfid_score
from fastfid.evaluation.inception_score import classifier_score
from fastfid.evaluation.kernel_scores import cmmd_score, kid_score, mmd_score
from fastfid.evaluation.neighbour_scores import coverage_score, density_score, precision_score, recall_score
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import LeftOut, Score
from fastfid.evaluation.sliced_scores import sliced_wasserstein_score
from fastfid.features.extraction import PROGRESS_DELAY

# Metric → function of a pair that returns the Score, or a sentence on why it cannot be computed.  Outliers are no
# Score: None means that evaluate.py can list them.
METRIC_SCORES: dict[str, Callable[[Pair], Score | str | None]] = {
    "fd": fd_score,
    "fd_infinity": fd_infinity_score,
    "sfid": sfid_score,
    "is": classifier_score,
    "kid": kid_score,
    "mmd": mmd_score,
    "sliced_wasserstein": sliced_wasserstein_score,
    "cmmd": cmmd_score,
    "precision": precision_score,
    "recall": recall_score,
    "density": density_score,
    "coverage": coverage_score,
    "outliers": missing_outliers,
}


def compute(pair: Pair, metrics: Sequence[str], warnings: list[str]) -> tuple[list[Score], list[LeftOut]]:
    """Every metric's Score, and those that cannot be computed with the reason; repairs are added to `warnings`."""
    scores: list[Score] = []
    left_out: list[LeftOut] = []
    for metric in _with_bar(metrics, pair):
        found = METRIC_SCORES[metric](pair)
        if isinstance(found, str):
            left_out.append(LeftOut(metric, pair.network, found))
        elif found is not None:
            scores.append(found)
            warnings += _repairs(found, pair)
    return scores, left_out


def _repairs(score: Score, pair: Pair) -> list[str]:
    """A warning if KID's subsets shrank, eigenvalues were clipped, or the order of images changed a score."""
    if score.metric == "kid":
        wanted, size = pair.settings.kid_subset_size or pair.protocol.kid_subset_size, score.details["subset_size"]
        return [f"KID subsets shrank from {wanted} to the {size} images there are"] if size < wanted else []
    if score.metric == "is":
        mixed = score.details.get("mixed_order")
        return [] if mixed is None else [order_warning(f"the {score.label}", score.value, mixed)]
    clipped = score.details.get("clipped", 0)
    values = "eigenvalue was" if clipped == 1 else "eigenvalues were"
    return [f"{clipped} {values} below 0 under the root of {score.label} and taken for 0"] if clipped else []


def _with_bar(metrics: Sequence[str], pair: Pair) -> Iterable[str]:
    """The metrics, with a bar on stderr if they take more than PROGRESS_DELAY seconds."""
    hidden = not pair.settings.progress
    name = f"metrics ({pair.network})"
    return tqdm(metrics, unit="metric", desc=name, file=sys.stderr, delay=PROGRESS_DELAY, disable=hidden)
