"""Read SiT and DiT weights from every file they come in, without running code from it, and write them as safetensors.

A .pt file is a bare state dict, or a trainer's {model, ema, opt, args}. A .safetensors file is a state dict whose
metadata may name the architecture and every number of the shape. Loading is strict and in float32. At most one copy of
the weights is made, of one tensor at a time: what a file holds besides is mapped, not read.
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from fastfid.moments import write_atomically
from sit_rl.models.dit import DiT
from sit_rl.models.sit import SiT, SiTConfig, infer_config

ARCHITECTURES: dict[str, type[SiT]] = {"sit": SiT, "dit": DiT}
WEIGHTS = ("ema", "model")
# How the names of the published DiT checkpoints begin, which are bare state dicts of the same tensors as SiT's.
DIT_FILES = "DiT-"


def load_model(path: Path, weights: str = "ema", architecture: str = "auto") -> SiT:
    """SiT or DiT in eval mode, float32 on the CPU, from .safetensors or .pt (see the module's text).

    path          file of the weights
    weights       which of a trainer's two sets: 'ema' or 'model'; a bare state dict has one alone
    architecture  'sit', 'dit', or 'auto': what the file says of itself, else DiT for the official name DiT-…, else SiT

    The shape is inferred from the tensors, learn_sigma included; the number of heads from metadata or the published
    sizes. FileNotFoundError or ValueError, naming the file, for anything else.
    """
    path = Path(path)
    _check_choice("weights", weights, WEIGHTS)
    _check_choice("architecture", architecture, ("auto", *ARCHITECTURES))
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; pass the path of a .safetensors or .pt file")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pt
    state, metadata = read(path, weights)
    said = metadata.get("architecture", "dit" if path.name.startswith(DIT_FILES) else "sit")
    if architecture != "auto" and architecture != metadata.get("architecture", architecture):
        raise ValueError(f"checkpoint {path} is of a {said!r}, not a {architecture!r}; choose --architecture {said}")
    try:
        return _fill(ARCHITECTURES[said if architecture == "auto" else architecture], state, metadata)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint {path} is not of an architecture that sit_rl knows: {reason}") from None


def save_model(model: SiT, path: Path, **notes: str) -> None:
    """Write safetensors with the official names; architecture, shape and `notes` go into the metadata.

    The file appears whole or not at all. Its tensors are on any device and written as they are.
    """
    architecture = next(name for name, kind in ARCHITECTURES.items() if kind is type(model))
    metadata = {key: str(value) for key, value in model.config.to_dict().items()} | {"architecture": architecture}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(path, lambda file: file.write(save(state, metadata | notes)))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _fill(kind: type[SiT], state: dict[str, torch.Tensor], metadata: dict[str, str]) -> SiT:
    """The model around float32 copies of the state's tensors, which are dropped as they are copied."""
    config = infer_config(state, int(metadata["heads"]) if "heads" in metadata else None)
    _check_metadata(config, metadata)
    with torch.device("meta"):  # no memory, and no random numbers drawn for weights about to be replaced
        model = kind(config)
    copies = {key: state.pop(key).to(torch.float32, copy=True) for key in list(state)}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _check_metadata(config: SiTConfig, metadata: dict[str, str]) -> None:
    """ValueError where a file's metadata contradicts its tensors."""
    for field in fields(config):
        said, found = metadata.get(field.name), str(getattr(config, field.name))
        if said not in (None, found):
            raise ValueError(f"its metadata say {field.name} {said}, its tensors {found}")


def _read_safetensors(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor, and the metadata; the file holds one set of weights, whatever `weights` asks for."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except Exception as error:  # safetensors raises its own type, which has no public name in older releases
        raise ValueError(f"checkpoint {path} cannot be read as safetensors ({error}); copy it again") from None


def _read_pt(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One set of a pickled file's tensors, and the architecture that the trainer's saved arguments name."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official trainer saves its arguments
            # Only zip files, torch's format since 1.6, can be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"checkpoint {path} cannot be read as tensors alone ({reason}); re-save it as safetensors"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict")
    if not set(WEIGHTS) & set(content):
        return dict(content), {}
    if weights not in content:
        other = next(name for name in WEIGHTS if name in content)
        raise ValueError(f"checkpoint {path} has no {weights!r} weights; choose --weights {other}")
    name = getattr(content.get("args"), "model", None)
    metadata = {"architecture": name[:3].lower()} if str(name)[:3].lower() in ARCHITECTURES else {}
    return dict(content[weights]), metadata
