"""Read SiT and DiT weights from .pt and .safetensors files, without running code from them; write safetensors.

A .pt file is a bare state dict, or a trainer's {model, ema, opt, args}. A .safetensors file is a state dict whose
metadata may contain the architecture and all numbers of the shape. Loading is strict and gives float32. The file is
mapped, and its tensors are copied one at a time, so memory holds at most one copy of the weights.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from fastfid.runtime.errors import first_line, one_line, shown
from fastfid.runtime.input_files import json_of, lacks_memory, read_text, reading
from fastfid.runtime.torch_file_checks import Damaged, check_tensors, check_torch_file
from sit_rl.files.tensor_files import damage, file_size, read_safetensors, write_safetensors
from sit_rl.models.card import weights_of_model
from sit_rl.models.dit import DiT
from sit_rl.models.official_names import official_names
from sit_rl.models.sit import IMAGENET_CLASSES, SiT, SiTConfig, infer_config, published_heads
from sit_rl.ranks.messages import say

ARCHITECTURES: dict[str, type[SiT]] = {"sit": SiT, "dit": DiT}
WEIGHTS = ("ema", "model")
# Names of the published DiT checkpoints begin with it. They are bare state dicts with the same tensors as SiT's.
DIT_FILES = "DiT-"
# End of the name of a JSON file that lists the parts of a model, and the name of such a part (Hugging Face's layout).
INDEX = ".index.json"
PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
# Number of differences of a state dict that an error names; the first ones are enough to recognise the file.
NAMED_DIFFERENCES = 3


def load_model(
    path: Path,
    weights: str = "ema",
    architecture: str = "auto",
    heads: int | None = None,
    null_class: bool | None = None,
) -> SiT:
    """SiT or DiT from a .safetensors or .pt file, in eval mode, float32 on the CPU.

    path          file of the weights, the .index.json of several, or a folder with a card; names of wrappers, such as
                  DDP, are stripped
    weights       'ema' or 'model': which set of a trainer's checkpoint; a bare state dict has only one
    architecture  'sit', 'dit', or 'auto': as the metadata say, else DiT for a name that begins with DiT-, else SiT
    heads         number of attention heads, which the tensors do not show; None: from the metadata or the published
                  size, else a guess, which is printed
    null_class    whether the label table ends with a row for the null class; None: from the metadata, the trainer's
                  number of classes, or the published 1001 rows; no for 1 row; else a guess, which is printed

    The shape, with learn_sigma, follows from the tensors. FileNotFoundError or ValueError, with the name of the file,
    for any other file.
    """
    path = weights_of_model(Path(path))
    _check_choice("weights", weights, WEIGHTS)
    _check_choice("architecture", architecture, ("auto", *ARCHITECTURES))
    if not path.exists() or path.is_dir():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {problem}; pass the path of a .safetensors or .pt file")
    with reading(path, "choose another file"):
        state, metadata = _read(path, weights)
        state, notes = _official_names(path, state)
        said = metadata.get("architecture", "dit" if path.name.startswith(DIT_FILES) else "sit")
        if architecture != "auto" and architecture != metadata.get("architecture", architecture):
            raise ValueError(f"{path} is of a {said!r}, not a {architecture!r}; choose --architecture {said}")
        if heads is not None:
            metadata = metadata | {"heads": str(heads)}
        if null_class is not None:
            metadata = {key: value for key, value in metadata.items() if key != "num_classes"}
            metadata |= {"null_class": str(null_class)}
        try:
            model = _fill(ARCHITECTURES[said if architecture == "auto" else architecture], state, metadata)
        except Exception as error:  # tensors and metadata of any kind
            if lacks_memory(error):
                raise
            reason = one_line(error)
            raise ValueError(f"{path} is not of an architecture that sit_rl knows: {reason}") from None
    if notes:
        say(f"note: of {path}, sit_rl {' and '.join(notes)}")
    _tell_guessed_heads(path, model.config, metadata)
    _tell_guessed_null_class(path, model.config, metadata)
    return model


def read_state(path: Path, weights: str = "ema") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by name and metadata of a file of weights of any model; errors as in `load_model`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; pass the path of a .safetensors or .pt file")
    with reading(path, "choose another file"):
        return _read(path, weights)


def _read(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file, or of all parts of an index."""
    if path.name.endswith(INDEX):
        return _read_index(path, weights)
    if path.suffix != ".safetensors":
        return _read_pt(path, weights)
    part = PART.fullmatch(path.name)
    index = part and path.with_name(f"{part[1]}.safetensors{INDEX}")
    if index and index.is_file():
        raise ValueError(f"{path} is one of several parts; pass {index}")
    return read_safetensors(path)  # it has a single set of weights, so `weights` does not matter


def _read_index(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of all files that an index lists; they lie beside it."""
    try:
        places = json_of(read_text(path))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of weights files ({first_line(error)}); download it again") from None
    state: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for name in names:
        part = path.parent / name
        if Path(name).name != name or not part.is_file():
            raise ValueError(
                f"{path} lists {shown(repr(name))}, which is not beside it; download all parts into one folder"
            )
        tensors, more = read_safetensors(part) if part.suffix == ".safetensors" else _read_pt(part, weights)
        state |= {key: value for key, value in tensors.items() if places.get(key) == name}
        metadata |= more
    missing = [key for key in places if key not in state]
    if missing:
        raise ValueError(
            f"{path} lists {shown(repr(missing[0]))} in {shown(str(places[missing[0]]))}, which has no such tensor; "
            "download both"
        )
    return state, metadata


def _official_names(path: Path, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`official_names`, whose error names the file; ValueError if a name is not text or a value not a tensor."""
    other = next((k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))), None)
    if other is not None:
        raise ValueError(f"{path} is not of an architecture that sit_rl knows: {other!r} is not the name of a tensor")
    try:
        return official_names(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _tell_guessed_heads(path: Path, config: SiTConfig, metadata: dict[str, str]) -> None:
    """Print a note if neither the file nor the published sizes give the number of heads: other numbers fit as well."""
    if "heads" not in metadata and published_heads(config.width, config.depth) is None:
        say(
            f"note: {path} does not contain its number of heads; {config.heads} is a guess. If it is wrong, write the "
            f"right one into the file: python -m sit_rl.models.convert {path} NEW.safetensors --heads N"
        )


def _tell_guessed_null_class(path: Path, config: SiTConfig, metadata: dict[str, str]) -> None:
    """Print a note if nothing shows whether the label table ends with a null class."""
    rows, published = config.label_rows, IMAGENET_CLASSES + 1
    if rows in (1, published) or _null_class_of(rows, metadata) is not None:
        return
    guess = f"{config.num_classes} classes and the null class" if config.null_class else f"{rows} classes without it"
    say(
        f"note: {path} does not say whether the last of the {rows} rows of its label table is the null class. It is "
        f"read as {guess}; if that is wrong, write the answer into the file: python -m sit_rl.models.convert "
        f"{path} NEW.safetensors --null-class {'no' if config.null_class else 'yes'}"
    )


def _null_class_of(rows: int, metadata: dict[str, str]) -> bool | None:
    """Whether a label table ends with a null class, by the metadata; None if they do not tell."""
    if "null_class" in metadata:
        return metadata["null_class"] == str(True)
    return rows > int(metadata["num_classes"]) if "num_classes" in metadata else None


def save_model(model: SiT, path: Path, **notes: str) -> None:
    """Write safetensors with the official names, with architecture, shape and `notes` in the metadata.

    The file is written whole or not at all. The tensors may be on any device and keep their dtype.
    """
    architecture = next(name for name, kind in ARCHITECTURES.items() if kind is type(model))
    metadata = {key: str(value) for key, value in model.config.to_dict().items()} | {"architecture": architecture}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_safetensors(path, state, metadata | notes)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _fill(kind: type[SiT], state: dict[str, torch.Tensor], metadata: dict[str, str]) -> SiT:
    """A model with float32 copies of the state's tensors; each tensor is removed from the state when it is copied."""
    table = state.get("y_embedder.embedding_table.weight")
    null_class = None if table is None else _null_class_of(len(table), metadata)
    config = infer_config(state, int(metadata["heads"]) if "heads" in metadata else None, null_class)
    _check_metadata(config, metadata)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        model = kind(config)
    _check_tensors(state, model)
    copies = {key: state.pop(key).to(torch.float32, copy=True) for key in list(state)}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def _check_tensors(state: dict[str, torch.Tensor], model: SiT) -> None:
    """ValueError for a state whose tensors are not those of the model."""
    if wrong := differences_of(model.state_dict(), state):
        c = model.config
        raise ValueError(
            f"{wrong}, where its other tensors are those of a {type(model).__name__} of width {c.width}, depth "
            f"{c.depth} and patch {c.patch_size}; choose another file"
        )


def differences_of(expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str:
    """The first tensors that are missing, unknown, of another shape, or no floats, and how many more; empty if none."""
    wrong = [f"{key} is missing" for key in expected if key not in state]
    wrong += [f"{key} is unknown" for key in state if key not in expected]
    wrong += [
        f"{key} is {_shape(state[key].shape)}, not {_shape(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    wrong += [
        f"{key} is of {str(state[key].dtype).removeprefix('torch.')}, not of a float type"  # quantised, say
        for key, value in expected.items()
        if key in state and value.is_floating_point() and not state[key].is_floating_point()
    ]
    more = f" and {len(wrong) - NAMED_DIFFERENCES} more" if len(wrong) > NAMED_DIFFERENCES else ""
    return ", ".join(wrong[:NAMED_DIFFERENCES]) + more


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def _check_metadata(config: SiTConfig, metadata: dict[str, str]) -> None:
    """ValueError if the metadata of a file contradict its tensors."""
    for field in fields(config):
        said, found = metadata.get(field.name), str(getattr(config, field.name))
        if said not in (None, found):
            raise ValueError(f"its metadata say {field.name} {said}, its tensors {found}")


def _reason(error: Exception) -> str:
    """The reason of torch's unpickler, without its advice to run the code of the file."""
    text = " ".join(str(error).split())
    sentences = text.rpartition("WeightsUnpickler error: ")[2].split(". ")
    return next((s for s in sentences if "nsupported" in s), sentences[0])[:200]


def _read_pt(path: Path, weights: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One set of tensors of a .pt file, and metadata with what the trainer's arguments tell, if it contains them."""
    try:
        check_torch_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official trainer saves its arguments
            # Only zip files, the format since torch 1.6, can be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if isinstance(error, Damaged) or lacks_memory(error):
            raise
        wrong = damage(path)
        if wrong is None and "EOF" in f"{type(error).__name__} {error}":  # a file of torch < 1.6
            wrong = f"it is incomplete: {file_size(path)}, and its end is missing"
        if wrong is not None:
            raise ValueError(f"{path} is not a complete checkpoint ({wrong}); download or copy it again") from None
        raise ValueError(
            f"{path} cannot be read as a file of tensors only ({_reason(error)}); re-save it as safetensors"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    if not set(WEIGHTS) & set(content):
        return _state(path, content), {}
    if weights not in content:
        other = next(name for name in WEIGHTS if name in content)
        raise ValueError(f"{path} has no {weights!r} weights; choose --weights {other}")
    state = _state(path, content[weights])
    return state, _arguments_of(content.get("args"), state)


def _arguments_of(arguments: object, state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Metadata by a trainer's arguments: the architecture, and the number of classes if it fits the label table."""
    architecture, classes = str(getattr(arguments, "model", None))[:3].lower(), getattr(arguments, "num_classes", None)
    table = state.get("y_embedder.embedding_table.weight")
    metadata = {"architecture": architecture} if architecture in ARCHITECTURES else {}
    if table is not None and isinstance(classes, int) and len(table) - classes in (0, 1):
        metadata["num_classes"] = str(classes)
    return metadata


def _state(path: Path, content: object) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by name; ValueError if it is none, or stands for more values than fit the file."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    other = next((value for value in content.values() if not isinstance(value, torch.Tensor)), None)
    if other is not None:
        raise ValueError(f"{path} holds a {type(other).__name__} among its weights; save tensors alone")
    check_tensors(path, content.values())
    return dict(content)
