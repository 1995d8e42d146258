"""Pretraining of a generator by flow matching. The ranks share every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from fastfid import FeatureMoments
from sit_rl.components.real_side import RealSide
from sit_rl.models.averages import EMA
from sit_rl.models.pixels import to_float
from sit_rl.models.sit import SiT
from sit_rl.ranks.collectives import gather_owned, owned_samples, sum_gradients
from sit_rl.ranks.process_group import is_main, rank, world_size
from sit_rl.ranks.transfer import to_device
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.interpolant import interpolate, target_velocity
from sit_rl.sampling.ode_and_sde_steps import sample
from sit_rl.sampling.random_streams import Stream, balanced_labels, generator, sample_normal
from sit_rl.sampling.sampler_config import SamplerConfig
from sit_rl.training.learning_rate import warmup_cosine
from sit_rl.training.network_judge import distance

# Label dropout as published for SiT. It trains the null class, which classifier-free guidance needs.
LABEL_DROPOUT = 0.1
# Sampler of the curve, with so many steps that its error is far below the differences in the curve.
CURVE_SAMPLER = SamplerConfig("ode", "heun", 10)
CURVE_BATCH = 125  # images sampled at once
FEATURE_BATCH = 500  # images that a network sees at once

Decode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FlowSettings:
    """Settings of the optimisation: AdamW without weight decay, a warm-up over 2% and a cosine to zero.

    lr   peak of the learning rate
    ema  decay per iteration of the averaged weights
    """

    iterations: int
    batch: int
    lr: float
    ema: float
    seed: int


@dataclass(frozen=True)
class FlowData:
    """What the flow ends in: uint8 images or float32 latents [N, C, H, W], and labels int64 [N].

    mirror  whether half of a batch is mirrored
    """

    samples: torch.Tensor
    labels: torch.Tensor
    mirror: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Samples float32 [n, C, H, W], images in [−1, 1]."""
        x = self.samples[rows]
        return to_float(x) if x.dtype == torch.uint8 else x


def optimizer_of(model: SiT, settings: FlowSettings) -> torch.optim.AdamW:
    """The optimiser of the trained parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0, fused=True)


def fit(
    model: SiT,
    average: EMA[SiT],
    optimizer: torch.optim.AdamW,
    data: FlowData,
    settings: FlowSettings,
    done: int = 0,
    silent: bool = False,
) -> Iterator[tuple[int, float]]:
    """Train from iteration `done` on; yields (iteration from 1, loss of this rank's share)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    drawn = batches(len(data), settings.batch, settings.iterations, settings.seed, done)
    bar = tqdm(drawn, total=settings.iterations, initial=done, desc="pretrain base", disable=silent or not is_main())
    for i, (rows, rng) in enumerate(bar, start=done + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warmup_cosine(i / settings.iterations)
        loss = flow_matching_loss(model, data, rows, rng)
        optimizer.zero_grad()
        (loss / world_size()).backward()
        sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(model, decay=min(settings.ema, i / (i + 10)))  # short memory at first
        yield i, loss.item()


def flow_matching_loss(model: SiT, data: FlowData, rows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mean of |v(x_t, t, y) − (x₁ − ε)|² over this rank's share of a batch.

    t is logit-normal(0, 1) (Esser et al. 2024), and 10% of the labels are null. Both are drawn for the whole batch.
    """
    x1, n, mine = data.rows(rows), len(rows), slice(rank(), None, world_size())
    noise = torch.from_numpy(rng.standard_normal(x1.shape, dtype=np.float32))
    t = torch.sigmoid(torch.from_numpy(rng.standard_normal(n, dtype=np.float32)))
    dropped = torch.from_numpy(rng.random(n) < LABEL_DROPOUT)
    y = torch.where(dropped, model.config.num_classes, data.labels[rows])
    if data.mirror:
        mirrored = torch.from_numpy(rng.random(n) < 0.5)
        x1 = torch.where(mirrored[:, None, None, None], x1.flip(-1), x1)
    device = next(model.parameters()).device
    x1, noise, t, y = (to_device(part[mine], device) for part in (x1, noise, t, y))
    error: torch.Tensor = model(interpolate(x1, noise, t), t, y) - target_velocity(x1, noise)
    return error.square().mean()


def batches(
    count: int, batch: int, steps: int, seed: int, done: int = 0
) -> Iterator[tuple[torch.Tensor, np.random.Generator]]:
    """Batches `done` to `steps` of row numbers, shuffled again in every pass, each with its own random generator."""
    per_pass, order = count // batch, None
    for i in range(done, steps):
        if order is None or i % per_pass == 0:
            order = generator(seed, Stream.PRETRAIN, 0, i // per_pass).permutation(count)
        start = i % per_pass * batch
        yield torch.from_numpy(order[start : start + batch]), generator(seed, Stream.PRETRAIN, 2, i)


Judge = Callable[[SiT], tuple[float, torch.Tensor]]


def heldout_judge(
    network: Callable[[torch.Tensor], torch.Tensor],
    heldout: torch.Tensor,
    shape: tuple[int, int, int],
    classes: int,
    decode: Decode,
    images: int,
    seed: int,
    grid: int = 0,
) -> Judge:
    """A function: model → FD between `images` of its samples and the held-out images, and its first `grid` images.

    network  images uint8 [n, c, h, w] → features [n, d]
    heldout  uint8 [n, c, h, w]

    The samples have fixed noise and balanced labels. All ranks call the function and share the samples.
    """
    real = RealSide(FeatureMoments.from_features(features_of(network, heldout)), None)
    labels = balanced_labels(images, classes)
    mine = owned_samples(images, CURVE_BATCH)
    noise, labels = sample_normal(seed, Stream.PRETRAIN, 1, mine, shape), labels[mine.start : mine.stop]

    @torch.no_grad()
    def judge(model: SiT) -> tuple[float, torch.Tensor]:
        device = next(model.parameters()).device
        parts = [
            decode(sample(bind(model, y.to(device)), z.to(device), CURVE_SAMPLER))
            for z, y in zip(noise.split(CURVE_BATCH), labels.split(CURVE_BATCH), strict=True)
        ]
        made = torch.cat(parts) if parts else decode(torch.empty((0, *shape), device=device))
        features = gather_owned(features_of(network, made), images, CURVE_BATCH)
        return distance(real, features), gather_owned(made, images, CURVE_BATCH, first=grid)

    return judge


@torch.no_grad()
def features_of(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Features [n, d] of images uint8 [n, c, h, w], some at a time."""
    return torch.cat([network(part) for part in images.split(FEATURE_BATCH)])
