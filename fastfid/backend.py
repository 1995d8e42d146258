"""What can compute here beside torch: the compiled extension in host memory, Triton's kernels on CUDA devices."""

import importlib.util
from types import ModuleType
from typing import NamedTuple

import torch

from fastfid import triton_kernels
from fastfid.triton_kernels import trial

try:
    from fastfid import _C
except ImportError as error:  # a source tree that was never built; the torch route computes the same numbers
    _C = None
    _MISSING = f"the compiled extension could not be imported ({error})"
else:
    _MISSING = ""

# Precisions of fastfid/linalg/iterative_roots.py that the fused product of whole matrices offers, by its own names.
# bfloat16 is missing: the kernel would also store bfloat16, and the stated errors are of float32 storage.
FUSED_PRODUCTS = {"float32": "tf32x3", "tf32": "tf32"}


class Choice(NamedTuple):
    """A backend and the reason it was chosen."""

    name: str
    why: str


def choose_products(
    requested: str, device: torch.device, method: str, precision: str = "float32", needs_grad: bool = False
) -> Choice:
    """Backend "triton" or "torch" of linalg/iterative_roots.py; ValueError when triton is asked for in vain.

    The C++ extension multiplies no whole matrices: "cpp", and auto in host memory, mean torch.
    """
    obstacle = "" if precision in FUSED_PRODUCTS else f"the fused product has no {precision}"
    if method == "eigh":
        obstacle = "eigenvalues are left to torch"
    obstacle = obstacle or triton_obstacle(device, torch.float32, needs_grad)
    if requested == "triton" and obstacle:
        raise ValueError(f"backend='triton' cannot be used: {obstacle}; pass backend='auto' or 'torch'")
    if requested == "triton" or (requested == "auto" and device.type == "cuda" and not obstacle):
        return Choice("triton", f"data on {device}" if requested == "auto" else "asked for")
    if requested == "torch":
        return Choice("torch", "asked for")
    return Choice("torch", obstacle or f"whole matrices on {device} are multiplied by torch")


def cpp_obstacle(device: torch.device) -> str:
    """Why the C++ kernels cannot serve data on this device, or an empty string."""
    return _MISSING if device.type == "cpu" else f"data lives on {device}"


def triton_obstacle(device: torch.device, dtype: torch.dtype, needs_grad: bool) -> str:
    """Why the Triton kernels cannot serve, or an empty string; the first call on a device tries them out."""
    if device.type != "cuda" and not triton_kernels.interpreted():
        return f"data lives on {device}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype != torch.float32:
        return f"rows are {str(dtype).removeprefix('torch.')}, the kernel takes float32"
    if needs_grad:
        return "added rows require a gradient"
    return "" if triton_kernels.interpreted() else trial.obstacle(device)


def cpu_kernels(device: torch.device) -> ModuleType | None:
    """The compiled module `fastfid._C` for what lies in host memory, None elsewhere or where it was not built."""
    return _C if device.type == "cpu" else None


def extension() -> ModuleType:
    """The compiled module `fastfid._C`; ImportError with the reason when it was not built."""
    if _C is None:
        raise ImportError(f"{_MISSING}; reinstall fastfid with a C++ compiler")
    module: ModuleType = _C
    return module
