"""Measure generators on held-out real images: `python -m sit_rl.evaluate`.

    python -m sit_rl.evaluate                       the embedded model, both samplers, every network, and real images
    python -m sit_rl.evaluate --checkpoint X --vae V --real REF.npz --protocol adm --samplers sit-ode sit-sde
    python -m sit_rl.evaluate --samples A.npz B.npz --real REF.npz --protocol adm
    torchrun --nproc-per-node 8 -m sit_rl.evaluate …

A checkpoint is a weights file (SiT or DiT, .pt or .safetensors), or a run folder, whose averaged weights are used. Its
samples are made first, in --out, as `sit_rl.sample` makes them: an interrupted command resumes, and the images do not
depend on the number of ranks. Then fastfid measures all rows, also those with samples of other programs. It has the
metrics, protocols and networks (`fastfid eval --help`). The table is printed. --out/evaluation.json keeps it with
everything that it depends on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import tyro

import fastfid
from fastfid.evaluation.evaluate import checked_metrics
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import Side, gather, open_side
from fastfid.evaluation.sides import networks_of as built_networks
from fastfid.features.extractor import FeatureExtractor
from fastfid.protocols import protocol_named
from fastfid.runtime.distributed import agreement, from_main
from fastfid.runtime.version_commit_date import origin
from sit_rl.command_line import parse_briefly, run_on_ranks
from sit_rl.components.image_sets import embedded, load_embedded
from sit_rl.components.networks import judges_of
from sit_rl.components.own_images import OwnImages, as_in_card
from sit_rl.config import Config
from sit_rl.files.atomic import folder, write_json
from sit_rl.files.paths import names_or_paths, reading
from sit_rl.files.weights import weights_files, weights_of
from sit_rl.generation.generator import Generator, load_generator, trained_of
from sit_rl.generation.make_samples import make_samples
from sit_rl.generation.recipe import (
    GeneratorOptions,
    Recipe,
    check_options,
    check_sampler,
    choose_labels,
    is_small,
    parse_sampler,
)
from sit_rl.generation.record import check_output, recipe_record
from sit_rl.generation.sample_files import open_files
from sit_rl.models.card import network_name, read_card
from sit_rl.presets import PRESETS
from sit_rl.ranks.messages import say
from sit_rl.ranks.process_group import is_main
from sit_rl.reward_names import networks_of
from sit_rl.runs.evaluation_table import table
from sit_rl.sampling.sampler_config import SamplerConfig

SCHEMA = "sit_rl.evaluation/2"  # of evaluation.json; the number grows when a key changes its meaning
# Value of --real for the embedded held-out images, and what is measured against them: as many samples as there
# are images, through the networks of the run or of the default, with the metrics of the trainer's evaluation.
EMBEDDED = Path("embedded")
EMBEDDED_IMAGES = 5_000
RUN_METRICS = ("fd", "precision", "recall", "density", "coverage", "sliced_wasserstein", "kid", "mmd")
REAL_ROW = "real images"
# Flags of --help; --help-all lists all.
MAIN_FLAGS = (
    "checkpoint", "vae", "samples", "own_images", "real", "images", "samplers", "steps", "guidance", "protocol",
    "network", "metrics", "out",
)  # fmt: skip
PROBE = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)  # a black image of ImageNet's size
PAPER_IMAGES = 50_000  # samples behind every published ImageNet result
NEEDS_REAL = (
    "--real is missing: pass real images or their statistics, such as ADM's VIRTUAL_imagenet256_labeled.npz, or "
    "`embedded` for the held-out Fashion-MNIST images"
)
# Images of one side: a file or folder, or images uint8 [n, C, H, W] with their labels int64 [n].
Images = Path | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class EvaluateConfig(GeneratorOptions):
    """What is measured against what, and how."""

    images: int | None = None
    """to sample; default 5,000 against the embedded images, else 50,000"""
    samplers: tuple[str, ...] = ()
    """as --sampler of sit_rl.sample; default: ode and sde for 1×28×28 images, else sit-sde and sit-ode, or dit-ddpm"""
    steps: int | None = None
    """of every sampler; default: each sampler's"""
    guidance: float | None = None
    """classifier-free guidance scale of every sampler"""
    samples: tuple[Path, ...] = ()
    """measure these files or folders of images (or statistics) instead of sampling"""
    own_images: Path | None = None
    """the images that a model of sit_rl.pretrain base was trained on: their held-out part are the real images"""
    real: Annotated[Path | None, tyro.conf.arg(aliases=("--reference",))] = None
    """real images or their statistics; `embedded` (default for 1×28×28 models): the held-out Fashion-MNIST images"""
    protocol: str | None = None
    """of fastfid: adm, dgm-dinov2, pytorch-fid, clean, …: network, resizing and metrics together"""
    network: tuple[str, ...] = ()
    """feature networks; default: the protocol's; embedded or with --own-images those of the run, rewarded or not"""
    weights: tuple[str, ...] = ()
    """weights file of the network, or NAME=PATH for several"""
    metrics: tuple[str, ...] = ()
    """default: the protocol's; embedded or with --own-images those of the trainer's evaluation, with FDr"""
    out: Path = Path("runs/evaluation")
    """folder for the samples and evaluation.json"""
    cache: bool = True
    """keep features, so that an interrupted evaluation resumes"""
    force: bool = False
    """compare what does not match, with a warning"""
    threads: int = 0
    """CPU threads of a rank; 0: the cores divided among the ranks"""


@dataclass(frozen=True)
class Task:
    """An evaluation with every default filled in.

    recipe     of the samples of every row
    real       a path, or EMBEDDED
    samplers   as words of --samplers
    networks, metrics  empty for those of the protocol
    rewarded   the networks that the run rewarded; None if unknown
    own        the images of --own-images
    """

    recipe: Recipe
    real: Path
    samplers: tuple[str, ...]
    networks: tuple[str, ...]
    metrics: tuple[str, ...]
    rewarded: frozenset[str] | None = None
    own: OwnImages | None = None


@dataclass(frozen=True)
class Row:
    """Samples of one sampler: the row's name, and their file."""

    name: str
    sampler: SamplerConfig
    file: Path


def main(argv: list[str] | None = None) -> None:
    """Parse and run. An expected error is one sentence and exit status 2."""
    run_on_ranks(lambda: parse_briefly(EvaluateConfig, argv, __doc__, MAIN_FLAGS, "sit-rl evaluate"), run)


def run(config: EvaluateConfig, device: torch.device) -> None:
    """Make the samples that are asked for, measure every row, print the table and write evaluation.json."""
    check(config)
    made = None if config.samples else load_generator(config, device)
    task = with_defaults(config, made)
    if made is not None:
        check_rows(config, task, made)
    with folder(config.out):
        measure_rows(config, task, made, device)


def measure_rows(config: EvaluateConfig, task: Task, made: Generator | None, device: torch.device) -> None:
    """Measure every row against the real images and write evaluation.json to --out, which exists."""
    settings = Settings(
        weights=weights_of(config.weights), device=str(device), cache=config.cache, force=config.force, progress=True
    )
    real = real_side(task)
    networks: list[str] | list[FeatureExtractor] | None = list(task.networks) or None
    if made is not None:
        networks = read_before_sampling(config, task, real, settings)
    rewarded = rewarded_of(task, networks)
    others = other_real_images(task)
    rows: dict[str, dict[str, Any]] = {}
    for name, source, about in sources(config, task, made, others):
        say(f"measure     {name}")
        with reading_files(config, task):
            result = fastfid.evaluate(
                source, real, metrics=task.metrics or None, features=networks, protocol=config.protocol,
                split=None if config.metrics or name == REAL_ROW else others, **vars(settings),
            )  # fmt: skip
        rows[name] = {"sampling": about, "rewarded": rewarded} | json.loads(result.to_json())
        if is_main():  # after every row, because hours may lie between two rows
            write_json(config.out / "evaluation.json", {"schema": SCHEMA, **origin(device), "rows": rows})
    say(f"\n{table(rows)}\n\nevaluation  {config.out / 'evaluation.json'}")


def check(config: EvaluateConfig) -> None:
    """ValueError or FileNotFoundError, before any work, for what cannot be evaluated."""
    checked_metrics(config.metrics or None, protocol_named(config.protocol))
    if config.samples and config.checkpoint is not None:
        raise ValueError("--samples are measured as they are and --checkpoint would be sampled; pass one of them")
    if config.samples and config.real is None:
        raise ValueError(NEEDS_REAL)
    real = None if config.real == EMBEDDED else config.real
    files = [("--samples", path) for path in config.samples] + weights_files(config.weights)
    check_options(config, [*files, ("--real", real), ("--own-images", config.own_images)])
    if config.own_images is not None and config.real is not None:
        raise ValueError(
            f"--own-images {config.own_images} and --real {config.real} both give the real images; pass one of them"
        )
    for text in config.samplers:
        parse_sampler(text, config.steps, config.guidance)


def with_defaults(config: EvaluateConfig, made: Generator | None) -> Task:
    """Fill in the defaults, which depend on the model and the real images; ValueError without any."""
    real = config.real
    if config.own_images is not None:
        return own_task(config, config.own_images, made)
    if real is None:
        if made is not None and made.own is not None:
            raise ValueError("--own-images is missing: pass the images that the model was trained on, or --real")
        if made is None or not is_small(made.model):
            raise ValueError(NEEDS_REAL)
        real = EMBEDDED
    networks, metrics = config.network, config.metrics
    run = None if config.samples else trained_of(config)
    rewarded, judges = networks_of_run(run)
    if real == EMBEDDED and config.protocol is None:
        networks, metrics = networks or (*rewarded, *judges), metrics or RUN_METRICS
    options = {field.name: getattr(config, field.name) for field in fields(GeneratorOptions)}
    images = config.images or (EMBEDDED_IMAGES if real == EMBEDDED else PAPER_IMAGES)
    samplers = config.samplers if made is None else config.samplers or made.samplers
    recipe = Recipe(**options | {"images": images})
    return Task(recipe, real, samplers, networks, metrics, known_rewards(config, run, rewarded))


def networks_of_run(run: Config | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The networks that the run of --checkpoint rewarded, and its judges; without a run those of the default one."""
    run = PRESETS["fashion"][1] if run is None else run
    rewarded = tuple(dict.fromkeys((run.files.reward_features, *networks_of(run.reward_components))))
    return rewarded, judges_of(run.files, rewarded)


def known_rewards(config: EvaluateConfig, run: Config | None, rewarded: tuple[str, ...]) -> frozenset[str] | None:
    """The networks that the model was rewarded by: those of its run, or of the default run for the embedded model.

    None for a weights file, which does not say by what it was trained, and for samples.
    """
    unknown = config.samples or config.model is not None or (config.checkpoint and run is None)
    return None if unknown else frozenset(rewarded)


def rewarded_of(task: Task, networks: list[str] | list[FeatureExtractor] | None) -> list[str] | None:
    """Printed names of the task's rewarded networks, for evaluation.json; None if they are unknown."""
    if task.rewarded is None or not task.networks or networks is None:
        return None
    names = [each if isinstance(each, str) else each.name for each in networks]
    return [name for given, name in zip(task.networks, names, strict=True) if given in task.rewarded]


def other_real_images(task: Task) -> Images | None:
    """Real images that are not held out, as many as samples where there are so many; FDr compares with them."""
    if task.own is not None:
        return task.own.train.images, task.own.train.labels
    return real_images(task.recipe.images) if task.real == EMBEDDED else None


def own_task(config: EvaluateConfig, images: Path, made: Generator | None) -> Task:
    """The task of a model of a user's images: its held-out images, the networks and metrics of its run."""
    if made is None or made.own is None:
        raise ValueError(f"--own-images {images} needs --checkpoint: a folder of sit_rl.pretrain base, or a run of it")
    card = read_card(made.own)
    run = trained_of(config)
    rewarded, judges = networks_of_run(run)
    if run is None:
        rewarded, judges = ((network_name(made.own, card, role),) for role in ("reward", "judge"))
    networks = config.network or (*rewarded, *judges)
    options = {field.name: getattr(config, field.name) for field in fields(GeneratorOptions)}
    count = config.images or PRESETS["own"][1].evaluation.images
    samplers = config.samplers or made.samplers
    real = as_in_card(card, images)
    recipe, metrics = Recipe(**options | {"images": count}), config.metrics or RUN_METRICS
    return Task(recipe, images, samplers, networks, metrics, frozenset(rewarded), real)


def check_rows(config: EvaluateConfig, task: Task, made: Generator) -> None:
    """ValueError for what would stop a row, before the first row, because the second one may start hours later."""
    choose_labels(task.recipe, made.conditions)
    for row in sampled_rows(config, task):
        check_sampler(made.model, row.sampler)
        files = open_files(row.file, task.recipe.images, made.image_shape)
        record = recipe_record(made, task.recipe, row.sampler)
        from_main(partial(check_output, files, record))


def sampled_rows(config: EvaluateConfig, task: Task) -> list[Row]:
    """A row for each sampler. Samplers with the same description get the word of --samplers added to their names."""
    samplers = {text: parse_sampler(text, config.steps, config.guidance) for text in task.samplers}
    names = [str(sampler) for sampler in samplers.values()]
    return [
        Row(
            name if names.count(name) == 1 else f"{name} ({text})",
            sampler,
            config.out / f"{sample_name(task.recipe, text, sampler)}.npz",
        )
        for name, (text, sampler) in zip(names, samplers.items(), strict=True)
    ]


def real_side(task: Task) -> Images:
    """The real images as fastfid takes them: a path, or held-out images with their labels."""
    if task.own is not None:
        return task.own.heldout.images, task.own.heldout.labels
    if task.real != EMBEDDED:
        return task.real
    heldout = load_embedded("heldout")
    return heldout.images, heldout.labels


def read_before_sampling(
    config: EvaluateConfig, task: Task, real: Images, settings: Settings
) -> list[FeatureExtractor]:
    """The feature networks, tried on one image and on the real images, so that errors show before hours of sampling.

    The features of the real images are kept for the rows, unless --no-cache.
    """
    chosen = protocol_named(config.protocol)
    spatial = "sfid" in checked_metrics(task.metrics or None, chosen)
    with agreement(), reading_files(config, task):
        with reading("--real", task.real):
            side = open_side(real, "real", settings)
        samples = Side("samples", "the samples", images=settings.open_images(PROBE))  # in place of the real ones
        built = built_networks(list(task.networks) or None, chosen, [samples, side], settings, spatial)
        networks = cast(list[FeatureExtractor], built)  # not names, because the samples are images
        for network in networks:
            network(PROBE)
    if config.cache or side.images is None:
        with reading("--real", task.real):
            gather([side], networks, settings, [], mixed_sizes=chosen.mixed_sizes)
    return networks


@contextmanager
def reading_files(config: EvaluateConfig, task: Task) -> Iterator[None]:
    """Errors within this block that contain the path of a given file also name its flag."""
    files: list[tuple[str, Path | str]] = [("--samples", path) for path in config.samples]
    files += [("--real", task.real), *weights_files(config.weights)]
    with ExitStack() as stack:
        for flag, path in files:
            stack.enter_context(reading(flag, path, alone=False))
        yield


def sources(
    config: EvaluateConfig, task: Task, made: Generator | None, others: Images | None
) -> list[tuple[str, Images, dict[str, Any] | None]]:
    """Make the missing samples. Returns name and images of each row, and the record of its samples or None.

    others  real images that are not held out, the last row
    """
    rows: list[tuple[str, Images, dict[str, Any] | None]] = []
    names = names_or_paths([path.name for path in config.samples], config.samples)
    for name, path in zip(names, config.samples, strict=True):
        rows.append((name, path, None))
    if made is not None:
        for row in sampled_rows(config, task):
            rows.append((row.name, row.file, make_samples(made, task.recipe, row.sampler, row.file).read_record()))
    return rows if others is None else [*rows, (REAL_ROW, others, None)]


def sample_name(recipe: Recipe, text: str, sampler: SamplerConfig) -> str:
    """Name of the file of a row's samples. It differs between the rows of a command and between most commands."""
    words, model = (re.sub(r"[^\w.-]", "-", part) for part in (text, Path(recipe.model or "embedded").name))
    name = model if recipe.checkpoint is None else recipe.checkpoint.resolve().stem
    return f"{name}-{words}-{sampler.steps}-{recipe.images}-seed{recipe.seed}"


def real_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` embedded training images with labels, evenly spaced: their distance is the best to expect."""
    real = embedded("train", count)
    return real.images, real.labels


if __name__ == "__main__":
    main()
