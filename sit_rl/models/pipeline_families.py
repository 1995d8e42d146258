"""Diffusers' text-to-image pipelines with a flow transformer: what each does differently around its transformer.

A family knows the layout of a pipeline's folder, how the pipeline encodes prompts, and how it calls its transformer.
Times here run from noise (0) to data (1), those of diffusers' schedulers the other way, with velocity noise − data.

Legend: n images, C channels and H×W pixels of latents, L tokens of a prompt.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from fastfid.runtime.errors import first_line, shown
from fastfid.runtime.input_files import json_of, read_text, reading
from sit_rl.models.generator_model import Sampling, classifier_free

# Timesteps of diffusers' schedulers at pure noise.
TRAIN_TIMESTEPS = 1000
# Ends of the layers that diffusers' LoRA scripts adapt: attention's queries, keys, values, outputs, of image and text.
LORA_ENDS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# Lists of a transformer that hold its blocks.
BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks", "noise_refiner", "context_refiner", "layers")
# Steps of a Flux that was distilled without a guidance input (schnell): its model card's.
SCHNELL_STEPS = 4
Table = dict[str, Any]  # of a JSON file
Rows = dict[str, torch.Tensor]  # what the transformer reads of each prompt, name → [n, ...]


class Family(ABC):
    """One kind of pipeline, in a local folder; reads only its JSON files until more is needed."""

    pipeline: str  # class of diffusers
    transformer: str

    def __init__(self, folder: Path, config: Table, vae: Table, scheduler: Table, index: Table | None = None):
        self.folder, self.config, self.vae, self.scheduler, self.index = folder, config, vae, scheduler, index or {}

    @classmethod
    def read(cls, folder: Path) -> Family:
        """The pipeline of a folder, by its JSON files."""
        names = ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json", "model_index.json")
        return cls(folder, *(read_json(folder / name) for name in names))

    def encoders(self) -> list[str]:
        """Names of the parts that encode text, without those that the folder leaves out."""
        return self._parts("text_encoder")

    def tokenizers(self) -> list[str]:
        """Names of the parts that split text into tokens."""
        return self._parts("tokenizer")

    def _parts(self, start: str) -> list[str]:
        return sorted(name for name, of in self.index.items() if name.startswith(start) and of != [None, None])

    # --- shapes ------------------------------------------------------------------------------------------------------

    @property
    def vae_factor(self) -> int:
        """Pixels of an image for one of its latents, along an axis."""
        stages: list[int] = self.vae["block_out_channels"]
        return 1 << (len(stages) - 1)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.config["in_channels"])

    @property
    def patch(self) -> int:
        """Latents of a token, along an axis."""
        return int(self.config["patch_size"])

    @property
    def own_size(self) -> int:
        """H = W that the pipeline makes unless asked otherwise."""
        return int(self.config["sample_size"])

    def latent_shape(self, image_size: int | None) -> tuple[int, int, int]:
        """(C, H, W) of images of this size in pixels, or of the pipeline's own; ValueError for an impossible size."""
        step = self.vae_factor * self.patch
        if image_size is not None and image_size % step:
            raise ValueError(f"--image-size is {image_size}; images of {self.folder} have a multiple of {step} pixels")
        size = self.own_size if image_size is None else image_size // self.vae_factor
        most = self.config.get("pos_embed_max_size")
        if most is not None and size // self.patch > most:
            raise ValueError(
                f"--image-size is {image_size}; the positions of {self.folder} reach {most * step} pixels: lower it"
            )
        return self.channels, size, size

    def tokens(self, shape: tuple[int, int, int]) -> int:
        """Tokens of an image, on which a scheduler's shift may depend."""
        return (shape[1] // self.patch) * (shape[2] // self.patch)

    # --- sampling ----------------------------------------------------------------------------------------------------

    def defaults(self) -> dict[str, Any]:
        """Default arguments of the pipeline's call."""
        import diffusers

        parameters = inspect.signature(getattr(diffusers, self.pipeline).__call__).parameters
        return {name: each.default for name, each in parameters.items()}

    def sampling(self, shape: tuple[int, int, int]) -> Sampling:
        """Steps and guidance that the pipeline uses by default, and the shift of its scheduler."""
        defaults = self.defaults()
        return Sampling(defaults["num_inference_steps"], float(defaults["guidance_scale"]), self.shift(shape))

    def shift(self, shape: tuple[int, int, int]) -> float:
        """The shift of the pipeline's scheduler for samples of this shape."""
        c = self.scheduler
        if not c.get("use_dynamic_shifting", False):
            return float(c.get("flow_shift", c.get("shift", 1.0)) or 1.0)
        first, last = c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096)
        low, high = c.get("base_shift", 0.5), c.get("max_shift", 1.15)
        mu = low + (high - low) * (self.tokens(shape) - first) / (last - first)
        return float(mu if c.get("time_shift_type") == "linear" else math.exp(mu))

    # --- prompts and velocity ----------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, pipe: Any, prompts: list[str], negative: str, device: torch.device) -> tuple[Rows, Rows]:
        """What the transformer reads of n prompts, and of the negative one (n = 1), by the pipeline's own code."""

    @abstractmethod
    def velocity(self, transformer: Any, x: torch.Tensor, t: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Data − noise [n, C, H, W] at x [n, C, H, W] and t [n]."""

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
        """The guided output of two outputs of equal shape."""
        return classifier_free(conditional, unconditional, scale)

    def meta_rows(self, n: int) -> Rows:
        """Rows of the shapes that `encode` gives, without values, for plans."""
        length = self.defaults().get("max_sequence_length", 256)
        return {"prompt": torch.empty(n, length, self.text_width, device="meta")}

    @property
    def text_width(self) -> int:
        """Channels of a prompt's tokens."""
        return int(self.config["joint_attention_dim"])


class StableDiffusion3(Family):
    """SD3 and SD3.5."""

    pipeline, transformer = "StableDiffusion3Pipeline", "SD3Transformer2DModel"
    clip_tokens = 77  # of CLIP, which stand before T5's

    def encode(self, pipe: Any, prompts: list[str], negative: str, device: torch.device) -> tuple[Rows, Rows]:  # noqa: D102
        tokens, none, pooled, pooled_none = pipe.encode_prompt(
            prompt=prompts, prompt_2=None, prompt_3=None, negative_prompt=negative, device=device,
            max_sequence_length=self.defaults()["max_sequence_length"],
        )  # fmt: skip
        return {"prompt": tokens, "pooled": pooled}, {"prompt": none[:1], "pooled": pooled_none[:1]}

    def velocity(self, transformer: Any, x: torch.Tensor, t: torch.Tensor, rows: Rows) -> torch.Tensor:  # noqa: D102
        out: torch.Tensor = transformer(
            hidden_states=x, timestep=TRAIN_TIMESTEPS * (1 - t), encoder_hidden_states=rows["prompt"],
            pooled_projections=rows["pooled"], return_dict=False,
        )[0]  # fmt: skip
        return -out

    def meta_rows(self, n: int) -> Rows:  # noqa: D102
        length = self.clip_tokens + self.defaults()["max_sequence_length"]
        pooled = torch.empty(n, self.config["pooled_projection_dim"], device="meta")
        return {"prompt": torch.empty(n, length, self.text_width, device="meta"), "pooled": pooled}


class Flux(Family):
    """Flux.1: 2×2 latents are one token, and guidance is an input of the transformer, where it has one."""

    pipeline, transformer = "FluxPipeline", "FluxTransformer2DModel"
    patch = 2
    own_size = 128

    @property
    def channels(self) -> int:  # noqa: D102
        return int(self.config["in_channels"]) // self.patch**2

    @property
    def distilled_guidance(self) -> float | None:
        """The scale that the transformer reads; None for one without such an input."""
        return float(self.defaults()["guidance_scale"]) if self.config.get("guidance_embeds") else None

    def sampling(self, shape: tuple[int, int, int]) -> Sampling:
        """Without classifier-free guidance, which the distilled models do not need."""
        steps = self.defaults()["num_inference_steps"] if self.distilled_guidance is not None else SCHNELL_STEPS
        return Sampling(steps, 1.0, self.shift(shape))

    def encode(self, pipe: Any, prompts: list[str], negative: str, device: torch.device) -> tuple[Rows, Rows]:  # noqa: D102
        length = self.defaults()["max_sequence_length"]
        tokens, pooled, _ = pipe.encode_prompt([*prompts, negative], device=device, max_sequence_length=length)
        both = {"prompt": tokens, "pooled": pooled}
        return {k: v[:-1] for k, v in both.items()}, {k: v[-1:] for k, v in both.items()}

    def velocity(self, transformer: Any, x: torch.Tensor, t: torch.Tensor, rows: Rows) -> torch.Tensor:  # noqa: D102
        n, channels, height, width = x.shape
        high, wide = height // 2, width // 2
        tokens = x.view(n, channels, high, 2, wide, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, high * wide, 4 * channels)
        places = torch.zeros(high, wide, 3, device=x.device)
        places[..., 1] += torch.arange(high, device=x.device)[:, None]
        places[..., 2] += torch.arange(wide, device=x.device)
        scale = self.distilled_guidance
        out: torch.Tensor = transformer(
            hidden_states=tokens, timestep=(1 - t).to(x.dtype), encoder_hidden_states=rows["prompt"],
            pooled_projections=rows["pooled"], guidance=None if scale is None else torch.full_like(t, scale),
            img_ids=places.view(-1, 3), txt_ids=torch.zeros(rows["prompt"].shape[1], 3, device=x.device),
            return_dict=False,
        )[0]  # fmt: skip
        return -out.view(n, high, wide, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def meta_rows(self, n: int) -> Rows:  # noqa: D102
        return super().meta_rows(n) | {"pooled": torch.empty(n, self.config["pooled_projection_dim"], device="meta")}


class Sana(Family):
    """Sana: its pipeline writes an instruction before each prompt."""

    pipeline, transformer = "SanaPipeline", "SanaTransformer2DModel"

    @property
    def vae_factor(self) -> int:  # noqa: D102
        stages: list[int] = self.vae["encoder_block_out_channels"]
        return 1 << (len(stages) - 1)

    @property
    def text_width(self) -> int:  # noqa: D102
        return int(self.config["caption_channels"])

    def encode(self, pipe: Any, prompts: list[str], negative: str, device: torch.device) -> tuple[Rows, Rows]:  # noqa: D102
        defaults = self.defaults()
        tokens, mask, none, none_mask = pipe.encode_prompt(
            prompts, negative_prompt=negative, device=device, max_sequence_length=defaults["max_sequence_length"],
            complex_human_instruction=defaults["complex_human_instruction"],
        )  # fmt: skip
        return {"prompt": tokens, "mask": mask}, {"prompt": none[:1], "mask": none_mask[:1]}

    def velocity(self, transformer: Any, x: torch.Tensor, t: torch.Tensor, rows: Rows) -> torch.Tensor:  # noqa: D102
        out: torch.Tensor = transformer(
            x, encoder_hidden_states=rows["prompt"], encoder_attention_mask=rows["mask"],
            timestep=TRAIN_TIMESTEPS * (1 - t) * self.config.get("timestep_scale", 1.0), return_dict=False,
        )[0]  # fmt: skip
        return -out[:, : self.channels]  # a learned variance follows

    def meta_rows(self, n: int) -> Rows:  # noqa: D102
        rows = super().meta_rows(n)
        return rows | {"mask": torch.empty(n, rows["prompt"].shape[1], dtype=torch.int64, device="meta")}


class Lumina2(Family):
    """Lumina Image 2: its time runs from noise to data, and guidance keeps the norm of each row of latents."""

    pipeline, transformer = "Lumina2Pipeline", "Lumina2Transformer2DModel"

    @property
    def text_width(self) -> int:  # noqa: D102
        return int(self.config["cap_feat_dim"])

    def tokens(self, shape: tuple[int, int, int]) -> int:
        """The number of channels: it is what this pipeline takes for the number of tokens."""
        return shape[0]

    def encode(self, pipe: Any, prompts: list[str], negative: str, device: torch.device) -> tuple[Rows, Rows]:  # noqa: D102
        tokens, mask, none, none_mask = pipe.encode_prompt(
            prompts, negative_prompt=negative, device=device,
            max_sequence_length=self.defaults()["max_sequence_length"],
        )  # fmt: skip
        return {"prompt": tokens, "mask": mask}, {"prompt": none[:1], "mask": none_mask[:1]}

    def velocity(self, transformer: Any, x: torch.Tensor, t: torch.Tensor, rows: Rows) -> torch.Tensor:  # noqa: D102
        out: torch.Tensor = transformer(
            hidden_states=x, timestep=t, encoder_hidden_states=rows["prompt"], encoder_attention_mask=rows["mask"],
            return_dict=False,
        )[0]  # fmt: skip
        return out

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:  # noqa: D102
        guided = super().guide(conditional, unconditional, scale)
        norms: list[torch.Tensor] = [x.norm(dim=-1, keepdim=True) for x in (conditional, guided)]
        return guided * (norms[0] / norms[1])

    def meta_rows(self, n: int) -> Rows:
        """With a mask that has values, because the transformer reads the lengths of prompts."""
        rows = super().meta_rows(n)
        return rows | {"mask": torch.ones(n, rows["prompt"].shape[1], dtype=torch.int64)}


FAMILIES: dict[str, type[Family]] = {family.pipeline: family for family in (StableDiffusion3, Flux, Sana, Lumina2)}


PIPELINE = "diffusers:"  # what --model begins with for a pipeline's folder


def pipeline_folder(model: str | None) -> Path | None:
    """The folder of --model diffusers:FOLDER; None for other models."""
    return Path(model[len(PIPELINE) :]) if model is not None and model.startswith(PIPELINE) else None


def family_of(folder: Path) -> Family:
    """The family of a pipeline's folder; ValueError or FileNotFoundError, in one sentence, for any other folder."""
    index = folder / "model_index.json"
    if not index.is_file():
        problem = (
            "has no model_index.json" if folder.is_dir() else "does not exist" if not folder.exists() else "is a file"
        )
        raise FileNotFoundError(
            f"--model diffusers:{folder} {problem}; pass a local folder of a pipeline, as "
            "DiffusionPipeline.save_pretrained or huggingface-cli download make it"
        )
    name = read_json(index).get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        found = "has a model_index.json without _class_name"
        if isinstance(name, str):
            found = f"is a {shown(name)}, whose transformer is not known here"
        *others, last = FAMILIES
        raise ValueError(
            f"--model diffusers:{folder} {found}; choose a {', '.join(others)} or {last}, or "
            "write a builder around its transformer (docs/guides/own-model.md)"
        )
    try:
        family = FAMILIES[name].read(folder)
        shape = family.latent_shape(None)
        if min(shape) < 1:
            raise ValueError(f"its latents have the shape {shape}")
        family.shift(shape)  # reads what the trainer needs of the tables
        return family
    except Exception as error:
        if isinstance(error, ValueError | OSError) and str(folder) in str(error):
            raise
        told = f"has no {error}" if isinstance(error, KeyError) else f"is of another kind ({first_line(error)})"
        raise ValueError(f"--model diffusers:{folder}: a config.json {told}; download it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table; ValueError or OSError that names the file for anything else."""
    with reading(path, "download it again", "as JSON"):
        values = json_of(read_text(path))
        if not isinstance(values, dict):
            raise ValueError(f"{path} is not a JSON table; download it again")
        return values
