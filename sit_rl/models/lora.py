"""LoRA adapters: added to a model before training, merged into its weights afterwards."""

from __future__ import annotations

import copy
from typing import Any

import torch

from sit_rl.files.paths import require_extra
from sit_rl.models.sit import SiT

# The linear layers of a block that LoRA adapts: attention and MLP, and not the modulation.
LORA_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def add_lora(model: SiT, rank: int, seed: int) -> None:
    """Freeze `model` and add a trained term of rank `rank` to every linear layer of its blocks, in place (peft).

    LoRA (Hu et al. 2021, arXiv 2106.09685): W x + (α/r) B A x with α = r. B starts at zero, A is random from `seed`.
    """
    require_extra("--lora")
    from peft import LoraConfig, inject_adapter_in_model

    targets = [f"blocks.{i}.{name}" for i in range(len(model.blocks)) for name in LORA_TARGETS]
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)


def merge_lora(model: SiT) -> SiT:
    """A copy of `model` with its LoRA terms added to the weights, under the official names; `model` if it has none."""
    if not any(hasattr(module, "merge") for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "merge") and hasattr(child, "get_base_layer"):
                adapter: Any = child  # a layer of peft, which is not installed everywhere
                adapter.merge()
                setattr(parent, name, adapter.get_base_layer())
    return merged
