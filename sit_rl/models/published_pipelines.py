"""Shapes of published pipelines, for plans without their files: --dry-run --model diffusers:NAME.

The numbers are those of the config.json files of the diffusers folders of these models; numbers of parameters in
tests/sit_rl/test_pipeline_plan.py are their makers'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sit_rl.models.pipeline_families import Family, Flux, Lumina2, Sana, StableDiffusion3

# The autoencoders of 16 channels and a factor of 8 that SD3, Flux and Lumina 2 have in common, up to their weights.
KL_16: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "latent_channels": 16,
    "layers_per_block": 2, "use_quant_conv": False, "use_post_quant_conv": False,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
# Sana's, with a factor of 32 (DC-AE f32c32).
DC_32: dict[str, Any] = {
    "_class_name": "AutoencoderDC", "latent_channels": 32, "attention_head_dim": 32,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]], "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "Conv", "upsample_block_type": "interpolate", "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
}  # fmt: skip
SHIFT_3 = {"shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def _sd3(layers: int, positions: int, **more: Any) -> dict[str, Any]:
    """SD3's transformer: 64 channels a head, as many heads as layers."""
    return {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": layers,
        "num_attention_heads": layers, "attention_head_dim": 64, "caption_projection_dim": 64 * layers,
        "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": positions, **more,
    }  # fmt: skip


def _sana(layers: int, heads: int, cross_heads: int) -> dict[str, Any]:
    """Sana's transformer: 32 channels a head of the linear attention."""
    width = 32 * heads
    return {
        "sample_size": 32, "patch_size": 1, "in_channels": 32, "out_channels": 32, "num_layers": layers,
        "num_attention_heads": heads, "attention_head_dim": 32, "num_cross_attention_heads": cross_heads,
        "cross_attention_head_dim": width // cross_heads, "cross_attention_dim": width, "caption_channels": 2304,
        "mlp_ratio": 2.5,
    }  # fmt: skip


FLUX = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
}  # fmt: skip
LUMINA2 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "hidden_size": 2304, "num_layers": 26,
    "num_refiner_layers": 2, "num_attention_heads": 24, "num_kv_heads": 8, "multiple_of": 256, "norm_eps": 1e-5,
    "scaling_factor": 1.0, "axes_dim_rope": [32, 32, 32], "axes_lens": [300, 512, 512], "cap_feat_dim": 2304,
}  # fmt: skip
# name: (family, transformer, autoencoder, scheduler)
PUBLISHED: dict[str, tuple[type[Family], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sd3-medium": (StableDiffusion3, _sd3(24, 192), KL_16, SHIFT_3),
    "sd3.5-medium": (
        StableDiffusion3,
        _sd3(24, 384, qk_norm="rms_norm", dual_attention_layers=list(range(13))),
        KL_16,
        SHIFT_3,
    ),
    "sd3.5-large": (StableDiffusion3, _sd3(38, 192, qk_norm="rms_norm"), KL_16, SHIFT_3),
    "flux-dev": (Flux, FLUX | {"guidance_embeds": True}, KL_16, DYNAMIC),
    "flux-schnell": (Flux, FLUX | {"guidance_embeds": False}, KL_16, {"shift": 1.0}),
    "sana-0.6b": (Sana, _sana(28, 36, 16), DC_32, {"flow_shift": 3.0}),
    "sana-1.6b": (Sana, _sana(20, 70, 20), DC_32, {"flow_shift": 3.0}),
    "lumina-image-2": (Lumina2, LUMINA2, KL_16, {"shift": 6.0}),
}


def published(folder: Path) -> Family | None:
    """The published pipeline of this name; None for another name, or where a folder has it."""
    entry = PUBLISHED.get(str(folder))
    if entry is None or folder.exists():
        return None
    family, transformer, autoencoder, scheduler = entry
    return family(folder, transformer, autoencoder, scheduler)
