"""Rewrite a checkpoint: official .pt to safetensors with its shape in the metadata, or back to a bare .pt state dict.

    python -m sit_rl.models.convert SiT-XL-2-256.pt SiT-XL-2-256.safetensors
    python -m sit_rl.models.convert 0400000.pt model.safetensors --weights model
    python -m sit_rl.models.convert renamed.pt DiT-XL-2-256.safetensors --architecture dit
    python -m sit_rl.models.convert own.pt own.safetensors --heads 12 --null-class no
    python -m sit_rl.models.convert repa.pt repa.safetensors --time data-to-noise
    python -m sit_rl.models.convert tuned.safetensors tuned.pt

The written weights are float32, under the official names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import tyro

from fastfid.cli import command_line
from fastfid.cli.command_line import parse
from fastfid.runtime.atomic_files import write_atomically
from sit_rl.files.paths import reading
from sit_rl.models.finite_weights import require_finite_start
from sit_rl.models.loading import load_model, save_model
from sit_rl.models.time_direction import reverse_time
from sit_rl.ranks.messages import say


def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    weights: Literal["ema", "model"] = "ema",
    architecture: Literal["auto", "sit", "dit"] = "auto",
    heads: int | None = None,
    null_class: Literal["auto", "yes", "no"] = "auto",
    time: Literal["noise-to-data", "data-to-noise"] = "noise-to-data",
) -> None:
    """Rewrite a SiT or DiT checkpoint in another format, in float32, and print its shape.

    Args:
        source: .safetensors, or an official .pt (bare state dict or {model, ema, opt, args})
        target: .safetensors, or .pt for the official bare state dict
        weights: which weights of a trainer's checkpoint
        architecture: auto: as the source's metadata say, else DiT for a name that begins with DiT-, else SiT
        heads: number of attention heads, for a .pt whose size is not a published one
        null_class: whether the last row of the label table is the null class; auto: as the source says, else a guess
        time: direction of the source's time; REPA's runs from data to noise, the written file's from noise to data
    """
    if target.suffix == ".pt" and heads is not None:
        raise ValueError("--heads cannot be kept in a .pt file; name a target that ends in .safetensors")
    if target.suffix == ".pt" and null_class != "auto":
        raise ValueError("--null-class cannot be kept in a .pt file; name a target that ends in .safetensors")
    if target.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"target {target} must end in .safetensors or .pt")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder of target {target} does not exist; make it, or choose another")
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"target {target} is the source, and only these weights would be left of it; choose another")
    with reading("source", source):
        null = None if null_class == "auto" else null_class == "yes"
        model = load_model(source, weights, architecture, heads, null)
    if time == "data-to-noise":
        if model.predicts != "velocity":
            raise ValueError(f"--time {time} is for a SiT; the source is a {type(model).__name__}")
        reverse_time(model)
    require_finite_start(model.named_parameters(), str(source))
    if target.suffix == ".safetensors":
        save_model(model, target)
    else:
        write_atomically(target, lambda file: torch.save(model.state_dict(), file))
    c, size = model.config, sum(p.numel() for p in model.parameters())
    say(
        f"{target}: {type(model).__name__}-{c.name}, {size / 1e6:.1f}M parameters, width {c.width}, depth {c.depth}, "
        f"heads {c.heads}, samples {c.channels}×{c.image_size}×{c.image_size}, {c.num_classes} classes"
        f"{'' if c.null_class else ' without a null class'}, "
        f"learn_sigma {c.learn_sigma}"
    )


def main(argv: list[str] | None = None) -> None:
    """Parse and convert; an expected error is one sentence."""
    status = command_line.run("error", lambda: parse(convert, argv, description=__doc__), interrupted="interrupted")
    if status != command_line.DONE:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
