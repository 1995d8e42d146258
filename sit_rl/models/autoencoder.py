"""Latents ↔ images through diffusers' AutoencoderKL, from a local folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sit_rl.images import to_uint8

# Latent scale of the Stable Diffusion autoencoders that SiT and DiT were trained with.
LATENT_SCALE = 0.18215


def load_decoder(folder: Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from latents [n, 4, h, w] to images uint8 [n, 3, 8h, 8w]: uint8(clamp(127.5·D(z/0.18215) + 128)).

    `folder` is a diffusers AutoencoderKL such as sd-vae-ft-ema, with config.json and its weights.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise ModuleNotFoundError("--vae needs diffusers: pip install 'fastfid[latent]'") from None
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"--vae {folder} has no config.json; point it at the folder of a diffusers AutoencoderKL"
        )
    vae = AutoencoderKL.from_pretrained(str(folder), local_files_only=True).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(latents: torch.Tensor) -> torch.Tensor:
        return to_uint8(vae.decode(latents / LATENT_SCALE).sample)

    return decode
