"""Evaluation on held-out real images, from fixed noise and labels: the paper's metrics, and those of every network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastfid import frechet_distance, kid, mmd
from fastfid.distances.kid_mmd import kid_and_mmd
from sit_rl.components.build import Components
from sit_rl.components.networks import features_by_each
from sit_rl.learner.guards import require_finite
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.ranks.collectives import gather_owned
from sit_rl.ranks.process_group import is_main
from sit_rl.rollout import Rollout, generate
from sit_rl.sampling.random_streams import EVALUATION_STEP, Stream
from sit_rl.sampling.sampler_config import SamplerConfig
from sit_rl.training.intervals_and_classes import details
from sit_rl.training.network_judge import NEAREST_K, distance, judges_of

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1_000  # torch-fidelity's
FEATURE_BATCH = 250  # images: features of a batch of another size may differ by rounding
# Of the reward's first network; fd_b of the first judge.
METRICS = ("fd", "kid", "mmd", "fd_b", "precision", "recall", "density", "coverage")


@dataclass
class Evaluation:
    """Metrics of one model under one sampler, and the first images it made.

    metrics  those of METRICS; `networks`: {name: {"rewarded", and SCORES of network_judge.py}}; and `first_images`, if
             asked for: FD of every network for the first so many images, {"images": n, "networks": {name: {"fd"}}}
    images   uint8 [≤ grid, C, H, W]
    details  of `sit_rl.training.intervals_and_classes`, empty unless asked for
    """

    metrics: dict[str, Any]
    images: torch.Tensor
    details: dict[str, Any]


def evaluate_model(
    components: Components, model: GeneratorModel, sampler: SamplerConfig, count: int, **options: Any
) -> Evaluation:
    """`evaluate_by_each` with one sampler, and its other arguments."""
    ((_, found),) = evaluate_by_each(components, model, {"": sampler}, count, **options)
    return found


def evaluate_by_each(
    components: Components,
    model: GeneratorModel,
    samplers: Mapping[str, SamplerConfig],
    count: int,
    *,
    seed: int,
    batch: int,
    grid: int = 0,
    first: int = 0,
    label: str = "evaluate",
    detailed: bool = False,
) -> Iterator[tuple[str, Evaluation]]:
    """Under each sampler, sample `count` images, `batch` at a time, and compare them with the held-out real images.

    Image i always has the noise of (seed, i) and class i mod classes, or the prompt whose turn it is. So two models are
    compared like for like, and a smaller count uses the first of the same images. Returns the first `grid` images as
    well, and with `detailed` intervals and classes. Metrics that need real features are None where the real side is a
    statistics file. They are the main rank's; the others get None.

    On a CPU the samplers' batches are one stream, which keeps all cores busy.  Elsewhere each sampler's result comes
    before the next one begins, so that a run can save it.

    first  also FD of the first so many images, which is that of a smaller count
    label  of the progress bar and of errors; {} becomes the sampler's name
    """
    labels = components.conditions.balanced(count)
    names = list(samplers)
    for together in [names] if components.device.type == "cpu" else [[name] for name in names]:
        made = generate(
            components, model, labels, [samplers[name] for name in together], seed=seed, step=EVALUATION_STEP,
            batch=batch, initial=Stream.EVALUATE, noisy=Stream.EVALUATE_SDE, label=label.format(" and ".join(together)),
        )  # fmt: skip
        for name, images in zip(together, made, strict=True):
            require_finite(f"samples of '{label.format(name)}'", images.samples)
            yield name, _evaluation(components, images, labels, batch, grid, first, detailed)


def _evaluation(
    components: Components, made: Rollout, labels: torch.Tensor, batch: int, grid: int, first: int, detailed: bool
) -> Evaluation:
    """What the images of this rank and of the others are found to be; arguments as of `evaluate_by_each`."""
    count = len(labels)
    others = [each.net for each in components.networks[1:]]
    parts = [made.features, *features_by_each(others, made.images, FEATURE_BATCH)]
    features = [gather_owned(part, count, batch) for part in parts]
    images = gather_owned(made.images, count, batch, first=grid)
    metrics = measure(components, features)
    if 1 < first <= count:
        metrics["first_images"] = {"images": first, "networks": distances(components, [x[:first] for x in features])}
    behind = details(components.heldout, features[0], labels, NEAREST_K) if detailed and is_main() else {}
    return Evaluation(metrics, images, behind)


def measure(components: Components, features: list[torch.Tensor]) -> dict[str, Any]:
    """The metrics of features [n, d] of every network of `components`. KID's subsets have at most n images."""
    out: dict[str, Any] = dict.fromkeys(METRICS)
    if not is_main():
        return out | {"networks": {}}
    judges = judges_of(components)
    networks = {name: judge.scores(x) for (name, judge), x in zip(judges.items(), features, strict=True)}
    first, second = networks[components.reward_net.name], components.judge
    out |= {name: first[name] for name in METRICS if name in first}
    out["fd_b"] = networks[second.net.name]["fd"] if second else None
    real, made = components.heldout.features, features[0]
    if real is not None:
        out["kid"], out["mmd"] = kernel_distances(real, made)
    return out | {"networks": networks}


def kernel_distances(real: torch.Tensor, made: torch.Tensor) -> tuple[float, float]:
    """KID, whose subsets have at most as many images as a side, and MMD; of features [n, d].

    They share their products unless there are so many pairs that KID alone computes each subset's apart.  Then sharing
    would round otherwise.
    """
    size = min(KID_SUBSET_SIZE, len(real), len(made))
    if len(real) * len(made) <= KID_SUBSETS * size**2:
        of_subsets, of_all, _, _ = kid_and_mmd(real, made, KID_SUBSETS, size)
        return float(of_subsets), float(of_all)
    return float(kid(real, made, subsets=KID_SUBSETS, subset_size=size)), float(mmd(real, made))


def distances(components: Components, features: list[torch.Tensor]) -> dict[str, dict[str, Any]]:
    """FD of features [n, d] in every network, and whether it is rewarded."""
    return {
        each.net.name: {"rewarded": each.rewarded, "fd": distance(each.heldout, x)}
        for each, x in zip(components.networks, features, strict=True)
    }


def floor(components: Components) -> dict[str, float | None]:
    """FD between the reward's real images and the held-out ones, for fd and fd_b; None where they are the same.

    It is what a perfect generator would reach, within the noise of the two samples.
    """
    sides = {"fd": components.networks[0], "fd_b": components.judge}
    return {
        name: None
        if side is None or side.heldout is side.real
        else float(frechet_distance(side.heldout.moments, side.real.moments))
        for name, side in sides.items()
    }


def real_against_real(components: Components, count: int) -> dict[str, dict[str, Any]]:
    """The scores of every network for `count` of the reward's real images: the row to compare generated ones with."""
    return {name: judge.real_scores(count) for name, judge in judges_of(components).items()}
