"""Which code computes the candidates of a call, and why; chosen once, before the first of them.

cpp      fused C++ kernels of csrc/cpu: host memory
triton   Triton kernels, with csrc/cuda where it was built: CUDA devices, float32, no gradient
torch    batched torch operations: any device, differentiable in the added rows
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastfid import backend, triton_kernels
from fastfid.backend import Choice, choose_products
from fastfid.swap.options import EngineOptions
from fastfid.swap.prepared_reference import PreparedReference

BACKENDS = ("auto", "cpp", "triton", "torch")

# Widest change of the C++ kernel, which factors one Gram matrix per thread in its cache; torch's blocked LU takes
# others.
MAX_KERNEL_RANK = 512


@dataclass(frozen=True)
class Route:
    """How the candidates of one call are computed.

    method           as in `EngineOptions`
    backend          "cpp" | "triton" | "torch", of the log-determinants or of whole d×d products
    dtype            of the projected rows: float64 where `singular`
    singular         shift the spectrum (swap/nodes.py): Λ has lost a direction, or the removal must lose one
    rows_by_cpp      the extension centres the rows
    gradient_by_cpp  the extension computes the gradient along with the change
    choice           the backend and why, for the report; None leaves the report's
    pivoted          by torch's pivoted LU, with room for its copies
    """

    method: str
    backend: str
    dtype: torch.dtype
    singular: bool
    rows_by_cpp: bool = False
    gradient_by_cpp: bool = False
    choice: Choice | None = None
    pivoted: bool = False

    def for_rare(self) -> Route:
        """The route of candidates that lose a rare direction: singular, and by pivoted LU."""
        return replace(
            self,
            backend="torch",
            dtype=torch.float64,
            singular=True,
            rows_by_cpp=self.rows_by_cpp and not self.gradient_by_cpp,
            gradient_by_cpp=False,
            choice=None,
            pivoted=True,
        )


def route_of(options: EngineOptions, prepared: PreparedReference, m_r: int, m_a: int, needs_grad: bool) -> Route:
    """The route of swaps of m_r rows for m_a; ValueError where the requested backend cannot take it."""
    singular = prepared.is_singular(m_r)
    dtype = torch.float64 if singular else options.dtype
    if options.method == "eigh":
        return Route(options.method, "torch", dtype, singular)
    if options.method != "logdet":
        precision = str(dtype).removeprefix("torch.")
        choice = choose_products(options.backend, prepared.device, options.method, precision, needs_grad)
        return Route(options.method, choice.name, dtype, singular, choice=choice)
    exhausting = prepared.is_exhausted_by(m_r)
    choice = choose(options.backend, prepared.device, m_r + m_a, exhausting, dtype, needs_grad)
    # autograd takes the gradients of single rows, for which the extension has other kernels
    fused = needs_grad and choice.name == "cpp" and max(m_r, m_a) > 1 and m_a > 0 and prepared.rank > 0
    if needs_grad and choice.name == "cpp" and not fused:
        choice = Choice("torch", "gradients of single rows are left to autograd")
    rows_by_cpp = options.cpp and not needs_grad or fused
    return Route(options.method, choice.name, dtype, singular, rows_by_cpp, fused, choice)


def choose(
    requested: str,
    device: torch.device,
    rank: int = 0,
    exhausting: bool = False,
    dtype: torch.dtype = torch.float32,
    needs_grad: bool = False,
) -> Choice:
    """Backend for changes of this rank on this device; ValueError if the requested one cannot compute them.

    `exhausting`: the removal alone may empty a direction.  LDLᵀ without pivoting then divides by pivots near zero and
    loses digits (measured in float64: 1e-11 of the distance's terms) that pivoted LU keeps (5e-15), so auto prefers
    torch.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "torch":
        return Choice("torch", "asked for")
    name = requested if requested != "auto" else "cpp" if device.type == "cpu" else "triton"
    obstacle = _cpp_obstacle(device, rank) if name == "cpp" else backend.triton_obstacle(device, dtype, needs_grad)
    if obstacle and requested != "auto":
        raise ValueError(f"backend={requested!r} cannot be used: {obstacle}; pass backend='auto' or 'torch'")
    if obstacle:
        return Choice("torch", obstacle)
    if exhausting and requested == "auto":
        return Choice("torch", "the removal may empty a direction, where pivoted LU keeps more digits")
    home = _cpp_home() if name == "cpp" else _triton_home(device, rank)
    return Choice(name, home if requested == "auto" else home.replace("data in host memory", "asked for"))


def _cpp_obstacle(device: torch.device, rank: int) -> str:
    """Why the C++ kernel cannot serve changes of this rank, or an empty string."""
    if device.type == "cpu" and rank > MAX_KERNEL_RANK:
        return f"rank {rank} of the change exceeds the kernel's {MAX_KERNEL_RANK}"
    return backend.cpp_obstacle(device)


def _cpp_home() -> str:
    """Where the C++ route works."""
    return f"data in host memory; {backend.extension().instruction_sets()[0]} kernel"


def _triton_home(device: torch.device, rank: int) -> str:
    """Where the Triton route works, and what factors changes that are too wide for one of its programs."""
    home = f"data on {device}"
    if not rank:
        return home
    kernel = triton_kernels.load("ldl_logdet")
    if rank <= kernel.MAX_K:
        return home
    obstacle = kernel.factor_obstacle(rank, torch.float32, device)
    factored = f"torch's Cholesky, as {obstacle}" if obstacle else "csrc/cuda"
    return f"{home}; {rank} rows exceed a program's {kernel.MAX_K}: Gram matrices by torch, factors by {factored}"
