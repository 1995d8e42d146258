"""Multi-head self-attention over [n, tokens, heads, head_dim], by the fastest back end present.

`flash` calls the flash-attn package (float16/bfloat16 on an NVIDIA GPU), `sdpa` torch's scaled_dot_product_attention,
which picks its own flash kernel where it can, `math` the two matrix products written out, and `auto` flash where it
applies and sdpa elsewhere.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

BACKENDS = ("auto", "flash", "sdpa", "math")


def flash_available() -> bool:
    """Whether the flash-attn package and a CUDA device are both here."""
    return torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


def choose(backend: str) -> str:
    """Resolve `auto` to a concrete back end; raises ValueError where `backend` cannot run here."""
    if backend not in BACKENDS:
        raise ValueError(f"attention is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "flash" and not flash_available():
        raise ValueError("attention='flash' needs an NVIDIA GPU and `pip install flash-attn`; use 'sdpa' here")
    return ("flash" if flash_available() else "sdpa") if backend == "auto" else backend


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str = "sdpa") -> torch.Tensor:
    """softmax(q kᵀ / √head_dim) v for q, k, v [n, tokens, heads, head_dim]; returns the same shape and dtype."""
    if backend == "flash" and q.dtype in (torch.float16, torch.bfloat16):
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [n, heads, tokens, head_dim]
    if backend == "math":
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        return (weights @ v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
