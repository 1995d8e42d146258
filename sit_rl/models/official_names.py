"""Official names of a state dict's tensors: names of wrappers are stripped, and what only training uses is dropped."""

from __future__ import annotations

import torch

# Modules that wrap a model or a part of it: DDP and AveragedModel, torch.compile, FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What a SiT or DiT does not need to make samples: REPA's heads (arXiv 2410.06940), and AveragedModel's counter.
TRAINING_ONLY = {"projectors", "n_averaged"}
# REPA's code interpolates from the data at t = 0 to noise at t = 1, and its velocity points to the noise.
TIME_OF_REPA = (
    "; in REPA's models time runs from data to noise: if it does so in this one, rewrite the file by "
    "python -m sit_rl.models.convert with --time data-to-noise"
)


def official_names(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The state under official names, and notes on what was stripped from names or dropped.

    ValueError if two tensors get the same name.
    """
    renamed: dict[str, torch.Tensor] = {}
    stripped: dict[str, None] = {}  # in the order of the file
    dropped = []
    for key, value in state.items():
        parts = key.split(".")
        stripped |= dict.fromkeys(part for part in parts if part in WRAPPERS)
        name = ".".join(part for part in parts if part not in WRAPPERS)
        if name.split(".")[0] in TRAINING_ONLY:
            dropped.append(name)
        elif name in renamed:
            raise ValueError(f"two of its tensors are {name!r} without the names of wrappers; save one model alone")
        else:
            renamed[name] = value
    notes = [f"stripped {', '.join(f'{part}.' for part in stripped)} from the names"] if stripped else []
    repa = any(key.split(".")[0] == "projectors" for key in dropped)
    if dropped:
        more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
        notes.append(f"dropped {dropped[0]}{more}, which only training uses{TIME_OF_REPA if repa else ''}")
    return renamed, notes
