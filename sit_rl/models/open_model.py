"""Opens a generator of any kind from the values of a command line, and reads and writes its weights.

SiT, DiT      the whole weights under the official names, LoRA terms added to them
own model     the whole weights under the user's names, LoRA terms added to them
pipeline      LoRA terms alone, as diffusers' load_lora_weights reads them; without LoRA the whole transformer
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sit_rl.files.paths import reading
from sit_rl.files.prompts import read_prompts
from sit_rl.files.tensor_files import write_safetensors
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.models.loading import differences_of, load_model, read_state, save_model
from sit_rl.models.lora import add_lora, has_lora, merge_lora, merge_lora_in_place
from sit_rl.models.own_model import OwnModel, build_own_model
from sit_rl.models.pipeline_families import pipeline_folder
from sit_rl.models.pipeline_model import PipelineModel, load_pipeline
from sit_rl.models.sit import SiT

# Names of LoRA's two factors in a model of peft, and in a file that diffusers reads.
FACTORS = {f".{factor}.default.weight": f".{factor}.weight" for factor in ("lora_A", "lora_B")}


@dataclass(frozen=True)
class ModelRequest:
    """Which generator a command wants.

    model         of --model; None: SiT or DiT
    checkpoint    file of weights; None: those that the builder or the pipeline's folder gives
    architecture  of --architecture, for SiT and DiT
    negative, image_size  of a pipeline
    half          hold the weights of a pipeline in bfloat16
    """

    model: str | None
    checkpoint: Path | None
    architecture: str = "auto"
    prompts: Path | None = None
    negative: str = ""
    image_size: int | None = None
    half: bool = False


def open_model(request: ModelRequest, device: torch.device) -> GeneratorModel:
    """The generator on the CPU, in eval mode; ValueError or OSError, in one sentence, for anything else.

    device  where a pipeline's text encoders run
    """
    if request.model is None:
        assert request.checkpoint is not None, "a SiT or DiT comes from a file"
        with reading("--checkpoint", request.checkpoint):
            return load_model(request.checkpoint, architecture=request.architecture)
    if request.architecture != "auto":
        raise ValueError(
            f"--architecture {request.architecture} is of SiT or DiT, and --model is {request.model}; leave one out"
        )
    prompts = None if request.prompts is None else read_prompts(request.prompts)
    folder = pipeline_folder(request.model)
    if folder is None:
        model: GeneratorModel = build_own_model(request.model, prompts)
    else:
        assert prompts is not None, "the options check that a pipeline has prompts"
        dtype = torch.bfloat16 if request.half else torch.float32
        model = load_pipeline(folder, prompts, request.negative, request.image_size, device, dtype)
    if request.checkpoint is not None:
        with reading("--checkpoint", request.checkpoint):
            load_weights(model, request.checkpoint)
    return model


def weights_to_save(model: GeneratorModel) -> dict[str, torch.Tensor]:
    """What the file of an own model's or a pipeline's weights holds."""
    if isinstance(model, PipelineModel) and has_lora(model):
        state = {name: value for name, value in model.state_dict().items() if name.endswith(tuple(FACTORS))}
        return {_renamed(name, FACTORS): value for name, value in state.items()}
    merged = merge_lora(model)
    part = merged.own if isinstance(merged, OwnModel) else merged.get_submodule("transformer")
    state = part.state_dict()
    return state if isinstance(model, OwnModel) else {f"transformer.{name}": value for name, value in state.items()}


def save_weights(model: GeneratorModel, path: Path, **notes: str) -> None:
    """Write the weights of a generator as safetensors, in the form of its kind, with `notes` in the metadata."""
    if isinstance(model, SiT):
        save_model(merge_lora(model), path, **notes)
        return
    # A copy of each, because two names may share a tensor, which the format does not allow.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in weights_to_save(model).items()}
    write_safetensors(path, tensors, {"generator": model.describe(), **notes})


def load_weights(model: GeneratorModel, path: Path) -> None:
    """Replace the weights of an own model or a pipeline by those of a file; LoRA terms are added to the weights.

    ValueError that names the file and the first differences for weights of another model.
    """
    state, _ = read_state(path)
    if isinstance(model, OwnModel):
        _fill(path, model.own, state)
        return
    if not any(".lora_A." in name for name in state):
        _fill(path, model.get_submodule("transformer"), {_bare(name): value for name, value in state.items()})
        return
    rank = next(value.shape[0] for name, value in state.items() if ".lora_A." in name)
    add_lora(model, rank, seed=0)
    back = {theirs: ours for ours, theirs in FACTORS.items()}
    named = {_renamed(name, back): value for name, value in state.items()}
    expected = {name for name in model.state_dict() if name.endswith(tuple(FACTORS))}
    _check(path, model.describe(), {name: model.state_dict()[name] for name in expected}, named)
    model.load_state_dict(named, strict=False)
    merge_lora_in_place(model)


def _renamed(name: str, ends: dict[str, str]) -> str:
    """A name with another end, where it has one of these."""
    for end, other in ends.items():
        if name.endswith(end):
            return name.removesuffix(end) + other
    return name


def _bare(name: str) -> str:
    return name.removeprefix("transformer.")


def _fill(path: Path, module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    _check(path, type(module).__name__, module.state_dict(), state)
    module.load_state_dict(state)


def _check(path: Path, kind: str, expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """ValueError that names the first `differences_of` the state."""
    if wrong := differences_of(expected, state):
        raise ValueError(f"{path} holds other weights than those of {kind}: {wrong}; pass the file of its weights")
