"""Read SiT weights from every file they come in, without running code from it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open

from sit_rl.models.sit import SiT, SiTConfig, infer_config


def load_sit(path: Path) -> SiT:
    """SiT from .safetensors, or .pt: a bare state dict, or a trainer's {model, ema, opt, args}, of which the EMA.

    The shape is inferred from the tensors, learn_sigma included; the number of heads from a file's metadata or the
    published head sizes. ValueError, naming the file, for anything that is not a SiT.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; pass the path of a .safetensors or .pt file")
    state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pt(path), {})
    try:
        model = SiT(_config(state, metadata))
        model.load_state_dict(state)
    except (ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint {path} is not of an architecture that sit_rl knows: {reason}") from None
    return model.eval()


def _config(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> SiTConfig:
    heads = int(metadata["heads"]) if "heads" in metadata else None
    return infer_config(state, heads)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except Exception as error:  # safetensors raises its own type, which has no public name in older releases
        raise ValueError(f"checkpoint {path} cannot be read as safetensors ({error}); copy it again") from None


def _read_pt(path: Path) -> dict[str, torch.Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official trainer saves its arguments
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"checkpoint {path} cannot be read as tensors alone ({reason}); re-save it as safetensors"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict")
    return content.get("ema", content.get("model", content))
