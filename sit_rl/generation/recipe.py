"""The recipe of a set of images: generator, samplers, labels, batches. All of it is checked before any work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sit_rl.components.checks import model_path
from sit_rl.components.image_sets import ASSETS
from sit_rl.files.paths import require_extra, require_paths
from sit_rl.models.conditions import Conditions
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.options.model import ModelOptions
from sit_rl.presets import PRESETS
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.random_streams import EVALUATION_STEP, Stream, generator
from sit_rl.sampling.sampler_config import METHODS, OFFICIAL, SamplerConfig

EMBEDDED = ASSETS / "base.safetensors"
# Presets of the embedded model and of the official checkpoint. Their samplers and batches are the defaults here.
SMALL, LARGE = PRESETS["fashion"][1], PRESETS["sit-xl-imagenet256"][1]
SMALL_SHAPE = (1, 28, 28)
SAMPLERS = {"ode": SMALL.evaluation.ode, "sde": SMALL.evaluation.sde} | OFFICIAL


@dataclass(frozen=True)
class GeneratorOptions:
    """Which generator makes images, how many of them, and in which arithmetic."""

    checkpoint: Path | None = None
    """weights (.safetensors, .pt), a folder of sit_rl.pretrain base, or a run folder, whose averaged weights are used;
    default: the embedded model"""
    architecture: Literal["auto", "sit", "dit"] = "auto"
    """of the weights; auto: as the file's metadata say, else DiT for a name that begins with DiT-, else SiT"""
    model: str | None = None
    """package.module:build or FILE.py:build, or diffusers:FOLDER; a run folder records its own"""
    prompts: Path | None = None
    """JSON lines with the prompts of the model; a run folder records its own"""
    negative_prompt: str = ""
    """the prompt that a pipeline's guidance leads away from"""
    image_size: int | None = None
    """height and width of a pipeline's images, pixels; default: the pipeline's"""
    vae: Path | None = None
    """folder of a diffusers AutoencoderKL, for models of latents"""
    images: int | None = None
    labels: str = "balanced"
    """balanced (class i mod classes), random, or the number of one class; of a prompt, its line from 0"""
    seed: int = 0
    batch: int | None = None
    """images sampled at once; default 200 for 1×28×28 images, 8 for pipelines, else 50. The last bits depend on it;
    with dopri5 also digits within its tolerance, because images of a batch share their steps"""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """tf32: matrix products on a GPU; bf16: the network's products, the autoencoder in tf32. The solver is float32"""
    attention: Literal["auto", "flash", "sdpa", "math"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the blocks; auto: on a GPU"""


@dataclass(frozen=True)
class Recipe(GeneratorOptions):
    """Everything that an image depends on, except its number and the sampler."""

    images: int = 100


def check_options(config: GeneratorOptions, further: Iterable[tuple[str, Path | str | None]] = ()) -> None:
    """ValueError for an impossible number. FileNotFoundError that names every missing path.

    further  more (flag, path) pairs to check
    """
    for name, value in (("images", config.images), ("batch", config.batch)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    if config.seed < 0:
        raise ValueError(f"--seed is {config.seed}; it must not be negative")
    ModelOptions(config.model, config.prompts, config.negative_prompt, config.image_size).check()
    model = [("--model", model_path(config.model)), ("--prompts", config.prompts)]
    require_paths([("--checkpoint", config.checkpoint), ("--vae", config.vae), *model, *further])
    if config.vae is not None:
        require_extra("--vae")


def default_samplers(model: GeneratorModel, own: bool = False) -> tuple[str, ...]:
    """Words of the samplers that a model is evaluated with. The first one is the default of sit_rl.sample.

    own  whether it is a model of a user's images
    """
    theirs = model.own_sampling
    if theirs is not None:
        sampler = SamplerConfig("ode", "euler", theirs.steps, shift=theirs.shift, guidance=theirs.guidance)
        return (sampler_words(sampler),)
    if model.predicts == "noise":
        return ("dit-ddpm",)
    return ("ode", "sde") if own or is_small(model) else ("sit-sde", "sit-ode")


def sampler_words(sampler: SamplerConfig) -> str:
    """A sampler as a word of --sampler, from which `parse_sampler` makes it again."""
    plain = SamplerConfig(sampler.kind, sampler.method)
    names = [f.name for f in fields(SamplerConfig) if f.name not in ("kind", "method")]
    changed = [name for name in names if getattr(sampler, name) != getattr(plain, name)]
    return ",".join([f"{sampler.kind}-{sampler.method}", *(f"{name}={getattr(sampler, name)}" for name in changed)])


def is_small(model: GeneratorModel) -> bool:
    """Whether the model makes 1×28×28 images, for which other defaults apply."""
    return model.sample_shape == SMALL_SHAPE


def parse_sampler(text: str, steps: int | None = None, guidance: float | None = None) -> SamplerConfig:
    """NAME or KIND-METHOD, then field=value after commas → SamplerConfig; `steps` and `guidance` replace its own.

    ValueError, with the known names, for an unknown name or field.
    """
    name, *changes = text.split(",")
    kind, _, method = name.partition("-")
    if name not in SAMPLERS and kind not in METHODS:
        raise ValueError(f"--sampler {name!r} does not exist; choose {', '.join(SAMPLERS)}, or KIND-METHOD: sde-euler")
    known = {f.name: type(f.default) for f in fields(SamplerConfig)}
    values: dict[str, Any] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if field not in known or not equals:
            raise ValueError(f"--sampler has {change!r}; write field=value with one of {', '.join(known)}")
        values[field] = _converted(field, value, known[field])
    values |= {k: v for k, v in (("steps", steps), ("guidance", guidance)) if v is not None}
    try:
        method_alone: dict[str, Any] = {"kind": kind, "method": method}
        return replace(SAMPLERS.get(name) or SamplerConfig(**method_alone), **values)
    except ValueError as error:
        raise ValueError(f"--sampler {text}: {error}") from None


def _converted(field: str, value: str, kind: type[Any]) -> str | int | float:
    """Text as a field's type; ValueError that names the field."""
    try:
        converted: str | int | float = kind(value)
        return converted
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"--sampler has {field}={value}, which is not {expected}") from None


def check_sampler(model: GeneratorModel, sampler: SamplerConfig) -> None:
    """ValueError if the sampler needs another kind of model, or cannot guide this one."""
    if sampler.needs != model.predicts:
        other = "sit" if model.predicts == "noise" else "dit"
        raise ValueError(
            f"--sampler {sampler} is for a model that predicts {sampler.needs}; this one predicts {model.predicts}: "
            f"choose {default_samplers(model)[0]}, or --architecture {other} if the weights are those of a {other}"
        )
    bind(model, torch.zeros(0, dtype=torch.int64), sampler)


def batch_of(config: GeneratorOptions, model: GeneratorModel) -> int:
    """Images sampled at once."""
    preset = SMALL if is_small(model) else LARGE if model.own_sampling is None else PRESETS["prompts"][1]
    return config.batch or preset.rollout.batch


def choose_labels(config: Recipe, conditions: Conditions) -> torch.Tensor:
    """Conditions int64 [images]. A random one depends only on (seed, i), like the noise.

    ValueError for a class out of range.
    """
    if config.labels == "balanced":
        return conditions.balanced(config.images)
    classes = len(conditions)
    if config.labels == "random":
        draw = (generator(config.seed, Stream.LABEL, EVALUATION_STEP, i) for i in range(config.images))
        return torch.tensor([int(g.integers(classes)) for g in draw])
    if not re.fullmatch(r"-?\d+", config.labels):
        raise ValueError(f"--labels is {config.labels!r}; choose balanced, random, or the number of a class")
    if not 0 <= int(config.labels) < classes:
        raise ValueError(
            f"--labels {config.labels} is out of range: the model's classes are numbered 0 to {classes - 1}"
        )
    return torch.full((config.images,), int(config.labels))
