"""Evaluation on held-out real images, from fixed noise and labels: the metrics of the paper's table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastfid import FeatureExtractor, FeatureMoments, frechet_distance, kid, mmd, prdc
from sit_rl.components.build import Components
from sit_rl.components.real_side import RealSide
from sit_rl.learner.guards import require_finite
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.ranks.collectives import gather_owned
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.process_group import is_main
from sit_rl.rollout import generate
from sit_rl.sampling.random_streams import EVALUATION_STEP, Stream
from sit_rl.sampling.sampler_config import SamplerConfig

# The paper's k of precision, recall, density and coverage (Naeem et al. 2020), and torch-fidelity's KID subsets.
NEAREST_K, KID_SUBSETS, KID_SUBSET_SIZE = 5, 100, 1_000
METRICS = ("fd", "kid", "mmd", "fd_b", "precision", "recall", "density", "coverage")


@dataclass
class Evaluation:
    """Metrics of one model under one sampler, and the first images it made."""

    metrics: dict[str, float | None]
    images: torch.Tensor  # uint8 [≤ grid, C, H, W]


def evaluate_model(
    components: Components,
    model: GeneratorModel,
    sampler: SamplerConfig,
    count: int,
    *,
    seed: int,
    batch: int,
    grid: int = 0,
    label: str = "evaluate",
) -> Evaluation:
    """Sample `count` images, `batch` at a time, and compare them with the held-out real images.

    Image i always has the noise of (seed, i) and class i mod classes, or the prompt whose turn it is. So two models are
    compared like for like, and a smaller count uses the first of the same images. Returns the first `grid` images as
    well. Metrics that need real features are None where the real side is a statistics file.
    """
    labels = components.conditions.balanced(count)
    made = generate(
        components, model, labels, sampler, seed=seed, step=EVALUATION_STEP, batch=batch,
        initial=Stream.EVALUATE, noisy=Stream.EVALUATE_SDE, label=label,
    )  # fmt: skip
    require_finite(f"samples of '{label}'", made.samples)
    features = gather_owned(made.features, count, batch)
    fd_b = None
    if components.judge_net is not None and components.heldout_b is not None:
        fd_b = distance(
            components.heldout_b, gather_owned(_in_batches(components.judge_net, made.images), count, batch)
        )
    metrics = measure(components.heldout, features) | {"fd_b": fd_b}
    images = gather_owned(made.images, count, batch, first=grid)
    return Evaluation({name: metrics[name] for name in METRICS}, images)


def measure(heldout: RealSide, features: torch.Tensor) -> dict[str, float | None]:
    """The metrics of features [n, d] of one network, None for fd_b. KID's subsets have at most n images."""
    out: dict[str, float | None] = dict.fromkeys(METRICS)
    out["fd"] = distance(heldout, features)
    if heldout.features is None or not is_main():
        return out
    real = heldout.features
    size = min(KID_SUBSET_SIZE, len(real), len(features))
    out["kid"] = float(kid(real, features, subsets=KID_SUBSETS, subset_size=size))
    out["mmd"] = float(mmd(real, features, kernel="gaussian", bandwidth="median"))
    return out | prdc(real, features, nearest_k=NEAREST_K)


def distance(real: RealSide, features: torch.Tensor) -> float:
    """Fréchet distance of features [n, d] from the real moments."""
    return float(frechet_distance(real.moments, FeatureMoments.from_features(features)))


def floor(components: Components) -> dict[str, float | None]:
    """FD between the reward's real images and the held-out ones, through both networks; None where they are the same.

    It is what a perfect generator would reach, within the noise of the two samples.
    """
    if components.heldout is components.real:
        return {"fd": None, "fd_b": None}
    fd_b = None
    if components.real_b is not None and components.heldout_b is not None:
        fd_b = float(frechet_distance(components.heldout_b.moments, components.real_b.moments))
    return {"fd": float(frechet_distance(components.heldout.moments, components.real.moments)), "fd_b": fd_b}


def _in_batches(net: FeatureExtractor, images: torch.Tensor, size: int = 250) -> torch.Tensor:
    """Features of images [n, ...], a batch at a time."""
    if not len(images):
        return torch.empty((0, net.dim), device=net.device)
    return torch.cat(list(map_batches(net, images.split(size), net.device)))
