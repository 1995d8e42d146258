"""What an estimator is, and the update that all of them share.

A minibatch is a set of global sample indices, the same on every rank; each rank computes the losses of those it owns,
divides by the global size, and gradients are summed. No sample ever moves between ranks, and the update does not
depend on their number beyond the rounding of that sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from sit_rl.config import Config
from sit_rl.distributed import is_main, sum_gradients, sum_scalars
from sit_rl.ema import EMA
from sit_rl.models.sit import SiT
from sit_rl.noise import Stream, generator
from sit_rl.rollout import Rollout
from sit_rl.samplers import SamplerConfig
from sit_rl.setting import Setting

# Norm of a gradient above which it is useless whatever the clipping: float32 products of it overflow.
GRADIENT_LIMIT = 1e18


@dataclass
class Minibatch:
    """This rank's n members of a minibatch: rows into its rollout, their global indices, advantages [n] float32."""

    rows: torch.Tensor
    indices: list[int]
    advantage: torch.Tensor
    draw: int  # number of this update in the run: names its random draws


class Estimator(ABC):
    """Gives losses whose gradient improves the reward; see the four files beside this one."""

    rolls_out = True  # whether it learns from generated samples at all
    keeps_path = False  # whether it needs the states of the sampler's steps

    def __init__(self, config: Config, setting: Setting):
        self.config, self.setting = config, setting

    @property
    def sampler(self) -> SamplerConfig:
        """The sampler its rollouts use."""
        return self.config.rollout

    @property
    def updates(self) -> int:
        """Optimiser steps a training step."""
        return self.config.updates

    @abstractmethod
    def losses(self, model: SiT, rollout: Rollout, batch: Minibatch) -> Iterator[tuple[torch.Tensor, dict]]:
        """Yield (loss [n], statistics [n]) terms; their losses add up, and each is back-propagated as it comes.

        The same terms on every rank, also where a rank owns none of the minibatch (n = 0).
        """

    def minibatches(self, kept: torch.Tensor, step: int) -> Iterator[list[int]]:
        """`updates` lists of global indices, walking through shuffles of `kept`."""
        size = min(self.config.minibatch, len(kept))
        queue: list[int] = []
        for u in range(self.updates):
            while len(queue) < size:
                order = generator(self.config.seed, Stream.SHUFFLE, step, u).permutation(len(kept))
                queue += kept[torch.from_numpy(order)].tolist()
            batch, queue = queue[:size], queue[size:]
            yield batch


def update(
    estimator: Estimator,
    model: SiT,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    rollout: Rollout | None,
    advantage: torch.Tensor,
    kept: torch.Tensor,
    step: int,
) -> dict[str, float]:
    """One training step's optimiser steps on the kept samples; returns means of the estimator's statistics.

    advantage float64 [B·m] and kept int64 are global. FloatingPointError, before the weights change, for a loss or
    gradient that is not finite.
    """
    config, parameters = estimator.config, [p for p in model.parameters() if p.requires_grad]
    sums: dict[str, float] = defaultdict(float)
    with tqdm(total=estimator.updates, desc="update", unit="update", leave=False, disable=not is_main()) as bar:
        for u, indices in enumerate(estimator.minibatches(kept, step)):
            batch = _own(indices, rollout, advantage, step * estimator.updates + u)
            optimizer.zero_grad()
            local: dict[str, float] = defaultdict(float)
            for loss, statistics in estimator.losses(model, rollout, batch):
                (loss.sum() / len(indices)).backward()
                for name, value in {"loss": loss.detach(), **statistics}.items():
                    local[name] += float(value.double().sum()) / len(indices)
            sum_gradients(parameters)
            for name, value in sum_scalars(dict(local)).items():
                sums[name] += value
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip))
            if not norm < GRADIENT_LIMIT:
                raise FloatingPointError(
                    f"the gradient's norm is {norm} in update {u} of step {step}, the weights are as before it: "
                    f"lower --lr (now {config.lr:g}) and resume"
                )
            sums["gradient_norm"] += norm
            optimizer.step()
            ema.update(model)
            bar.update()
    return {name: value / estimator.updates for name, value in sums.items()}


def _own(indices: list[int], rollout: Rollout | None, advantage: torch.Tensor, draw: int) -> Minibatch:
    """The part of a global minibatch that this rank generated (all of it where nothing was generated)."""
    if rollout is None:
        return Minibatch(torch.tensor(indices), indices, torch.ones(len(indices)), draw)
    mine = [i for i in indices if i in rollout.indices]
    rows = torch.tensor([i - rollout.indices.start for i in mine], dtype=torch.long)
    weights = advantage[torch.tensor(mine, dtype=torch.long)].float().to(rollout.samples.device)
    return Minibatch(rows.to(rollout.samples.device), mine, weights, draw)
