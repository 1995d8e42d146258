"""The Inception Score, or the classifier score of another network, with its jackknife.

exp(L), L = mean h + H(q), with h_i = Σ_c p_ic log p_ic and H(q) the entropy of q = mean p.  Without image i, mean h and
q are one subtraction away.  Parts are independent, so their variances add up over their number squared.

Legend: N samples, n of them in a part, C classes of the classifier, p [n, C] class probabilities.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.arguments import check_seed
from fastfid.distances.class_scores import ClassProbabilities, depends_on_order, order_warning
from fastfid.evaluation.intervals import jackknife_variance, normal_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import Details, Score


def classifier_score(pair: Pair) -> Score | str:
    """The Inception Score of the samples under the protocol's splits, or why it cannot be computed."""
    logits = pair.samples.logits
    if logits is None:
        return f"{pair.network} gives no logits for {pair.samples.name}; they come from images through inception"
    p, n = pair.protocol, len(logits)
    if not p.is_split_size and n < 2 * p.is_splits:
        return f"{n} images in {p.is_splits} splits leave single ones, whose score is 1 always; pass more"
    bounds = [*range(0, n, p.is_split_size), n] if p.is_split_size else _equal_parts(n, p.is_splits)
    parts = _parts(logits, bounds, pair.settings.seed if p.is_shuffle else None)
    mean, std = _mean_and_deviation(parts)
    label = "Inception Score" if pair.network == "inception" else f"Classifier score ({pair.network})"
    details: Details = {"splits": len(parts), "std_over_splits": std, "shuffled": p.is_shuffle}
    if not p.is_shuffle and (mixed := _score_in_mixed_order(logits, bounds, mean, pair.settings.seed)) is not None:
        details["mixed_order"] = mixed
    method = f"mean of {len(parts)} splits, std {std:.4g}"
    variances = [variance for part in parts if (variance := score_variance(part)) is not None]
    if len(variances) < len(parts):
        return Score("is", label, pair.network, mean, method=method, details=details)
    error = math.sqrt(sum(variances)) / len(parts)
    method += "; jackknife over samples"
    return Score("is", label, pair.network, mean, error, normal_interval(mean, error), method, details)


def inception_score(logits: Tensor, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """exp E[KL(p(y|x) ‖ p(y))], mean and population deviation over `splits` parts of logits [N, C]; float64 inside.

    seed  permutes the rows by RandomState(seed), as torch-fidelity does; None keeps their order, with a warning where
          a permutation changes the score, as for images sorted by class
    """
    if not isinstance(splits, Integral) or not 1 <= splits <= len(logits):
        raise ValueError(f"splits is {splits} for {len(logits)} rows; it must be from 1 to their number")
    if seed is not None:
        check_seed(seed)
    bounds = _equal_parts(len(logits), splits)
    mean, std = _mean_and_deviation(_parts(logits, bounds, seed))
    if seed is None and (mixed := _score_in_mixed_order(logits, bounds, mean)) is not None:
        warnings.warn(order_warning("the score", mean, mixed), stacklevel=2)
    return mean, std


def _score_in_mixed_order(logits: Tensor, bounds: Sequence[int], score: float, seed: int = 2020) -> float | None:
    """The mean score of the same parts of permuted rows; None if `score` differs from it by chance only."""
    if len(bounds) < 3:  # one part has no order
        return None
    mixed, spread = _mean_and_deviation(_parts(logits, bounds, seed))
    return mixed if depends_on_order(score, mixed, spread) else None


def _equal_parts(n: int, parts: int) -> list[int]:
    """Bounds of `parts` ranges of n rows whose sizes differ by at most 1."""
    return [i * n // parts for i in range(parts + 1)]


def _parts(logits: Tensor, bounds: Sequence[int], seed: int | None) -> list[ClassProbabilities]:
    """The probabilities of each range of rows between `bounds`, after the permutation by `seed`."""
    n = len(logits)
    order = torch.arange(n) if seed is None else torch.from_numpy(np.random.RandomState(seed).permutation(n))
    return [ClassProbabilities(logits, order[low:high]) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _mean_and_deviation(parts: Sequence[ClassProbabilities]) -> tuple[float, float]:
    """Mean and population deviation of the score over the parts."""
    scores = [part.score() for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def score_variance(part: ClassProbabilities) -> float | None:
    """Jackknife variance of exp(L) over the rows of a part; None below 2 rows."""
    n = len(part)
    if n < 2:
        return None
    logs: list[Tensor] = []
    for p in part.blocks():
        own = part.entropies[sum(map(len, logs)) :][: len(p)]
        marginal = ((part.total - p) / (n - 1)).clamp_(min=0)
        logs.append((part.entropies.sum() - own) / (n - 1) - torch.xlogy(marginal, marginal).sum(dim=1))
    return jackknife_variance(torch.cat(logs).exp())
