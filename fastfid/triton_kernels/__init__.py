"""GPU kernels in Triton, one per file. `load` imports them by name, so fastfid does not depend on triton."""

import importlib
import importlib.util
import os
from collections.abc import Collection
from types import ModuleType

import torch

KERNELS = ("plan_grams", "ldl_logdet", "centre_sums", "project", "moments", "rank_update", "newton_schulz")


def load(name: str) -> ModuleType:
    """The module of one of `KERNELS`. ImportError if triton is not installed, ValueError for another name."""
    if name not in KERNELS:
        raise ValueError(f"name must be one of {', '.join(KERNELS)}, got {name!r}; choose one of these kernels")
    if importlib.util.find_spec("triton") is None:
        raise ImportError(f"the kernel {name} needs triton, which is not installed: pip install triton")
    return importlib.import_module(f"{__name__}.{name}")


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels. Triton reads TRITON_INTERPRET when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def check_device(**tensors: torch.Tensor) -> None:
    """ValueError unless all named tensors are on one CUDA device, or on one device under the interpreter."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    first_name, first = next(iter(devices.items()))
    for name, device in devices.items():
        if device != first:
            raise ValueError(f"{name} is on {device} and {first_name} on {first}; move both to one device")
    if first.type != "cuda" and not interpreted():
        raise ValueError(
            f"{first_name} is on {first}, where Triton has no compiler; "
            "move it to a CUDA device or take torch's route (a kernel's _ref function)"
        )


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}; choose one of these")


def check_grid(programs: int) -> None:
    """ValueError for more than 2³¹ − 1 programs, the limit of a CUDA grid's first axis."""
    if programs > 2**31 - 1:
        raise ValueError(f"the batch needs {programs} programs, but a grid holds 2147483647; split the batch")
