"""The generator that makes images: weights, autoencoder and precision, loaded and tried on one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fastfid.runtime.errors import one_line
from fastfid.runtime.hashes import file_sha256, sha256
from sit_rl.config import Config, load_config
from sit_rl.files.paths import reading
from sit_rl.generation.recipe import EMBEDDED, GeneratorOptions
from sit_rl.learner import checkpoint
from sit_rl.learner.learner import prepare
from sit_rl.models import attention
from sit_rl.models.autoencoder import load_decoder
from sit_rl.models.finite_weights import require_finite_start
from sit_rl.models.loading import INDEX, load_model
from sit_rl.models.lora import add_lora, merge_lora
from sit_rl.models.pixels import to_uint8
from sit_rl.models.sit import SiT
from sit_rl.options.run import RunOptions


@dataclass(frozen=True)
class Generator:
    """A loaded model and what turns its samples into images.

    decode       samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
    image_shape  (c, h, w)
    about        name and SHA-256 of the weights and the autoencoder, for the record
    attention    the attention back end, and why no faster one is used
    """

    model: SiT
    decode: Callable[[torch.Tensor], torch.Tensor]
    image_shape: tuple[int, int, int]
    device: torch.device
    precision: str
    about: dict[str, Any]
    attention: str

    @property
    def num_classes(self) -> int:
        """Number of classes of the model."""
        return self.model.config.num_classes


def load_generator(config: GeneratorOptions, device: torch.device) -> Generator:
    """Load weights and autoencoder and decode one sample of zeros, so that a mismatch shows before hours of work."""
    with reading("--checkpoint", config.checkpoint or EMBEDDED):
        model, about, vae = _load_weights(config)
    model = model.to(device).eval().requires_grad_(False)
    _check_finite(model, config.checkpoint or EMBEDDED)
    arguments = attention.attention_arguments(config.attention, model, config.precision, device)
    model.set_attention(attention.choose(*arguments))
    precision: Literal["float32", "bf16"] = "bf16" if config.precision == "bf16" else "float32"
    prepare(model, RunOptions(precision=precision, compile=config.compile), device)
    fast = config.precision != "float32"
    if device.type == "cuda":  # by default torch allows TF32 only in convolutions
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    decode = to_uint8 if vae is None else load_decoder(vae, device, tf32=fast)
    about["vae"] = None if vae is None else {"folder": vae.resolve().name, "sha256": content_hash(vae)}
    shape = _decoded_shape(decode, model, vae, device)
    return Generator(model, decode, shape, device, config.precision, about, attention.explain(*arguments))


def _decoded_shape(
    decode: Callable[[torch.Tensor], torch.Tensor], model: SiT, vae: Path | None, device: torch.device
) -> tuple[int, int, int]:
    """Shape (c, h, w) of a decoded sample. ValueError if the autoencoder is not one for this model."""
    blank = torch.zeros((1, *model.config.image_shape), device=device)
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


def _check_finite(model: SiT, path: Path) -> None:
    """ValueError that names the first weight that is NaN or infinite; the same on every rank."""
    try:
        require_finite_start(model.named_parameters(), f"--checkpoint {path}")
    except FloatingPointError as error:
        raise ValueError(str(error)) from None


def shape_text(shape: Iterable[int]) -> str:
    """A shape as text, for example 3 × 256 × 256."""
    return " × ".join(map(str, shape))


def _load_weights(config: GeneratorOptions) -> tuple[SiT, dict[str, Any], Path | None]:
    """The model, its part of the record, and the folder of the autoencoder: the given one, or that of the run."""
    path = config.checkpoint or EMBEDDED
    if not path.is_dir():
        model = load_model(path, architecture=config.architecture)
        # An index only names the files of its tensors.
        digest = tensor_hash(model.state_dict()) if path.name.endswith(INDEX) else content_hash(path)
        return model, {"checkpoint": path.name, "sha256": digest}, config.vae
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"--checkpoint {path} is not a run folder: it has no config.yaml; pass a file instead")
    trained = load_config(path / "config.yaml")
    if config.vae is None:
        _require_trained(path, "vae", trained.files.vae, "pass --vae, or work where the run was started")
    model, weights = _averaged_weights(path, trained)
    about = {"checkpoint": path.resolve().name, "weights": weights, "sha256": tensor_hash(model.state_dict())}
    return model, about, config.vae or trained.files.vae


def _require_trained(run_folder: Path, name: str, path: Path | None, remedy: str) -> None:
    """FileNotFoundError if a file that a run was trained with is no longer at its path, which may be relative."""
    if path is not None and not path.exists():
        raise FileNotFoundError(
            f"--checkpoint {run_folder} was trained with --{name} {path}, which does not exist now; {remedy}"
        )


def _averaged_weights(run_folder: Path, trained: Config) -> tuple[SiT, str]:
    """The averaged weights of a run, with LoRA terms merged, and a text that says after which step they are."""
    if (run_folder / "ema.safetensors").is_file():
        return load_model(run_folder / "ema.safetensors"), f"EMA of the finished run, {trained.steps} steps"
    saved = checkpoint.latest(run_folder / "checkpoints")
    if saved is None:
        raise FileNotFoundError(f"--checkpoint {run_folder} holds no weights yet; wait for the run's first checkpoint")
    _require_trained(run_folder, "checkpoint", trained.files.checkpoint, "work where the unfinished run was started")
    model = load_model(trained.files.checkpoint or EMBEDDED, architecture=trained.files.architecture)
    if trained.update.lora:
        add_lora(model, trained.update.lora, trained.seed)
    model.load_state_dict(checkpoint.load_part(saved, "ema"))
    return merge_lora(model), f"EMA at step {checkpoint.load_values(saved)['step']}"


def content_hash(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file, or of the names and hashes of the files in a folder."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256(f"{p.relative_to(path).as_posix()} {file_sha256(p)}\n" for p in files)


def tensor_hash(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the names and values of a state dict, the same for every file format."""
    return sha256(part for name in sorted(state) for part in (name, state[name]))
