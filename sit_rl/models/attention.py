"""Multi-head self-attention over [n, tokens, heads, head_dim] with the fastest back end that is installed.

    flash   the flash-attn packages, in float16 or bfloat16 on an NVIDIA GPU: the first version for this GPU that is
            installed and passes a trial on a small input, forward and backward
    sdpa    torch's scaled_dot_product_attention, which chooses a kernel by device, type and head size; sdpa-flash,
            sdpa-efficient, sdpa-cudnn and sdpa-math fix the kernel
    math    the two matrix products written out
    auto    flash if it can run, else sdpa

The flash kernels need a number of channels per head that is a multiple of 8, such as the 72 of SiT-XL. Versions 2 and 3
compute these in their kernels for 96, version 4 in its kernel for 80, torch by the same rule. The CPU kernel takes any
number. Other sizes are padded with zeros to a multiple of 8, which changes neither q·k nor the outputs that are kept.
float32 never goes to a flash package: sdpa computes such a call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastfid.runtime.errors import one_line

BACKENDS = ("auto", "flash", "sdpa", "math")
SDPA_KERNELS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
# flash_attn_func of a package: (q, k, v, softmax_scale=…) → outputs, some versions with the log-sum beside them.
FlashFunction = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]
HALF = (torch.float16, torch.bfloat16)
# Every flash kernel needs channels per head that are a multiple of this: 16 bytes of a two-byte type.
ALIGNMENT = 8
# Shape [n, tokens, heads] of the trial of a flash package, and its largest allowed error. Outputs are means of values
# of unit variance; operands and outputs are rounded to bfloat16, with a relative error of 2⁻⁹.
TRIAL_SHAPE, TRIAL_ERROR = (1, 32, 2), 2e-2


class Heads(Protocol):
    """Shape of a model, as far as attention depends on it."""

    @property
    def width(self) -> int:
        """Channels of a token."""

    @property
    def heads(self) -> int:
        """Attention heads."""


class HasHeads(Protocol):
    """A model with a shape."""

    @property
    def config(self) -> Heads:
        """The shape."""


@dataclass(frozen=True)
class FlashPackage:
    """One version of FlashAttention: the module of flash_attn_func, how to install it, and its GPUs."""

    module: str
    install: str
    majors: tuple[int, ...]  # of the CUDA compute capability: 8 Ampere and Ada, 9 Hopper, 10 to 12 Blackwell


# In order of preference, for a GPU that several versions support.
FLASH = {
    "flash-attn-3": FlashPackage("flash_attn_interface", "hopper/ of Dao-AILab/flash-attention, from source", (9,)),
    "flash-attn-4": FlashPackage("flash_attn.cute", "pip install 'fastfid[flash4]'", (8, 9, 10, 11, 12)),
    # its setup imports torch, which an isolated build does not have
    "flash-attn-2": FlashPackage("flash_attn", "pip install --no-build-isolation 'fastfid[flash]'", (8, 9, 10, 12)),
}


def choose(
    backend: str = "auto",
    head_dim: int = 72,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | None = None,
) -> str:
    """The kernel of a back end on this machine, for `SiT.set_attention`; `explain` gives the reason.

    backend   one of BACKENDS, FLASH or SDPA_KERNELS
    head_dim  channels a head
    dtype     of the products: bfloat16 under autocast, for weights of any dtype
    device    default: the current CUDA device, if there is one

    ValueError, with the reason, if `backend` is unknown or cannot run.
    """
    return _decide(backend, head_dim, dtype, _device_type(device))[0]


def explain(
    backend: str = "auto",
    head_dim: int = 72,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | None = None,
) -> str:
    """One line for users: the choice of `choose` for the same arguments, and why no faster kernel is used."""
    where = _device_type(device)
    name, reason = _decide(backend, head_dim, dtype, where)
    kernel = f", its {_sdpa_choice(head_dim, dtype, where)} kernel" if name == "sdpa" else ""
    return f"{name}{kernel}, {head_dim} channels a head, {str(dtype).removeprefix('torch.')} on {where}: {reason}"


def attention_arguments(
    backend: str, model: HasHeads, precision: str, device: torch.device
) -> tuple[str, int, torch.dtype, torch.device]:
    """Arguments of `choose` and `explain` for a model and the precision that it runs in."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return backend, model.config.width // model.config.heads, dtype, device


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str = "sdpa") -> torch.Tensor:
    """softmax(q kᵀ / √head_dim) v for q, k, v [n, tokens, heads, head_dim]; returns the same shape and dtype.

    `backend` is what `choose` returned.
    """
    if not len(q):  # a rank without samples; kernels refuse an empty batch
        backend = "math"
    if backend in FLASH and q.dtype in HALF:
        if backend not in _FUNCTIONS:
            load(backend)
        return _flash(_FUNCTIONS[backend], q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [n, heads, tokens, head_dim]
    if backend == "math":
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        return (weights @ v).transpose(1, 2)
    if backend in SDPA_KERNELS:
        with sdpa_kernel(SDPA_KERNELS[backend]):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _flash(function: FlashFunction, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Call a package's function on heads padded to its alignment; a log-sum that it may return is dropped."""
    size = q.shape[-1]
    padding = -size % ALIGNMENT
    if padding:
        q, k, v = (F.pad(x, (0, padding)) for x in (q, k, v))
    result = function(q, k, v, softmax_scale=size**-0.5)
    out = result[0] if isinstance(result, tuple) else result
    return out[..., :size] if padding else out


def load(backend: str) -> None:
    """Import the package of a flash back end; others need no import. An error of the import is raised as it is.

    `SiT.set_attention` calls it, so a compiled block finds the function in a dictionary. An import, or a call of a
    function with a cache, would break its graph.
    """
    if backend in FLASH and backend not in _FUNCTIONS:
        _FUNCTIONS[backend] = cast(FlashFunction, importlib.import_module(FLASH[backend].module).flash_attn_func)


_FUNCTIONS: dict[str, FlashFunction] = {}


@lru_cache
def _decide(backend: str, head_dim: int, dtype: torch.dtype, where: str) -> tuple[str, str]:
    """(kernel, reason)."""
    names = (*BACKENDS, *FLASH, *SDPA_KERNELS)
    if backend not in names:
        raise ValueError(f"attention is {backend!r}; choose one of {', '.join(names)}")
    if backend not in ("auto", "flash", *FLASH):
        return backend, "as asked"
    asked = [backend] if backend in FLASH else list(FLASH)
    obstacles = {}
    for name in asked:
        obstacles[name] = _obstacle(name, head_dim, dtype, where)
        if obstacles[name] is None:
            return name, "installed, and right in a trial on this GPU"
    reason = obstacles[asked[0]]
    if len(set(obstacles.values())) > 1:
        reason = "; ".join(f"{name} {obstacle}" for name, obstacle in obstacles.items())
    if backend == "auto":
        return "sdpa", f"flash {reason}"
    raise ValueError(f"attention is {backend!r}, but {backend} {reason}; use 'auto' or 'sdpa' here")


def _obstacle(name: str, head_dim: int, dtype: torch.dtype, where: str) -> str | None:
    """Why a flash package cannot be used, as the end of a sentence; None if it can be used."""
    package = FLASH[name]
    if where != "cuda":
        return "needs an NVIDIA GPU"
    if dtype not in HALF:
        return "needs float16 or bfloat16"
    major = torch.cuda.get_device_capability()[0]
    if major not in package.majors:
        return f"is not for this GPU's compute capability {major}.x"
    try:
        load(name)
    except ModuleNotFoundError:
        return f"is not installed ({package.install})"
    except Exception as error:  # a binary for another torch, another package of the same name, …
        return f"does not import ({one_line(error, 100)})"
    return _trial(_FUNCTIONS[name], head_dim, dtype, where)


def _trial(function: FlashFunction, head_dim: int, dtype: torch.dtype, where: str) -> str | None:
    """Compare outputs and gradients with `math` in float32 on a small input; the end of a sentence if they differ."""
    random = torch.Generator(where).manual_seed(0)
    given = torch.randn(3, *TRIAL_SHAPE, head_dim, generator=random, device=where)
    results = []
    try:
        for kernel, kind in (("math", torch.float32), ("flash", dtype)):
            q, k, v = inputs = [x.to(dtype).to(kind).requires_grad_() for x in given]
            with torch.enable_grad():
                out = attention(q, k, v, "math") if kernel == "math" else _flash(function, q, k, v)
                gradients = torch.autograd.grad(out.float().square().sum() / 2, inputs)
            results.append([x.detach().float() for x in (out, *gradients)])
    except Exception as error:
        return f"fails for {head_dim} channels a head ({one_line(error, 100)})"
    worst = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
    return None if worst <= TRIAL_ERROR else f"is wrong by {worst:.1e} for {head_dim} channels a head"


def _sdpa_choice(head_dim: int, dtype: torch.dtype, where: str) -> str:
    """The kernel that torch's sdpa takes for such heads: flash, efficient, cudnn or math."""
    q = torch.empty(1, 1, 16, head_dim, dtype=dtype, device=where)
    choice = SDPBackend(torch._fused_sdp_choice(q, q, q))
    return next(name.removeprefix("sdpa-") for name, kernel in SDPA_KERNELS.items() if kernel == choice)


def _device_type(device: torch.device | None) -> str:
    return device.type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
