"""Which code computes the log-determinants of a swap engine, and why.

cpp      fused C++ kernels of csrc/cpu: host memory
triton   fused Triton kernel, one program a candidate and node: CUDA devices, float32, no gradient
torch    batched torch operations: any device, differentiable in the added rows
"""

import importlib.util
from typing import NamedTuple

import torch

from fastfid import triton_kernels

try:
    from fastfid import _C
except ImportError as error:  # a source tree that was never built; the torch route computes the same numbers
    _C = None
    _MISSING = f"the compiled extension could not be imported ({error})"
else:
    _MISSING = ""

BACKENDS = ("auto", "cpp", "triton", "torch")

# Precisions of fastfid/linalg/iterative_roots.py that the fused product of whole matrices offers, by its own names.
# bfloat16 is missing: the kernel would also store bfloat16, and the stated errors are of float32 storage.
FUSED_PRODUCTS = {"float32": "tf32x3", "tf32": "tf32"}

# The kernel factors one Gram matrix per thread inside its cache; wider changes are left to torch's blocked LU.
MAX_KERNEL_RANK = 512


class Choice(NamedTuple):
    """A backend and the reason it was chosen."""

    name: str
    why: str


def choose(
    requested: str,
    device: torch.device,
    rank: int = 0,
    exhausting: bool = False,
    dtype: torch.dtype = torch.float32,
    needs_grad: bool = False,
) -> Choice:
    """Backend for changes of this rank on this device; ValueError when the one asked for cannot do it.

    `exhausting`: the removal alone may empty a direction.  LDLᵀ without pivoting then divides by pivots near zero and
    loses digits (measured in float64: 1e-11 of the distance's terms) that pivoted LU keeps (5e-15): auto prefers torch.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "torch":
        return Choice("torch", "asked for")
    name = requested if requested != "auto" else "cpp" if device.type == "cpu" else "triton"
    obstacle = _cpp_obstacle(device, rank) if name == "cpp" else _triton_obstacle(device, dtype, needs_grad)
    if obstacle and requested != "auto":
        raise ValueError(f"backend={requested!r} cannot be used: {obstacle}; pass backend='auto' or 'torch'")
    if obstacle:
        return Choice("torch", obstacle)
    if exhausting and requested == "auto":
        return Choice("torch", "the removal may empty a direction, where pivoted LU keeps more digits")
    home = f"data in host memory; {_C.instruction_sets()[0]} kernel" if name == "cpp" else _triton_home(device, rank)
    return Choice(name, home if requested == "auto" else home.replace("data in host memory", "asked for"))


def choose_products(
    requested: str, device: torch.device, method: str, precision: str = "float32", needs_grad: bool = False
) -> Choice:
    """Backend "triton" or "torch" of linalg/iterative_roots.py; ValueError when triton is asked for in vain.

    The C++ extension multiplies no whole matrices: "cpp", and auto in host memory, mean torch.
    """
    obstacle = "" if precision in FUSED_PRODUCTS else f"the fused product has no {precision}"
    if method == "eigh":
        obstacle = "eigenvalues are left to torch"
    obstacle = obstacle or _triton_obstacle(device, torch.float32, needs_grad)
    if requested == "triton" and obstacle:
        raise ValueError(f"backend='triton' cannot be used: {obstacle}; pass backend='auto' or 'torch'")
    if requested == "triton" or (requested == "auto" and device.type == "cuda" and not obstacle):
        return Choice("triton", f"data on {device}" if requested == "auto" else "asked for")
    if requested == "torch":
        return Choice("torch", "asked for")
    return Choice("torch", obstacle or f"whole matrices on {device} are multiplied by torch")


def _cpp_obstacle(device: torch.device, rank: int) -> str:
    """Why the C++ kernel cannot serve, or an empty string."""
    if device.type != "cpu":
        return f"data lives on {device}"
    if rank > MAX_KERNEL_RANK:
        return f"rank {rank} of the change exceeds the kernel's {MAX_KERNEL_RANK}"
    return _MISSING


def _triton_obstacle(device: torch.device, dtype: torch.dtype, needs_grad: bool) -> str:
    """Why the Triton kernel cannot serve, or an empty string."""
    if device.type != "cuda" and not triton_kernels.interpreted():
        return f"data lives on {device}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype != torch.float32:
        return f"rows are {str(dtype).removeprefix('torch.')}, the kernel takes float32"
    return "added rows require a gradient" if needs_grad else ""


def _triton_home(device: torch.device, rank: int) -> str:
    """Where the Triton route works, and what factors changes too wide for one of its programs."""
    home = f"data on {device}"
    if not rank:
        return home
    kernel = triton_kernels.load("swap_logdet")
    if rank <= kernel.MAX_K:
        return home
    obstacle = kernel.factor_obstacle(rank, torch.float32, device)
    factored = f"torch's Cholesky, as {obstacle}" if obstacle else "csrc/cuda"
    return f"{home}; {rank} rows exceed a program's {kernel.MAX_K}: Gram matrices by torch, factors by {factored}"


def cpu_kernels(device: torch.device):
    """The compiled module `fastfid._C` for what lies in host memory, None elsewhere or where it was not built."""
    return _C if device.type == "cpu" else None


def extension():
    """The compiled module `fastfid._C`; ImportError with the reason when it was not built."""
    if _C is None:
        raise ImportError(f"{_MISSING}; reinstall fastfid with a C++ compiler")
    return _C
