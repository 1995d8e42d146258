"""The record beside the images: how they are made, and the check that images already there have the same recipe."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from fastfid import __version__
from fastfid.runtime.errors import shown
from fastfid.runtime.input_files import reading
from sit_rl.generation.generator import Generator
from sit_rl.generation.recipe import Recipe, batch_of
from sit_rl.generation.sample_files import SampleFiles
from sit_rl.ranks.process_group import world_size
from sit_rl.sampling.sampler_config import SamplerConfig

SCHEMA = "sit_rl.samples/1"  # of the record; the number grows when a key changes its meaning
# Keys that describe a run and not its images: they may differ between two runs of the same recipe.
RUN_KEYS = ("schema", "complete", "runs")
# The text of version 0.1.0, word for word: another text would refuse to continue the samples that it began.
NOISE = "Philox of (seed, image, stream, step 0), sit_rl/noise.py"


def recipe_record(made: Generator, config: Recipe, sampler: SamplerConfig) -> dict[str, Any]:
    """The record of a recipe as plain values, as they come back from JSON."""
    # Without guidance its channels say nothing, and the records of version 0.1.0 have 0.
    guided = sampler if sampler.guidance != 1 else replace(sampler, guidance_channels=0)
    record = {
        "schema": SCHEMA,
        "model": made.about,
        "sampler": _fields(guided) | {"evaluations": sampler.evaluations(), "name": str(sampler)},
        "images": config.images,
        "image_shape": list(made.image_shape),
        "labels": config.labels,
        "classes": len(made.conditions),
        "seed": config.seed,
        "noise": NOISE,
        "batch": batch_of(config, made.model),
        "precision": config.precision,
        "complete": False,
        "runs": [],
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def _fields(sampler: SamplerConfig) -> dict[str, Any]:
    """A sampler's fields, without a shift of 1, which earlier versions did not know."""
    values = asdict(sampler)
    return {name: value for name, value in values.items() if (name, value) != ("shift", 1.0)}


def check_output(files: SampleFiles, record: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the images already there, or None; ValueError for another recipe or a file of another program."""
    earlier = files.read_record()
    if earlier is not None:
        with reading(files.record_path, "choose another --out", "as a record of samples"):
            check_same_recipe(earlier, record, files)
    foreign = files.foreign()
    if foreign is not None:
        raise ValueError(f"{foreign} is in the way and was not written by this command; choose another --out")
    return earlier


def check_same_recipe(earlier: dict[str, Any], now: dict[str, Any], files: SampleFiles) -> None:
    """ValueError that names the first difference between the images already there and the images asked for."""
    for key, asked in now.items():
        there, what = earlier.get(key), {"images": "number", "model": ""}.get(key, key)
        if key in RUN_KEYS or there == asked:
            continue
        while isinstance(there, dict) and isinstance(asked, dict):
            names = [*asked, *there]  # those of another program may be more
            key = next(
                name for name in names if there.get(name) != asked.get(name) or (name in there) != (name in asked)
            )
            there, asked, what = there.get(key), asked.get(key), f"{what} {key}".strip()
        # An autoencoder, or None.
        told, wanted = (x.get("folder", x) if isinstance(x, dict) else x for x in (there, asked))
        of_another = f"{files.path} holds images of another {shown(what or key)}"
        raise ValueError(f"{of_another}: {shown(str(told))}, not {wanted}; choose another --out")


def run_facts(made: Generator, seconds: float) -> dict[str, Any]:
    """Device, ranks, versions and seconds of this process."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {"fastfid": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "device": device,
        "attention": made.attention,
        "ranks": world_size(),
        "seconds": round(seconds, 2),
        "versions": versions | {"python": platform.python_version()},
    }
