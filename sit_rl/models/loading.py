"""Read SiT and DiT weights from every file they come in, without running code from it, and write them as safetensors.

A .pt file is a bare state dict, or a trainer's {model, ema, opt, args}. A .safetensors file is a state dict whose
metadata may name the architecture and every number of the shape. Loading is strict and in float32. At most one copy of
the weights is made, of one tensor at a time: what a file holds besides is mapped, not read.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from sit_rl.files.tensor_files import damage, file_size, read_safetensors, write_safetensors
from sit_rl.models.dit import DiT
from sit_rl.models.sit import SiT, SiTConfig, infer_config, published_heads
from sit_rl.ranks.process_group import is_main

ARCHITECTURES: dict[str, type[SiT]] = {"sit": SiT, "dit": DiT}
WEIGHTS = ("ema", "model")
# How the names of the published DiT checkpoints begin, which are bare state dicts of the same tensors as SiT's.
DIT_FILES = "DiT-"
# Differences of a state dict that an error names; the first ones tell what the file is.
TOLD_DIFFERENCES = 3


def load_model(path: Path, weights: str = "ema", architecture: str = "auto", heads: int | None = None) -> SiT:
    """SiT or DiT in eval mode, float32 on the CPU, from .safetensors or .pt (see the module's text).

    path          file of the weights
    weights       which of a trainer's two sets: 'ema' or 'model'; a bare state dict has one alone
    architecture  'sit', 'dit', or 'auto': what the file says of itself, else DiT for the official name DiT-…, else SiT
    heads         of attention, which no tensor tells; None: by the file's metadata or the published size, else a guess
                  that is printed

    The shape is inferred from the tensors, learn_sigma included. FileNotFoundError or ValueError, naming the file, for
    anything else.
    """
    path = Path(path)
    _check_choice("weights", weights, WEIGHTS)
    _check_choice("architecture", architecture, ("auto", *ARCHITECTURES))
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {problem}; pass the path of a .safetensors or .pt file")
    # A safetensors file holds one set of weights, whatever `weights` asks for.
    state, metadata = read_safetensors(path) if path.suffix == ".safetensors" else _read_pt(path, weights)
    said = metadata.get("architecture", "dit" if path.name.startswith(DIT_FILES) else "sit")
    if architecture != "auto" and architecture != metadata.get("architecture", architecture):
        raise ValueError(f"{path} is of a {said!r}, not a {architecture!r}; choose --architecture {said}")
    if heads is not None:
        metadata = metadata | {"heads": str(heads)}
    try:
        model = _fill(ARCHITECTURES[said if architecture == "auto" else architecture], state, metadata)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not of an architecture that sit_rl knows: {reason}") from None
    _tell_guessed_heads(path, model.config, metadata)
    return model


def _tell_guessed_heads(path: Path, config: SiTConfig, metadata: dict[str, str]) -> None:
    """Say so where neither the file nor the published sizes tell how many heads there are: another number fits, too."""
    if is_main() and "heads" not in metadata and published_heads(config.width, config.depth) is None:
        print(
            f"note: {path} does not tell its number of heads, and {config.heads} is a guess; if it is wrong, write the "
            f"right one into the file: python -m sit_rl.models.convert {path} NEW.safetensors --heads N"
        )


def save_model(model: SiT, path: Path, **notes: str) -> None:
    """Write safetensors with the official names; architecture, shape and `notes` go into the metadata.

    The file appears whole or not at all. Its tensors are on any device and written as they are.
    """
    architecture = next(name for name, kind in ARCHITECTURES.items() if kind is type(model))
    metadata = {key: str(value) for key, value in model.config.to_dict().items()} | {"architecture": architecture}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_safetensors(path, state, metadata | notes)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _fill(kind: type[SiT], state: dict[str, torch.Tensor], metadata: dict[str, str]) -> SiT:
    """The model around float32 copies of the state's tensors, which are dropped as they are copied."""
    config = infer_config(state, int(metadata["heads"]) if "heads" in metadata else None)
    _check_metadata(config, metadata)
    with torch.device("meta"):  # no memory, and no random numbers drawn for weights about to be replaced
        model = kind(config)
    _check_tensors(state, model)
    copies = {key: state.pop(key).to(torch.float32, copy=True) for key in list(state)}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _check_tensors(state: dict[str, torch.Tensor], model: SiT) -> None:
    """ValueError naming the first tensors that are missing, of another shape, or unknown, and how many there are."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [f"{key} is missing" for key in expected if key not in state]
    wrong += [f"{key} is unknown" for key in state if key not in expected]
    wrong += [
        f"{key} is {_shape(state[key].shape)}, not {_shape(shape)}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if not wrong:
        return
    c, told = model.config, ", ".join(wrong[:TOLD_DIFFERENCES])
    if len(wrong) > TOLD_DIFFERENCES:
        told += f" and {len(wrong) - TOLD_DIFFERENCES} more"
    raise ValueError(
        f"{told}, where its other tensors are those of a {type(model).__name__} of width {c.width}, depth {c.depth} "
        f"and patch {c.patch_size}; choose another file"
    )


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def _check_metadata(config: SiTConfig, metadata: dict[str, str]) -> None:
    """ValueError where a file's metadata contradicts its tensors."""
    for field in fields(config):
        said, found = metadata.get(field.name), str(getattr(config, field.name))
        if said not in (None, found):
            raise ValueError(f"its metadata say {field.name} {said}, its tensors {found}")


def _reason(error: Exception) -> str:
    """What torch's unpickler met, without its advice on how to run the file's code."""
    text = " ".join(str(error).split())
    sentences = text.rpartition("WeightsUnpickler error: ")[2].split(". ")
    return next((s for s in sentences if "nsupported" in s), sentences[0])[:200]


def _read_pt(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One set of a pickled file's tensors, and the architecture that the trainer's saved arguments name."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official trainer saves its arguments
            # Only zip files, torch's format since 1.6, can be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        wrong = damage(path)
        if wrong is None and "EOF" in f"{type(error).__name__} {error}":  # a file of torch < 1.6
            wrong = f"it is incomplete: {file_size(path)}, and its end is missing"
        if wrong is not None:
            raise ValueError(f"{path} is no whole checkpoint ({wrong}); download or copy it again") from None
        raise ValueError(
            f"{path} cannot be read as tensors alone ({_reason(error)}); re-save it as safetensors"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    if not set(WEIGHTS) & set(content):
        return dict(content), {}
    if weights not in content:
        other = next(name for name in WEIGHTS if name in content)
        raise ValueError(f"{path} has no {weights!r} weights; choose --weights {other}")
    architecture = str(getattr(content.get("args"), "model", None))[:3].lower()
    metadata = {"architecture": architecture} if architecture in ARCHITECTURES else {}
    return dict(content[weights]), metadata
