"""Checks of a run's inputs before any work; each error is one sentence."""

from __future__ import annotations

from pathlib import Path

import torch

from fastfid.runtime.imported_objects import object_name
from sit_rl.config import Config
from sit_rl.files.paths import EXTRAS, listed, require_extra, require_paths, require_utf8
from sit_rl.files.weights import weights_files
from sit_rl.models.card import CARD, is_model_folder
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.models.pipeline_families import pipeline_folder
from sit_rl.options.option import dashed
from sit_rl.reward_names import PYTHON, networks_of
from sit_rl.sampling.guidance import bind

# Paths that a preset without embedded assets needs.
NEEDED_PATHS_ARE = {
    "checkpoint": "--checkpoint (the weights)",
    "vae": "--vae (a diffusers autoencoder's folder)",
    "real": "--real (real images or statistics)",
}
NEEDED_PATHS = dict.fromkeys(("sit-xl-imagenet256", "dit-xl-imagenet256"), tuple(NEEDED_PATHS_ARE))
NEEDED_PATHS["own"] = ("checkpoint",)


def check_inputs(config: Config) -> None:
    """Check that all paths and packages exist; ValueError, FileNotFoundError or ModuleNotFoundError otherwise."""
    require_utf8("--out", config.run_folder)
    missing = [name for name in NEEDED_PATHS.get(config.preset, ()) if config[name] is None]
    needed = listed([NEEDED_PATHS_ARE[name] for name in missing]) if missing else None
    require_paths(given_paths(config), needed and f"preset {config.preset} needs {needed}")
    if config.preset == "prompts" and pipeline_folder(config.generator.model) is None:
        raise ValueError("preset prompts needs --model diffusers:FOLDER (a text-to-image pipeline)")
    for flag in EXTRAS:
        if config[flag[2:]] not in (None, 0):
            require_extra(flag)
    _check_own_images(config)
    if config.update.estimator == "pretraining" and config.files.vae is not None:
        raise ValueError("--estimator pretraining fits pixels, and a model with --vae makes latents; choose another")
    if config.update.estimator == "pretraining" and config.files.real is not None:
        raise ValueError(
            f"--estimator pretraining fits real images with labels, which --real {config.files.real} does not give; it "
            "runs on the embedded default, and with --images"
        )


def _check_own_images(config: Config) -> None:
    """ValueError for --images without the model of them, and for such a model without real images."""
    model, files = config.files.checkpoint, config.files
    if files.images is not None and not is_model_folder(model):
        found = "is missing" if model is None else f"{model} has no {CARD}"
        raise ValueError(
            f"--images {files.images} needs a model that was trained on them, and --checkpoint {found}; make one by "
            f"`python -m sit_rl.pretrain base --images {files.images} --out my-model`, or pass --real and --heldout"
        )
    if is_model_folder(model) and files.images is None and files.real is None:
        raise ValueError(
            f"--checkpoint {model} is a model of other images than the embedded ones; pass those that it was trained "
            "on by --images, or others by --real and --heldout"
        )


def given_paths(config: Config) -> list[tuple[str, Path | str | None]]:
    """Flag and path of everything that a run may read; the path is None if it was not given."""
    paths: list[tuple[str, Path | str | None]] = [
        (f"--{name}", getattr(config.files, name)) for name in ("checkpoint", "vae", "images", "real", "heldout")
    ]
    paths += [("--merge", path) for path in config.files.merge]
    paths += [("--prompts", config.generator.prompts), ("--model", model_path(config.generator.model))]
    paths += [("--reward", each.own.file) for each in config.reward_components if each.kind == PYTHON]
    paths += [(flag, own.file) for flag, name in named_networks(config) if (own := object_name(name)) is not None]
    return paths + weights_files(config.files.weights)


def named_networks(config: Config) -> list[tuple[str, str]]:
    """Flag and name of each feature network of a run."""
    named = [("--reward-features", config.files.reward_features)]
    named += [("--judge-features", name) for name in config.files.judge_features]
    return named + [("--reward", name) for name in networks_of(config.reward_components)]


def model_path(model: str | None) -> Path | None:
    """The file or folder that --model names; None for a module of Python."""
    if model is None or pipeline_folder(model) is not None:
        return pipeline_folder(model)
    where = object_name(model)
    return None if where is None else where.file


def check_predictions(config: Config, model: GeneratorModel) -> None:
    """ValueError if the estimator or a sampler of the run does not fit what the model predicts."""
    kind, any_output = model.describe(), config.update.estimator in ("sde_policy_gradient", "merging")
    if model.predicts != "velocity" and not any_output:
        raise ValueError(
            f"--estimator {config.update.estimator} fits velocities, and the checkpoint is a {kind}, which predicts "
            f"{model.predicts}; choose --estimator sde_policy_gradient"
        )
    for name in (config.rollout_flag, "evaluate_ode", "evaluate_sde"):
        flag, sampler = dashed(name), config[name]
        if sampler.needs != model.predicts:
            preset = "dit-xl-imagenet256" if model.predicts == "noise" else "sit-xl-imagenet256 or fashion"
            raise ValueError(
                f"{flag} is {sampler}, for a model that predicts {sampler.needs}, and the checkpoint is a {kind}, "
                f"which predicts {model.predicts}; choose --preset {preset}, {flag}.kind, or another --architecture"
            )
        try:
            bind(model, torch.zeros(0, dtype=torch.int64), sampler)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None


def check_classes(config: Config, model: GeneratorModel) -> None:
    """ValueError if sets are too small for the model's classes, or the embedded images do not fit the model."""
    classes, reward = model.conditions.group_count, config.reward
    grouped = classes < len(model.conditions)
    each = "groups of prompts" if grouped else "prompts" if config.generator.prompts is not None else "classes"
    of_reference = config.evaluation.images if reward.reference == "fresh" else reward.reference_size
    if min(of_reference, config.evaluation.images) < classes:
        raise ValueError(
            f"--reference-size {reward.reference_size} and --evaluate-images {config.evaluation.images} must each hold "
            f"an image of each of the model's {classes} {each}"
        )
    learns_by_class = reward.normalise == "class" and config.update.estimator != "pretraining"
    if learns_by_class and reward.images_per_step < 2 * classes:
        raise ValueError(
            f"--normalise class compares images of the same class, but a step's {reward.images_per_step} images have "
            f"fewer than 2 of each of the {classes} {each} on average; choose --normalise batch, or raise --candidates"
            + ("" if config.generator.prompts is None else ", or give the prompts fewer groups")
        )
    if config.files.real is None and config.files.images is None and not like_embedded(model):
        raise ValueError(
            f"the checkpoint makes samples of shape {model.sample_shape} in {classes} classes, the embedded "
            "images are 1×28×28 in 10; pass --real and --heldout"
        )


def like_embedded(model: GeneratorModel) -> bool:
    """Whether the model's samples have the shape and the number of classes of the embedded images."""
    return model.sample_shape == (1, 28, 28) and model.conditions.group_count == 10
