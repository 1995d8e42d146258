"""Advantage-weighted flow matching on final samples: the default.

    L = E_x [ A(x) · |v_θ(x_t, t) − u|² + β · |v_θ(x_t, t) − v_base(x_t, t)|² ],   A < 0 scaled by `negative`.

Samples of positive advantage pull the velocity towards the paths that make them; those of negative advantage push it
away. The second term keeps the velocity near the base model's, because the push alone has no bound. Rollouts are
deterministic (ODE): the samples that train come from the sampler that is used afterwards. An image costs one pass
instead of one per sampler step.
Related: AWM (arXiv 2509.25050), DiffusionNFT (arXiv 2509.16117).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sit_rl.estimators.base import Estimator, Minibatch, Term
from sit_rl.estimators.matching import matching_points, squared_error
from sit_rl.options.option import filled_in
from sit_rl.rollout import Rollout
from sit_rl.sampling.guidance import Model


class AdvantageMatching(Estimator):
    """One term a minibatch: advantage-weighted matching with an anchor on the base velocity."""

    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[Term]:
        """See the module's equation."""
        assert rollout is not None  # because rolls_out is True
        samples, labels = rollout.samples[batch.rows], rollout.labels[batch.rows]
        t, x_t, target = matching_points(samples, batch.indices, self.config.seed, batch.draw)
        v = model(x_t, t, labels)
        with torch.no_grad():
            v_base = self.components.model(x_t, t, labels)
        matching, drift = squared_error(v, target), squared_error(v, v_base)
        update = self.config.update
        weight = torch.where(batch.advantage < 0, update.negative * batch.advantage, batch.advantage)
        yield (
            weight * matching + filled_in(update.anchor) * drift,
            {"matching": matching.detach(), "drift": drift.detach()},
        )
