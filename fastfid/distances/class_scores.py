"""The score of a classifier's outputs: exp E[KL(p(y|x) ‖ p(y))], with Inception's logits the Inception Score.

exp(L), L = mean h + H(q), with h_i = Σ_c p_ic log p_ic and H(q) the entropy of q = mean p.

Legend: N samples, n of them in a part, C classes of the classifier, p [n, C] class probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# The order of the images matters if it changes the mean score by more than both of these: 3 standard deviations over
# the parts (another permutation changes the mean by less than one), and 1% of the score.
ORDER_SPREADS, ORDER_PART = 3, 0.01
ENTROPY_ROWS = 2048  # rows of probabilities at a time: 17 MB at 1,008 classes


class ClassProbabilities:
    """p(y|x) of some rows of logits [N, C], made again whenever they are needed, ENTROPY_ROWS rows at a time.

    rows       numbers of the rows, int64 [n]; all of them unless given
    entropies  h_i = Σ_c p_ic log p_ic, float64 [n]
    total      Σ_i p_i, float64 [C]
    """

    def __init__(self, logits: Tensor, rows: Tensor | None = None) -> None:
        self.logits, self.rows = logits, torch.arange(len(logits)) if rows is None else rows
        sums = [(torch.xlogy(p, p).sum(dim=1), p.sum(dim=0)) for p in self.blocks()]
        self.entropies = torch.cat([h for h, _ in sums])
        self.total = torch.zeros_like(sums[0][1])
        for _, total in sums:
            self.total += total

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[Tensor]:
        """float64 [m ≤ ENTROPY_ROWS, C] of consecutive rows."""
        return (self.logits[part].double().softmax(dim=1) for part in self.rows.split(ENTROPY_ROWS))

    def score(self) -> float:
        """exp(L) of these rows."""
        marginal = self.total / len(self)
        return (self.entropies.mean() - torch.xlogy(marginal, marginal).sum()).exp().item()


def depends_on_order(score: float, mixed: float, spread: float) -> bool:
    """Whether a mean score over parts depends on the order of the rows.

    mixed, spread  mean and deviation of the scores of the same parts of permuted rows
    """
    return abs(score - mixed) > max(ORDER_SPREADS * spread, ORDER_PART * mixed)


def order_warning(label: str, score: float, mixed: float) -> str:
    """A warning that the order of the images changes the score of their splits."""
    return (
        f"{label} is {score:.4g} in the order of the images and {mixed:.4g} in mixed order: the splits differ, as for "
        "images sorted by class; mix the images"
    )
