"""Measure generators on held-out real images: `python -m sit_rl.evaluate`.

    python -m sit_rl.evaluate                       the embedded model, both samplers, both networks, and real images
    python -m sit_rl.evaluate --checkpoint X --vae V --reference REF.npz --protocol adm --samplers sit-ode sit-sde
    python -m sit_rl.evaluate --samples A.npz B.npz --reference REF.npz --protocol adm
    torchrun --nproc-per-node 8 -m sit_rl.evaluate …

A checkpoint is a weights file (SiT or DiT, .pt or .safetensors) or a run folder, of which the averaged weights. It is
sampled first, into --out, as `sit_rl.sample` does: resumable, the same images on any number of ranks. Then all rows,
samples of other programs included, go through fastfid, which has the metrics, protocols and networks
(`fastfid eval --help`). The table is printed; --out/evaluation.json keeps it with everything it depends on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import fastfid
from fastfid.cli.command_line import parse
from fastfid.evaluation.evaluate import checked_metrics
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import Side, gather, networks_of, open_side
from fastfid.features.extractor import FeatureExtractor
from fastfid.protocols import protocol_named
from fastfid.runtime.distributed import agreement, from_main
from sit_rl.command_line import run_on_ranks
from sit_rl.components.image_sets import embedded, load_embedded
from sit_rl.files.atomic import folder, write_json
from sit_rl.files.paths import reading
from sit_rl.files.weights import weights_files, weights_of
from sit_rl.generation.generator import Generator, load_generator
from sit_rl.generation.make_samples import make_samples
from sit_rl.generation.recipe import (
    Recipe,
    check_recipe,
    check_sampler,
    choose_labels,
    default_samplers,
    is_small,
    parse_sampler,
)
from sit_rl.generation.record import check_output, recipe_record
from sit_rl.generation.sample_files import open_files
from sit_rl.ranks.process_group import is_main
from sit_rl.runs.log import say
from sit_rl.sampling.sampler_config import SamplerConfig

SCHEMA = "sit_rl.evaluation/1"  # of evaluation.json; the number grows when a key changes its meaning
# The value of --reference that stands for the package's own held-out images, and what is measured against them: as many
# images as there are, through both networks, the paper's second table.
EMBEDDED = Path("embedded")
EMBEDDED_IMAGES, EMBEDDED_NETWORKS = 5_000, ("fashion-a", "fashion-b")
EMBEDDED_METRICS = ("fd", "kid", "mmd", "precision", "recall", "density", "coverage")
PROBE = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)  # a black image of ImageNet's size
PAPER_IMAGES = 50_000  # of everybody's ImageNet rows
NEEDS_REFERENCE = (
    "--reference is missing: pass real images or their statistics, such as ADM's VIRTUAL_imagenet256_labeled.npz, or "
    "`embedded` for the held-out Fashion-MNIST images"
)


@dataclass(frozen=True)
class EvaluateConfig(Recipe):
    """What is measured against what, and how."""

    images: int | None = None
    """to sample; default 5,000 against the embedded images, 50,000 else"""
    samplers: tuple[str, ...] = ()
    """as --sampler of sit_rl.sample; default: ode and sde for 1×28×28 images, else sit-sde and sit-ode, or dit-ddpm"""
    steps: int | None = None
    """of every sampler; default: each sampler's"""
    guidance: float | None = None
    """classifier-free guidance scale of every sampler"""
    samples: tuple[Path, ...] = ()
    """measure these files or folders of images (or statistics) instead of sampling"""
    reference: Path | None = None
    """real images or their statistics; `embedded` (default for 1×28×28 models): the held-out Fashion-MNIST images"""
    protocol: str | None = None
    """of fastfid: adm, dgm-dinov2, pytorch-fid, clean, …: network, resizing and metrics together"""
    network: tuple[str, ...] = ()
    """feature networks; default: the protocol's; fashion-a and fashion-b embedded"""
    weights: tuple[str, ...] = ()
    """weights file of the network, or NAME=PATH for several"""
    metrics: tuple[str, ...] = ()
    """default: the protocol's; of the paper's second table embedded"""
    out: Path = Path("runs/evaluation")
    """folder for the samples and evaluation.json"""
    cache: bool = True
    """keep features, so that an interrupted evaluation goes on"""
    force: bool = False
    """compare what does not match, with a warning"""
    threads: int = 0
    """CPU threads of a rank; 0: the cores divided among the ranks"""


def main(argv: list[str] | None = None) -> None:
    """Parse, run, and turn an expected failure into one sentence and exit code 2."""
    run_on_ranks(lambda: parse(EvaluateConfig, argv, description=__doc__), run)


def run(config: EvaluateConfig, device: torch.device) -> None:
    """Sample what there is to sample, measure every row, print the table and write evaluation.json."""
    check(config)
    made = None if config.samples else load_generator(config, device)
    config = with_defaults(config, made)
    if made is not None:
        check_rows(config, made)
    with folder(config.out):
        measure(config, made, device)


def measure(config: EvaluateConfig, made: Generator | None, device: torch.device) -> None:
    """Every row against the reference, into --out, which is there; the config has its defaults filled in."""
    reference = config.reference
    if reference == EMBEDDED:
        heldout = load_embedded("heldout")
        reference = heldout.images, heldout.labels
    settings = Settings(
        weights=weights_of(config.weights), device=str(device), cache=config.cache, force=config.force, progress=True
    )
    networks = list(config.network) or None
    if made is not None:
        networks = load_networks(config, reference, settings)
    rows = {}
    for name, source, about in sources(config, made):
        say(f"measure     {name}")
        with reading_files(config):
            result = fastfid.evaluate(
                source, reference, metrics=config.metrics or None, features=networks, protocol=config.protocol,
                **vars(settings),
            )  # fmt: skip
        rows[name] = {"sampling": about} | json.loads(result.to_json())
        if is_main():  # after every row: hours lie between them
            write_json(config.out / "evaluation.json", {"schema": SCHEMA, "rows": rows})
    if is_main():
        print(f"\n{table(rows)}\n\nevaluation  {config.out / 'evaluation.json'}", flush=True)


def check(config: EvaluateConfig) -> None:
    """ValueError or FileNotFoundError, before any work, for what cannot be evaluated."""
    checked_metrics(config.metrics or None, protocol_named(config.protocol))
    if config.samples and config.checkpoint is not None:
        raise ValueError("--samples are measured as they are and --checkpoint would be sampled; pass one of them")
    if config.samples and config.reference is None:
        raise ValueError(NEEDS_REFERENCE)
    reference = None if config.reference == EMBEDDED else config.reference
    files = [("--samples", path) for path in config.samples] + weights_files(config.weights)
    check_recipe(config, [*files, ("--reference", reference)])
    for text in config.samplers:
        parse_sampler(text, config.steps, config.guidance)


def with_defaults(config: EvaluateConfig, made: Generator | None) -> EvaluateConfig:
    """The config with everything filled in that depends on the model and the reference."""
    reference = config.reference
    if reference is None:
        if not is_small(made.model):
            raise ValueError(NEEDS_REFERENCE)
        reference = EMBEDDED
    filled = {"reference": reference, "images": config.images or PAPER_IMAGES}
    if reference == EMBEDDED:
        filled["images"] = config.images or EMBEDDED_IMAGES
        if config.protocol is None:
            filled["network"] = config.network or EMBEDDED_NETWORKS
            filled["metrics"] = config.metrics or EMBEDDED_METRICS
    if made is not None:
        filled["samplers"] = config.samplers or default_samplers(made.model)
    return replace(config, **filled)


def check_rows(config: EvaluateConfig, made: Generator) -> None:
    """ValueError for what would stop a row, of which the second comes hours after the first."""
    choose_labels(config, made.num_classes)
    for _, sampler, path in sampled_rows(config):
        check_sampler(made.model, sampler)
        files = open_files(path, config.images, made.image_shape)
        record = recipe_record(made, config, sampler)
        from_main(lambda files=files, record=record: check_output(files, record))


def sampled_rows(config: EvaluateConfig) -> list[tuple[str, SamplerConfig, Path]]:
    """Name, sampler and file of samples of every sampler; two that read alike are told apart by what was asked for."""
    samplers = {text: parse_sampler(text, config.steps, config.guidance) for text in config.samplers}
    names = [str(sampler) for sampler in samplers.values()]
    return [
        (name if names.count(name) == 1 else f"{name} ({text})", sampler,
         config.out / f"{sample_name(config, text, sampler)}.npz")
        for name, (text, sampler) in zip(names, samplers.items(), strict=True)
    ]  # fmt: skip


def load_networks(config: EvaluateConfig, reference: Path | tuple, settings: Settings) -> list[FeatureExtractor]:
    """The feature networks, tried on one image, and the reference read through them: what can fail does so here.

    Hours of sampling come next. The reference's features are kept for the rows, unless --no-cache.
    """
    chosen, metrics = protocol_named(config.protocol), config.metrics or None
    spatial = "sfid" in checked_metrics(metrics, chosen)
    with agreement(), reading_files(config):
        with reading("--reference", config.reference):
            side = open_side(reference, "reference", settings)
        samples = Side("samples", "the samples", images=settings.open_images(PROBE))  # stands for those to come
        networks = networks_of(list(config.network) or None, chosen, [samples, side], settings, spatial)
        for network in networks:
            network(PROBE)
    if config.cache or side.images is None:
        with reading("--reference", config.reference):
            gather([side], networks, settings, [])
    return networks


@contextmanager
def reading_files(config: EvaluateConfig) -> Iterator[None]:
    """Failures within that tell the path of a given file name its flag."""
    samples = [("--samples", path) for path in config.samples]
    with ExitStack() as stack:
        for flag, path in [*samples, ("--reference", config.reference), *weights_files(config.weights)]:
            stack.enter_context(reading(flag, path, alone=False))
        yield


def sources(config: EvaluateConfig, made: Generator | None) -> list[tuple[str, Path | tuple, dict | None]]:
    """Rows to measure: name, images, and how they were sampled where that is known."""
    rows = [(name, path, None) for name, path in zip(short_names(config.samples), config.samples, strict=True)]
    for name, sampler, path in sampled_rows(config) if made is not None else ():
        rows.append((name, path, make_samples(made, config, sampler, path).read_record()))
    if config.reference == EMBEDDED:
        rows.append(("real images", real_images(config.images), None))
    return rows


def sample_name(config: EvaluateConfig, text: str, sampler: SamplerConfig) -> str:
    """Name of a row's file of samples: tells the rows of one command apart, and most commands."""
    model = "embedded" if config.checkpoint is None else config.checkpoint.resolve().stem
    words = re.sub(r"[^\w.-]", "-", text)
    return f"{model}-{words}-{sampler.steps}-{config.images}-seed{config.seed}"


def short_names(paths: tuple[Path, ...]) -> list[str]:
    """File names, or whole paths where two names are alike."""
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def real_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` embedded training images with labels, evenly spaced: the floor below which no generator gets."""
    real = embedded("train", count)
    return real.images, real.labels


def table(rows: dict[str, dict]) -> str:
    """A metric a line and a row of `rows` a column, as aligned text; ± is half of the 95% interval."""
    keys = dict.fromkeys((s["metric"], s["network"], s["label"]) for row in rows.values() for s in row["scores"])
    networks = {network for _, network, _ in keys}
    lines = [["", *rows]]
    for metric, network, label in keys:
        found = [next((s for s in row["scores"] if (s["metric"], s["network"]) == (metric, network)), None)
                 for row in rows.values()]  # fmt: skip
        told = network in label or len(networks) == 1
        lines.append([label if told else f"{label} ({network})", *map(_cell, found)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    notes: dict[str, list[str]] = {}
    for name, row in rows.items():
        for note in _notes(row):
            notes.setdefault(note, []).append(name)
    return "\n".join(text + [f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in notes.items()])


def _cell(score: dict | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    if score["interval"] is None:
        return f"{score['value']:.4f}"
    low, high = score["interval"]
    return f"{score['value']:.4f} ± {(high - low) / 2:.4f}"


def _notes(row: dict) -> list[str]:
    left = [f"{x['metric']} ({x['network']}) left out: {x['reason']}" for x in row["left_out"]]
    return left + [f"warning: {text}" for text in row["warnings"]]


if __name__ == "__main__":
    main()
