"""Generate images with a model; ranks share the work by global sample index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from sit_rl.components.build import Components
from sit_rl.components.image_sets import check_labels
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.ranks.collectives import owned_samples
from sit_rl.ranks.cpu_batches import map_in_two_stages
from sit_rl.ranks.preemption import overdue, stop_if_overdue
from sit_rl.ranks.process_group import is_main
from sit_rl.ranks.transfer import pinned, to_device
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.ode_and_sde_steps import NoiseSource, sample, sample_path
from sit_rl.sampling.random_streams import Stream, sample_normal
from sit_rl.sampling.sampler_config import SamplerConfig, noise_draws, noisy_steps

# the rows of a batch → parts of them, each with the model that generates it
Pieces = Callable[[range], Iterable[tuple[range, GeneratorModel]]]


@dataclass
class Drawn:
    """A batch that the sampler has made, before decoding; fields as in `Rollout`."""

    indices: range
    labels: torch.Tensor
    samples: torch.Tensor
    states: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None


@dataclass
class Rollout:
    """This rank's part of a set of generated images: n images.

    indices   their global indices
    labels    int64 [n]
    samples   float32 [n, C, H, W], before decoding
    images    uint8 [n, c, h, w] in host memory: 50,000 of 256×256 are 10 GB
    features  float32 [n, d] of the reward's network
    states    float32 [n, steps + 1, C, H, W], the random path, if it was kept
    log_prob  float32 [n, noisy steps] under the model that made the path, if it was kept
    """

    indices: range
    labels: torch.Tensor
    samples: torch.Tensor
    images: torch.Tensor
    features: torch.Tensor
    states: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None


def generate(
    components: Components,
    model: GeneratorModel,
    labels: torch.Tensor,
    samplers: Sequence[SamplerConfig],
    *,
    seed: int,
    step: int,
    batch: int,
    initial: Stream = Stream.INITIAL,
    noisy: Stream = Stream.SDE,
    keep_path: bool = False,
    pieces: Pieces | None = None,
    label: str = "sample",
) -> list[Rollout]:
    """Sample image i of class labels[i] from the noise of (seed, step, i), for this rank's share of the images.

    A batch is `batch` consecutive global indices, for any number of ranks. Every matrix product therefore has the
    same shape, and a sample the same bits, on one rank and on many. Preempted between two batches if the run was told
    to stop.

    samplers  each makes all images, and has a rollout in the result.  Their batches are one stream, the longest first,
              so that the cores of a CPU end at about the same time
    pieces    divides a batch among several models, which are used in place of `model`
    """
    check_labels(labels, len(components.conditions), "the model's classes")
    mine = owned_samples(len(labels), batch)

    def draw(task: tuple[int, range]) -> tuple[int, Drawn]:
        number, rows = task
        several = [(rows, model)] if pieces is None else pieces(rows)
        return number, _join_drawn([draw_piece(*piece, samplers[number]) for piece in several])

    def draw_piece(rows: range, model: GeneratorModel, sampler: SamplerConfig) -> Drawn:
        y = to_device(labels[rows.start : rows.stop], components.device)
        noise = to_device(sample_normal(seed, initial, step, rows, components.sample_shape), components.device)
        step_noise = noise_source(seed, noisy, step, rows, sampler, noise) if noise_draws(sampler) else None
        velocity = bind(model, y, sampler)
        if not keep_path:
            return Drawn(rows, y, sample(velocity, noise, sampler, step_noise))
        if step_noise is None:
            raise ValueError(f"sampler {sampler} draws no noise, so its path has no log-probabilities")
        path = sample_path(velocity, noise, sampler, step_noise)
        states, log_prob = torch.stack(path.states, dim=1), torch.stack(path.log_prob, dim=1)
        return Drawn(rows, y, path.states[-1], states, log_prob)

    def decode(task: tuple[int, Drawn]) -> tuple[int, Rollout]:
        number, drawn = task
        images = components.decode(drawn.samples)
        return number, Rollout(
            drawn.indices, drawn.labels, drawn.samples, images.cpu(), components.reward_net(images),
            drawn.states, drawn.log_prob,
        )  # fmt: skip

    parts: list[list[Rollout]] = [[] for _ in samplers]
    batches = [range(start, min(start + batch, mine.stop)) for start in range(mine.start, mine.stop, batch)]
    longest = sorted(range(len(samplers)), key=lambda number: -samplers[number].steps)
    tasks = [(number, rows) for number in longest for rows in batches]
    total = len(samplers) * len(mine)
    with tqdm(total=total, desc=label, unit="image", leave=False, disable=not is_main()) as bar:
        for number, part in map_in_two_stages(draw, decode, tasks, components.device):
            parts[number].append(part)
            bar.update(len(part.indices))
            if overdue():
                break
    stop_if_overdue()
    return [
        _join(found) if found else _nothing(mine, components, sampler if keep_path else None)
        for found, sampler in zip(parts, samplers, strict=True)
    ]


def noise_source(
    seed: int, stream: Stream, step: int, rows: range, sampler: SamplerConfig, like: torch.Tensor
) -> NoiseSource:
    """All noise of a batch of random paths, drawn one sample after the other; the source gives step i's.

    It waits in host memory, step by step, so that a device holds the noise of one step.
    """
    draws = sample_normal(seed, stream, step, rows, (noise_draws(sampler), *like.shape[1:]))
    if like.device.type == "cpu":
        return lambda i: draws[:, i]
    by_step = pinned(draws.transpose(0, 1).contiguous(), like.device)
    return lambda i: to_device(by_step[i], like.device)


def _join_drawn(parts: list[Drawn]) -> Drawn:
    """Concatenate the pieces of a batch in their order."""
    if len(parts) == 1:
        return parts[0]
    return Drawn(
        range(parts[0].indices.start, parts[-1].indices.stop),
        torch.cat([p.labels for p in parts]),
        torch.cat([p.samples for p in parts]),
        _join_paths([p.states for p in parts]),
        _join_paths([p.log_prob for p in parts]),
    )


def _nothing(indices: range, components: Components, path_of: SamplerConfig | None) -> Rollout:
    """The part of a rank that owns no batch: empty tensors; those of a path have the shapes of sampler `path_of`."""
    samples = torch.empty((0, *components.sample_shape), device=components.device)
    states = log_prob = None
    if path_of is not None:
        states = samples.new_empty((0, path_of.steps + 1, *components.sample_shape))
        log_prob = samples.new_empty((0, len(noisy_steps(path_of))))
    return Rollout(
        indices,
        torch.empty(0, dtype=torch.long, device=components.device),
        samples,
        components.decode(samples).cpu(),
        samples.new_empty((0, components.reward_net.dim)),
        states,
        log_prob,
    )


def _join(parts: list[Rollout]) -> Rollout:
    """Concatenate batches in their order."""
    return Rollout(
        range(parts[0].indices.start, parts[-1].indices.stop),
        torch.cat([p.labels for p in parts]),
        torch.cat([p.samples for p in parts]),
        torch.cat([p.images for p in parts]),
        torch.cat([p.features for p in parts]),
        _join_paths([p.states for p in parts]),
        _join_paths([p.log_prob for p in parts]),
    )


def _join_paths(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Concatenate what the batches kept of their paths; None where they kept nothing."""
    kept = [part for part in parts if part is not None]
    return torch.cat(kept) if kept else None
