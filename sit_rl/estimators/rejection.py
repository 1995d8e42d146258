"""Rejection sampling: fine-tune on the kept samples as if they were data (the paper's RS).

L = E_{x kept} |v_θ(x_t, t) − u|²
"""

from __future__ import annotations

from collections.abc import Iterator

from sit_rl.estimators.base import Estimator, Minibatch, Term
from sit_rl.estimators.matching import matching_points, squared_error
from sit_rl.rollout import Rollout
from sit_rl.sampling.guidance import Model


class Rejection(Estimator):
    """One flow-matching term per minibatch of kept samples."""

    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[Term]:
        """See the module's equation."""
        assert rollout is not None  # because rolls_out is True
        t, x_t, target = matching_points(rollout.samples[batch.rows], batch.indices, self.config.seed, batch.draw)
        matching = squared_error(model(x_t, t, rollout.labels[batch.rows]), target)
        yield matching, {"matching": matching.detach()}
