"""The flow transformer of a diffusers pipeline as the trainer knows it: --model diffusers:FOLDER.

The transformer is the part that is trained.  Prompts are encoded once (`prompt_embeddings.py`), and the pipeline's own
autoencoder makes images of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastfid.runtime.devices import full_float32
from fastfid.runtime.errors import one_line
from sit_rl.files.paths import require_extra
from sit_rl.files.prompts import Prompts
from sit_rl.files.tensor_files import damage
from sit_rl.models.autoencoder import SLICE
from sit_rl.models.conditions import Conditions
from sit_rl.models.generator_model import Decoder, GeneratorModel
from sit_rl.models.pipeline_families import BLOCK_LISTS, LORA_ENDS, Family, family_of
from sit_rl.models.pixels import to_uint8
from sit_rl.models.prompt_embeddings import Embeddings, embeddings


class Autoencoder:
    """A pipeline's autoencoder, which decodes a few samples at a time; copies of a model share it."""

    def __init__(self, vae: Any):
        self.vae = vae

    def __deepcopy__(self, memo: dict[int, Any]) -> Autoencoder:
        return self

    @torch.no_grad()
    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Images uint8 [n, 3, h, w] of samples float32 [n, C, H, W]."""
        if not len(samples):
            return self.decode(samples.new_zeros(1, *samples.shape[1:]))[:0]
        config, vae = self.vae.config, self.vae.to(samples.device)
        shift = getattr(config, "shift_factor", None) or 0.0
        with full_float32(samples.device):
            latents = samples / config.scaling_factor + shift
            return torch.cat([to_uint8(vae.decode(z, return_dict=False)[0]) for z in latents.split(SLICE)])


class PipelineModel(GeneratorModel):
    """The transformer of a pipeline, with the encoded prompts.

    family        how the pipeline calls its transformer
    shape         (C, H, W) of a sample
    encoded       rows of each prompt, then of the negative one
    """

    def __init__(
        self,
        family: Family,
        transformer: nn.Module,
        shape: tuple[int, int, int],
        prompts: Prompts,
        encoded: Embeddings,
        autoencoder: Autoencoder,
    ):
        super().__init__()
        self.transformer = transformer
        self.family, self._shape, self._encoded, self._autoencoder = family, shape, encoded, autoencoder
        self._conditions = Conditions(prompts.texts, prompts.groups)
        self.own_sampling = family.sampling(shape)

    @property
    def sample_shape(self) -> tuple[int, int, int]:  # noqa: D102
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's weights."""
        return next(self.transformer.parameters()).dtype

    @property
    def conditions(self) -> Conditions:
        """The prompts."""
        return self._conditions

    @property
    def null_condition(self) -> int | None:
        """The negative prompt, after all others."""
        return len(self._conditions)

    @property
    def decoder(self) -> Decoder | None:
        """The pipeline's autoencoder."""
        return self._autoencoder.decode

    def units(self) -> list[nn.Module]:  # noqa: D102
        return blocks_of(self.transformer)

    def lora_targets(self) -> list[str]:
        """The linear layers of attention in every block."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.Linear) and is_adapted(name)]

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Velocity float32 [n, C, H, W].  A rank without samples passes one, so that its gradients exist."""
        if not len(x):
            return self.forward(x.new_zeros(1, *x.shape[1:]), t.new_zeros(1), condition.new_zeros(1))[:0]
        rows = self._encoded.rows_of(condition, self.dtype)
        return self.family.velocity(self.transformer, x.to(self.dtype), t, rows).float()

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
        """As the pipeline guides."""
        return self.family.guide(conditional, unconditional, scale)

    def describe(self) -> str:
        """The transformer's class and the folder."""
        return f"{self.family.transformer} of {self.family.folder.name}"


def is_adapted(name: str) -> bool:
    """Whether LoRA adapts the layer of this name."""
    return name.endswith(tuple(f".{end}" for end in LORA_ENDS))


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in order."""
    lists: Sequence[Any] = [getattr(transformer, name, ()) for name in BLOCK_LISTS]
    return [block for blocks in lists for block in blocks]


def load_pipeline(
    folder: Path,
    prompts: Prompts,
    negative: str = "",
    image_size: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> PipelineModel:
    """The transformer of a pipeline's folder with its prompts encoded; all ranks call it.

    negative    the prompt that guidance leads away from
    image_size  of the images, pixels; None: the pipeline's
    device      where prompts are encoded; the transformer stays on the CPU
    dtype       of the transformer's weights, and of the encoders

    ValueError, FileNotFoundError or ModuleNotFoundError, in one sentence, if the folder holds no such pipeline.
    """
    require_extra("--model diffusers")
    family = family_of(folder)
    shape = family.latent_shape(image_size)
    transformer = _part(family, family.transformer, "transformer", dtype)
    vae = _part(family, family.index["vae"][1], "vae", torch.float32)
    with_text = device or torch.device("cpu")
    try:
        encoded = embeddings(family, prompts.texts, negative, transformer, with_text, dtype)
    except Exception as error:  # transformers raises nearly anything for a missing or damaged file
        raise _incomplete(family, "text encoders", error) from error
    model = PipelineModel(family, transformer, shape, prompts, encoded, Autoencoder(vae))
    return model.eval()


def _part(family: Family, kind: str, part: str, dtype: torch.dtype) -> Any:
    """A part of the pipeline, frozen, in eval mode."""
    import diffusers

    try:
        loaded = getattr(diffusers, kind).from_pretrained(
            str(family.folder), subfolder=part, torch_dtype=dtype, local_files_only=True
        )
    except Exception as error:  # diffusers raises nearly anything for a missing or damaged file
        raise _incomplete(family, part, error) from error
    return loaded.eval().requires_grad_(False)


def _incomplete(family: Family, part: str, error: Exception) -> ValueError:
    found = [f"{path.name}: {told}" for path in family.folder.rglob("*.safetensors") if (told := damage(path))]
    reason = "; ".join(found) or one_line(error).rstrip(".")
    return ValueError(f"--model diffusers:{family.folder}: its {part} cannot be loaded ({reason}); download it again")
