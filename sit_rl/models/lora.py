"""LoRA adapters: added to a model before training, merged into its weights afterwards."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from sit_rl.files.paths import require_extra
from sit_rl.models.generator_model import GeneratorModel

Adapted = TypeVar("Adapted", bound=GeneratorModel)


def add_lora(model: GeneratorModel, rank: int, seed: int) -> None:
    """Freeze `model` and add a trained term of rank `rank` to its `lora_targets`, in place (peft).

    LoRA (Hu et al. 2021, arXiv 2106.09685): W x + (α/r) B A x with α = r. B starts at zero, A is random from `seed`.
    """
    require_extra("--lora")
    from peft import LoraConfig, inject_adapter_in_model

    targets = model.lora_targets()
    unknown = set(targets) - {name for name, _ in model.named_modules()}
    if unknown or not targets:
        found = f"no layer {sorted(unknown)[0]}" if unknown else "no linear layer"
        raise ValueError(f"--lora adapts linear layers, and {model.describe()} has {found}; use --lora 0")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)


def lora_size(model: GeneratorModel, rank: int) -> int:
    """Number of parameters that `add_lora` adds."""
    layers = [model.get_submodule(name) for name in model.lora_targets()]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers if isinstance(layer, nn.Linear))


def merge_lora(model: Adapted) -> Adapted:
    """A copy of `model` with its LoRA terms added to the weights, under the official names; `model` if it has none."""
    if not has_lora(model):
        return model
    merged = copy.deepcopy(model)
    merge_lora_in_place(merged)
    return merged


def has_lora(model: GeneratorModel) -> bool:
    """Whether a model has LoRA terms."""
    return any(hasattr(module, "merge") and hasattr(module, "get_base_layer") for module in model.modules())


def merge_lora_in_place(merged: GeneratorModel) -> None:
    """Add a model's LoRA terms to its weights, under the names from before."""
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "merge") and hasattr(child, "get_base_layer"):
                adapter: Any = child  # a layer of peft, which is not installed everywhere
                adapter.merge()
                setattr(parent, name, adapter.get_base_layer())
