"""The generator that makes images: weights, autoencoder and precision, loaded and tried on one sample."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fastfid.runtime.errors import one_line
from fastfid.runtime.hashes import sha256
from sit_rl.components.build import model_decoder, model_request
from sit_rl.components.checks import model_path
from sit_rl.config import Config
from sit_rl.config_files import load_config
from sit_rl.files.checksums import content_hash
from sit_rl.files.paths import reading
from sit_rl.generation.recipe import EMBEDDED, GeneratorOptions, default_samplers, sampler_words
from sit_rl.learner import checkpoint
from sit_rl.learner.learner import prepare
from sit_rl.models import attention
from sit_rl.models.card import WEIGHTS, check_card, is_model_folder, read_card
from sit_rl.models.conditions import Conditions
from sit_rl.models.finite_weights import require_finite_start
from sit_rl.models.generator_model import Decoder, GeneratorModel
from sit_rl.models.loading import INDEX, load_model
from sit_rl.models.lora import add_lora, merge_lora_in_place
from sit_rl.models.open_model import ModelRequest, open_model
from sit_rl.models.sit import SiT
from sit_rl.options.run import RunOptions


@dataclass(frozen=True)
class Generator:
    """A loaded model and what turns its samples into images.

    decode       samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
    image_shape  (c, h, w)
    samplers     words of the samplers that it is evaluated with; the first is the default
    about        name and SHA-256 of the weights and the autoencoder, for the record
    attention    the attention back end, and why no faster one is used
    own          folder of the model's card, where it is a model of a user's images
    """

    model: GeneratorModel
    decode: Decoder
    image_shape: tuple[int, int, int]
    device: torch.device
    precision: str
    samplers: tuple[str, ...]
    about: dict[str, Any]
    attention: str
    own: Path | None = None

    @property
    def conditions(self) -> Conditions:
        """Classes or prompts of the model."""
        return self.model.conditions


def load_generator(config: GeneratorOptions, device: torch.device) -> Generator:
    """Load weights and autoencoder and decode one sample of zeros, so that a mismatch shows before hours of work."""
    run = trained_of(config)
    with reading("--checkpoint", config.checkpoint or EMBEDDED) if config.model is None else nullcontext():
        model, about, vae = _load_weights(config, run, device)
    model = model.to(device).eval().requires_grad_(False)
    _check_finite(model, config.checkpoint or config.model or EMBEDDED)
    explained = "the model's own"
    if isinstance(model, SiT):
        arguments = attention.attention_arguments(config.attention, model, config.precision, device)
        model.set_attention(attention.choose(*arguments))
        explained = attention.explain(*arguments)
    precision: Literal["float32", "bf16"] = "bf16" if config.precision == "bf16" else "float32"
    prepare(model, RunOptions(precision=precision, compile=config.compile), device)
    fast = config.precision != "float32"
    if device.type == "cuda":  # by default torch allows TF32 only in convolutions
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    decode = model_decoder(model, vae, device, tf32=fast)
    about["vae"] = None if vae is None else {"folder": vae.resolve().name, "sha256": content_hash(vae)}
    shape = _decoded_shape(decode, model, vae, device)
    own = _model_folder(config, run)
    samplers = default_samplers(model, own is not None)
    if run is not None and run.generator.model is not None:
        samplers = tuple(sampler_words(sampler) for sampler in (run.evaluation.ode, run.evaluation.sde))
    return Generator(model, decode, shape, device, config.precision, samplers, about, explained, own)


def trained_of(config: GeneratorOptions) -> Config | None:
    """The config of the run whose folder --checkpoint names; None for a file and for a model's folder."""
    path = config.checkpoint
    if path is None or not path.is_dir() or is_model_folder(path):
        return None
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"--checkpoint {path} is not a run folder: it has no config.yaml; pass a file instead")
    with reading("--checkpoint", path):
        return load_config(path / "config.yaml")


def _model_folder(config: GeneratorOptions, run: Config | None) -> Path | None:
    """The folder of the card of a user's images, of which the checkpoint or its run is a model."""
    if config.model is not None or (run is not None and run.generator.model is not None):
        return None
    path = config.checkpoint if run is None else run.files.checkpoint
    return path if is_model_folder(path) else None


def _decoded_shape(
    decode: Decoder, model: GeneratorModel, vae: Path | None, device: torch.device
) -> tuple[int, int, int]:
    """Shape (c, h, w) of a decoded sample. ValueError if the autoencoder is not one for this model."""
    blank = torch.zeros((1, *model.sample_shape), device=device)
    try:
        channels, height, width = decode(blank).shape[1:]
    except RuntimeError as error:
        reason = one_line(error)
        raise ValueError(
            f"--vae {vae} does not decode the model's samples of {shape_text(blank.shape[1:])} ({reason}); pass the "
            "autoencoder that it was trained with, or none for a model of pixels"
        ) from None
    if vae is not None and channels not in (1, 3):
        raise ValueError(f"--vae {vae} decodes to images of {channels} channels, not 1 or 3; pass another autoencoder")
    return channels, height, width


def _check_finite(model: GeneratorModel, path: Path | str) -> None:
    """ValueError that names the first weight that is NaN or infinite; the same on every rank."""
    try:
        require_finite_start(
            model.named_parameters(), f"{'--checkpoint' if isinstance(path, Path) else '--model'} {path}"
        )
    except FloatingPointError as error:
        raise ValueError(str(error)) from None


def shape_text(shape: Iterable[int]) -> str:
    """A shape as text, for example 3 × 256 × 256."""
    return " × ".join(map(str, shape))


def _load_weights(
    config: GeneratorOptions, run: Config | None, device: torch.device
) -> tuple[GeneratorModel, dict[str, Any], Path | None]:
    """The model, its part of the record, and the folder of the autoencoder: the given one, or that of the run."""
    path = config.checkpoint or EMBEDDED
    if run is not None:
        if config.model is not None or config.prompts is not None:
            flag = "--model" if config.model is not None else "--prompts"
            raise ValueError(f"{path} is the folder of a run, which records its {flag}; leave {flag} out")
        if config.vae is None:
            _require_trained(path, "vae", run.files.vae, "pass --vae, or work where the run was started")
        model, weights = _averaged_weights(path, run, config.precision == "bf16", device)
        about = {"checkpoint": path.resolve().name, "weights": weights, "sha256": tensor_hash(model.state_dict())}
        return model, about | _about(model, run.generator.model), config.vae or run.files.vae
    if config.model is not None:
        model = open_model(_request(config), device)
        name = path.name if config.checkpoint is not None else config.model
        about = {"checkpoint": name, "sha256": tensor_hash(model.state_dict())}
        return model, about | _about(model, config.model), config.vae
    if is_model_folder(path):
        return _own_model(config, path)
    model = load_model(path, architecture=config.architecture)
    # An index only names the files of its tensors.
    digest = tensor_hash(model.state_dict()) if path.name.endswith(INDEX) else content_hash(path)
    return model, {"checkpoint": path.name, "sha256": digest}, config.vae


def _own_model(config: GeneratorOptions, folder: Path) -> tuple[GeneratorModel, dict[str, Any], Path | None]:
    """The same of a model's folder, checked against its card."""
    model, card = load_model(folder, architecture=config.architecture), read_card(folder)
    vae = config.vae or (None if card.vae is None else Path(card.vae))
    if vae is not None and not vae.is_dir():
        raise FileNotFoundError(f"--checkpoint {folder} learnt latents of {vae}, which does not exist now; pass --vae")
    check_card(card, model, folder, vae)
    about = {"checkpoint": folder.resolve().name, "sha256": content_hash(folder / WEIGHTS)}
    return model, about, vae


def _request(config: GeneratorOptions) -> ModelRequest:
    return ModelRequest(
        config.model, config.checkpoint, config.architecture, config.prompts, config.negative_prompt,
        config.image_size, half=config.precision == "bf16",
    )  # fmt: skip


def _about(model: GeneratorModel, name: str | None) -> dict[str, Any]:
    """What the record of an own model or a pipeline has beside its weights."""
    return {} if name is None else {"generator": model.describe(), "conditions_sha256": model.conditions.identity}


def _require_trained(run_folder: Path, name: str, path: Path | None, remedy: str) -> None:
    """FileNotFoundError if a file that a run was trained with is no longer at its path, which may be relative."""
    if path is not None and not path.exists():
        raise FileNotFoundError(
            f"--checkpoint {run_folder} was trained with --{name} {path}, which does not exist now; {remedy}"
        )


def _averaged_weights(
    run_folder: Path, trained: Config, half: bool, device: torch.device
) -> tuple[GeneratorModel, str]:
    """The averaged weights of a run, with LoRA terms merged, and a text that says after which step they are.

    half  hold the weights of a pipeline in bfloat16
    """
    finished, own = run_folder / "ema.safetensors", trained.generator.model is not None
    if finished.is_file():
        if own:
            _require_parts(run_folder, trained)
        request = model_request(trained) if own else ModelRequest(None, finished)
        model = open_model(replace(request, checkpoint=finished, half=half), device)
        return model, f"EMA of the finished run, {trained.steps} steps"
    saved = checkpoint.latest(run_folder / "checkpoints")
    if saved is None:
        raise FileNotFoundError(f"--checkpoint {run_folder} holds no weights yet; wait for the run's first checkpoint")
    _require_parts(run_folder, trained)
    _require_trained(run_folder, "checkpoint", trained.files.checkpoint, "work where the unfinished run was started")
    model = open_model(replace(model_request(trained), half=half), device)
    if trained.update.lora:
        add_lora(model, trained.update.lora, trained.seed)
    kept = checkpoint.load_part(saved, "ema")
    left = [name for name in kept if name not in model.state_dict()]
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and name not in kept]
    if left or lacking:
        raise ValueError(
            f"{saved} was made with other weights: {(left or lacking)[0]} is not of both; restore the model"
        )
    model.load_state_dict(kept, strict=False)
    merge_lora_in_place(model)
    return model, f"EMA at step {checkpoint.load_values(saved)['step']}"


def _require_parts(run_folder: Path, trained: Config) -> None:
    """FileNotFoundError if the file or folder of a run's --model, or its prompts, are gone."""
    remedy = "work where the run was started"
    _require_trained(run_folder, "model", model_path(trained.generator.model), remedy)
    _require_trained(run_folder, "prompts", trained.generator.prompts, remedy)


def tensor_hash(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the names and values of a state dict, the same for every file format."""
    return sha256(part for name in sorted(state) for part in (name, state[name]))
