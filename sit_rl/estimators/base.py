"""The base class of estimators, and the update that all of them share.

A minibatch is a set of global sample indices, the same on every rank. Each rank computes the losses of the samples that
it owns and divides by the global size; gradients are summed. Samples never move between ranks, and the update depends
on the number of ranks only by the rounding of that sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.learner.guards import require_finite_gradient, require_finite_weights
from sit_rl.learner.learner import Learner
from sit_rl.options.option import filled_in
from sit_rl.ranks.collectives import owned_samples, sum_scalars
from sit_rl.ranks.preemption import stop_if_overdue
from sit_rl.ranks.process_group import is_main, rank, world_size
from sit_rl.reward.components import RewardSide
from sit_rl.rollout import Pieces, Rollout
from sit_rl.sampling.guidance import Model
from sit_rl.sampling.random_streams import Stream, generator
from sit_rl.sampling.sampler_config import SamplerConfig

# (losses [n], statistics to log by name, each [n])
Term = tuple[torch.Tensor, dict[str, torch.Tensor]]


@dataclass
class Minibatch:
    """n samples of a minibatch, all owned by this rank.

    rows       int64 [n], their rows in this rank's rollout
    indices    their global indices
    advantage  float32 [n]
    draw       number of this update in the run, which addresses its random draws
    """

    rows: torch.Tensor
    indices: list[int]
    advantage: torch.Tensor
    draw: int


class Estimator(ABC):
    """Makes losses whose gradient improves the reward; each kind has a file beside this one."""

    rolls_out = True  # whether it learns from generated samples
    keeps_path = False  # whether it needs the states of the sampler's steps
    follows_gradient = False  # whether `prepare` needs the gradient of the advantages

    def __init__(self, config: Config, components: Components):
        self.config, self.components = config, components

    def sampler(self, step: int) -> SamplerConfig:
        """The sampler that the rollouts of a training step use."""
        return self.config.rollout.sampler

    @property
    def updates(self) -> int:
        """Optimiser steps a training step."""
        return filled_in(self.config.update.updates)

    @property
    def minibatch_size(self) -> int:
        """Images of a minibatch, over all ranks."""
        return filled_in(self.config.update.minibatch)

    def terms(self, step: int) -> int:
        """How many terms `losses` yields in a training step."""
        return 1

    def pieces(self, learner: Learner, step: int) -> Pieces | None:
        """Which model generates which samples of a step's rollout; None: the learner's generates all."""
        return None

    def credit(self, learner: Learner, advantage: torch.Tensor, subset: torch.Tensor, step: int) -> torch.Tensor:
        """The advantages float64 [B·m] that the losses use, from those of the images; all ranks call it alike.

        subset  float64 [B], the subsets' rewards under the first component
        """
        return advantage

    def report(self, learner: Learner) -> dict[str, object]:
        """What to log after a step's updates, beside the means of the losses' statistics."""
        return {}

    def prepare(self, rollout: Rollout, side: RewardSide, slopes: torch.Tensor) -> dict[str, float]:
        """Once a step before the updates, where it follows the gradient; returns statistics to log.

        slopes  float32 [n, d], gradient of the advantages in what the reward reads of this rank's images
        """
        return {}

    @abstractmethod
    def losses(self, model: Model, rollout: Rollout | None, batch: Minibatch) -> Iterator[Term]:
        """Yield the terms of a loss, which is their sum; the gradient of each is taken before the next is made.

        Every rank yields equally many, also one that owns none of the minibatch (n = 0).
        """

    def share(self, indices: list[int], of_rank: int) -> list[int]:
        """The samples of a global minibatch that a rank computes: those that it generated."""
        made = owned_samples(self.config.reward.images_per_step, self.config.rollout.batch, of_rank)
        return [i for i in indices if i in made]

    def minibatches(self, kept: torch.Tensor, step: int) -> Iterator[list[int]]:
        """Yield `updates` lists of global indices: consecutive pieces of shuffles of `kept`."""
        size = min(self.minibatch_size, len(kept))
        queue: list[int] = []
        for u in range(self.updates):
            while len(queue) < size:
                order = generator(self.config.seed, Stream.SHUFFLE, step, u).permutation(len(kept))
                queue += kept[torch.from_numpy(order)].tolist()
            batch, queue = queue[:size], queue[size:]
            yield batch


def update(
    estimator: Estimator,
    learner: Learner,
    rollout: Rollout | None,
    advantage: torch.Tensor,
    kept: torch.Tensor,
    step: int,
) -> dict[str, float]:
    """Take a training step's optimiser steps on the kept samples; return the means of the estimator's statistics.

    advantage  float64 [B·m], of all ranks' samples
    kept       int64, global indices of the samples that train

    FloatingPointError, before the weights change, if a gradient is not finite.
    """
    sums: dict[str, float] = defaultdict(float)
    named, lr = list(learner.module.named_parameters()), filled_in(estimator.config.update.lr)
    with tqdm(total=estimator.updates, desc="update", unit="update", leave=False, disable=not is_main()) as bar:
        for u, indices in enumerate(estimator.minibatches(kept, step)):
            stop_if_overdue()
            draw = step * estimator.updates + u
            learner.optimizer.zero_grad()
            for name, value in accumulate(estimator, learner, rollout, advantage, indices, draw).items():
                sums[name] += value
            norm = learner.clip()
            require_finite_gradient(norm, named, f"update {u} of step {step}", lr)
            sums["gradient_norm"] += norm
            learner.step(draw + 1)
            bar.update()
    require_finite_weights(named, step, lr)
    return {name: value / estimator.updates for name, value in sums.items()}


def accumulate(
    estimator: Estimator,
    learner: Learner,
    rollout: Rollout | None,
    advantage: torch.Tensor,
    indices: list[int],
    draw: int,
) -> dict[str, float]:
    """Add up the gradients of one global minibatch by micro-batches; return its statistics, summed over ranks."""
    parts = micro_batches(estimator, rollout, advantage, indices, draw)
    count = estimator.terms(draw // estimator.updates)
    # The sums stay tensors until the end: reading one would make the host wait for the GPU at every term.
    local: dict[str, torch.Tensor] = {}
    for i, batch in enumerate(parts):
        terms = estimator.losses(learner, rollout, batch)
        for k in range(count):
            with learner.backward(last=i == len(parts) - 1 and k == count - 1):
                loss, statistics = next(terms)
                (loss.sum() * learner.gradient_scale / len(indices)).backward()
            for name, value in {"loss": loss.detach(), **statistics}.items():
                part = value.double().sum() / len(indices)
                local[name] = local[name] + part if name in local else part
    return sum_scalars({name: float(total) for name, total in local.items()})


def micro_batches(
    estimator: Estimator, rollout: Rollout | None, advantage: torch.Tensor, indices: list[int], draw: int
) -> list[Minibatch]:
    """This rank's share of a global minibatch in parts of at most --micro-batch images.

    Every rank has equally many parts, because sharded layers communicate in every pass; the last ones may be empty.
    """
    size = estimator.config.run.micro_batch or len(indices)
    largest = max(len(estimator.share(indices, r)) for r in range(world_size()))
    mine = estimator.share(indices, rank())
    parts = [mine[i * size : (i + 1) * size] for i in range(max(1, -(-largest // size)))]
    return [_minibatch(part, rollout, advantage, draw) for part in parts]


def _minibatch(mine: list[int], rollout: Rollout | None, advantage: torch.Tensor, draw: int) -> Minibatch:
    """The minibatch of the global indices `mine`, all owned by this rank; the advantages are 1 without a rollout."""
    if rollout is None:
        return Minibatch(torch.tensor(mine, dtype=torch.long), mine, torch.ones(len(mine)), draw)
    rows = torch.tensor([i - rollout.indices.start for i in mine], dtype=torch.long)
    weights = advantage[torch.tensor(mine, dtype=torch.long)].float().to(rollout.samples.device)
    return Minibatch(rows.to(rollout.samples.device), mine, weights, draw)
