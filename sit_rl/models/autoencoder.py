"""Latents ↔ images through diffusers' AutoencoderKL, from a local folder.

The Stable Diffusion decoder needs much more memory than its latents. So a batch of any size is decoded a few images at
a time, and a large image can be decoded in overlapping tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fastfid.runtime.devices import full_float32
from fastfid.runtime.errors import one_line
from sit_rl.files.paths import require_extra
from sit_rl.files.tensor_files import damage
from sit_rl.models.pixels import to_float, to_pixels, to_uint8

# Latent scale of the Stable Diffusion autoencoders that SiT and DiT were trained with.
LATENT_SCALE = 0.18215
# Images decoded or encoded at once. Decoding 256×256 images with an autoencoder of sd-vae-ft-ema's shape took 0.17 GB
# per image (float32, CPU): 1.4 GB for eight images, beside 0.3 GB of weights.
SLICE = 8


class Decoder:
    """An autoencoder's decoder; see `load_decoder`."""

    def __init__(self, vae: Any, device: torch.device, batch: int, tf32: bool):
        self.vae, self.device, self.batch, self.tf32 = vae, device, batch, tf32

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Images uint8 [n, 3, 8h, 8w] of latents [n, 4, h, w]."""
        if not len(latents):
            factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
            shape = (0, self.vae.config.out_channels, *(factor * s for s in latents.shape[2:]))
            return latents.new_empty(shape).byte()
        with self._precision():
            return torch.cat([to_uint8(self._decoded(z)) for z in latents.split(self.batch)])

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels float32 [n, 3, 8h, 8w] in 0…255 with their gradient in the latents; keep n small."""
        with self._precision():
            return to_pixels(self._decoded(latents))

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.vae.decode(latents / LATENT_SCALE).sample
        return decoded

    def _precision(self) -> AbstractContextManager[None]:
        return nullcontext() if self.tf32 else full_float32(self.device)


def load_decoder(
    folder: Path, device: torch.device, batch: int = SLICE, tiled: bool = False, tf32: bool = False
) -> Decoder:
    """A function from latents [n, 4, h, w] to images uint8 [n, 3, 8h, 8w]: uint8(clamp(127.5·D(z/0.18215) + 128)).

    folder  a diffusers AutoencoderKL such as sd-vae-ft-ema, with config.json and its weights
    batch   images decoded at once; the memory depends on it and not on n
    tiled   decode images above the autoencoder's own size in overlapping, blended tiles, which changes them slightly
    tf32    on a GPU, compute convolutions and products in the precision of torch's settings, as the official scripts
            do; else they are float32 for all settings

    FileNotFoundError or ValueError for a folder without such an autoencoder.
    """
    return Decoder(_load(folder, device, tiled), device, batch, tf32)


def load_encoder(
    folder: Path, device: torch.device, batch: int = SLICE
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """A function from images uint8 [n, 3, H, W] to latents float32 [n, 4, H/8, W/8]: 0.18215·(mean + std·noise).

    noise is standard normal with the shape of the latents; None gives the posterior's mean. Errors as in
    `load_decoder`.
    """
    vae = _load(folder, device)

    @torch.no_grad()
    def encode(images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        posteriors = [vae.encode(to_float(x.to(device))).latent_dist for x in images.split(batch)]
        mean = torch.cat([posterior.mean for posterior in posteriors])
        if noise is None:
            return LATENT_SCALE * mean
        return LATENT_SCALE * (mean + torch.cat([posterior.std for posterior in posteriors]) * noise)

    return encode


def _load(folder: Path, device: torch.device, tiled: bool = False) -> Any:  # diffusers may be missing
    """The AutoencoderKL of a folder, frozen, on the device."""
    require_extra("--vae")
    from diffusers import AutoencoderKL

    if Path(folder).is_file():
        raise FileNotFoundError(f"--vae {folder} is a file; pass the folder of a diffusers AutoencoderKL")
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"--vae {folder} has no config.json; point it at the folder of a diffusers AutoencoderKL"
        )
    try:
        vae = AutoencoderKL.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # diffusers raises nearly anything for a missing or damaged file
        cut = [f"{path.name}: {told}" for path in Path(folder).glob("*.safetensors") if (told := damage(path))]
        reason = "; ".join(cut) or one_line(error).rstrip(".")
        raise ValueError(
            f"--vae {folder} is not a complete AutoencoderKL ({reason}); download its config.json and "
            "diffusion_pytorch_model.safetensors again"
        ) from None
    if vae.config.scaling_factor != LATENT_SCALE:
        raise ValueError(
            f"--vae {folder} scales its latents by {vae.config.scaling_factor}, SiT's and DiT's by {LATENT_SCALE}; "
            "use sd-vae-ft-ema or sd-vae-ft-mse"
        )
    if tiled:
        vae.enable_tiling()
    return vae.to(device).eval().requires_grad_(False)
