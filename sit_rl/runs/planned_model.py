"""The generator of a plan: its shape, and networks of this shape without memory, from which operations are counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sit_rl.files.prompts import Prompts
from sit_rl.models.autoencoder import SLICE
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.models.pipeline_families import Family, Rows, family_of
from sit_rl.models.pipeline_model import Autoencoder, PipelineModel
from sit_rl.models.prompt_embeddings import Embeddings
from sit_rl.models.published_pipelines import PUBLISHED, published
from sit_rl.models.sit import SiT, SiTConfig

# FLOPs per image outside the generator, counted in the same way: the decoder of diffusers' AutoencoderKL from 32×32
# latents, and the FID Inception network at 299×299.
DECODER_FLOPS, INCEPTION_FLOPS = 6.22e11, 1.14e10
# Most bytes in use while an image is decoded from 32×32 latents, counted on meta tensors: three float32 maps of 256
# channels × 256×256 pixels in the last block. (0.17 GB was measured on a CPU, which frees memory sooner.)
DECODING_BYTES = 2.02e8
DECODED_PIXELS = 256**2  # of that image
LATENT_CHANNELS = 4  # of SiT's and DiT's samples that an autoencoder decodes; their other samples are pixels
# Float32 weights beside the generator: 83.7M parameters of sd-vae-ft-ema and 23.9M of Inception.
AUTOENCODER_BYTES, INCEPTION_BYTES = 4 * 83.7e6, 4 * 23.9e6


@dataclass(frozen=True)
class PipelineShape:
    """A pipeline with samples of shape (C, H, W)."""

    family: Family
    image_shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Of the folder, and the size of its images."""
        size = self.image_shape[1] * self.family.vae_factor
        return f"of {self.family.folder.name}, {size}×{size} images"


Shape = SiTConfig | PipelineShape


@dataclass(frozen=True)
class Decoding:
    """What stands beside the generator: FLOPs of decoding and Inception for one image, bytes of both, bytes in use."""

    flops: float = 0.0
    weights: float = 0.0
    working: float = 0.0


def planned_family(folder: Path) -> Family:
    """The pipeline of a folder, or a published one of this name; FileNotFoundError where there is neither."""
    known = published(folder)
    if known is None and not folder.exists():
        raise FileNotFoundError(
            f"--model diffusers:{folder} does not exist; a plan takes a local folder of a pipeline, or one of "
            f"the names {', '.join(PUBLISHED)}"
        )
    return known or family_of(folder)


@cache
def decoding(shape: Shape, batch: int = SLICE) -> Decoding:
    """Decoding and Inception, for samples that need decoding; `batch` images are decoded at once, at most SLICE."""
    at_once = min(SLICE, batch)
    _, height, width = shape.image_shape
    if isinstance(shape, SiTConfig):
        if shape.channels != LATENT_CHANNELS:
            return Decoding()
        working = at_once * DECODING_BYTES * (height / 32) ** 2
        return Decoding(DECODER_FLOPS + INCEPTION_FLOPS, AUTOENCODER_BYTES + INCEPTION_BYTES, working)
    vae = _meta_autoencoder(shape.family)
    with FlopCounterMode(display=False) as counter:
        vae.decode(torch.empty(1, *shape.image_shape, device="meta"))
    weights = 4.0 * sum(p.numel() for p in vae.parameters())
    pixels = height * width * shape.family.vae_factor**2
    working = at_once * DECODING_BYTES * pixels / DECODED_PIXELS
    return Decoding(counter.get_total_flops() + INCEPTION_FLOPS, weights + INCEPTION_BYTES, working)


def _meta_autoencoder(family: Family) -> Any:
    import diffusers

    kind = getattr(diffusers, family.vae.get("_class_name", "AutoencoderKL"))
    with torch.device("meta"):
        return kind.from_config(family.vae).requires_grad_(False)


def meta_model(shape: Shape) -> GeneratorModel:
    """A generator of the shape, whose tensors have no memory."""
    if isinstance(shape, SiTConfig):
        with torch.device("meta"):
            return SiT(shape).to("meta")  # .to(), because the position table comes from NumPy
    import diffusers

    family = shape.family
    with torch.device("meta"):
        transformer = getattr(diffusers, family.transformer).from_config(family.config).to("meta").eval()
    prompts = Prompts(Path("none"), ("a prompt",), None)
    return PipelineModel(family, transformer, shape.image_shape, prompts, _ShapesAlone(family), Autoencoder(None))


class _ShapesAlone(Embeddings):
    """Rows of the right shapes for any condition."""

    def __init__(self, family: Family):
        super().__init__({})
        self.family = family

    def rows_of(self, conditions: torch.Tensor, dtype: torch.dtype) -> Rows:
        """Rows without values."""
        rows = self.family.meta_rows(len(conditions))
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in rows.items()}


def meta_inputs(shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample, time and condition of one image, without memory."""
    with torch.device("meta"):
        return torch.empty(1, *shape.image_shape), torch.empty(1), torch.empty(1, dtype=torch.long)
