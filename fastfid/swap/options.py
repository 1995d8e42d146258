"""The settings of a swap engine, with their defaults and their checks."""

from dataclasses import dataclass

import torch

from fastfid.linalg.eigensolver import EIGENSOLVERS

METHODS = ("logdet", "eigh", "newton_schulz", "polar_express")

# Chosen so that the error stays below 1e-4 (float32) and 1e-7 (float64) of the standard deviation over candidates.
DEFAULT_TOL = {torch.float32: 2e-6, torch.float64: 1e-10}

# Bytes of temporary memory: in host memory see HOST_CHUNK; on a device 128 swaps of 50 images at d = 2048 take 1 GB,
# which leaves room for wider ones in a single chunk.
DEFAULT_WORKSPACE = {"cpu": 256 << 20, "cuda": 2 << 30}


@dataclass(frozen=True)
class EngineOptions:
    """Settings of one `SwapEngine`, which documents them; ValueError for one that is out of its range.

    backend      as requested: "auto" | "cpp" | "triton" | "torch"
    cpp          whether the request and the device lead to the compiled extension
    eigensolver  one of EIGENSOLVERS
    """

    tol: float
    dtype: torch.dtype
    method: str
    workspace: int
    backend: str
    cpp: bool
    eigensolver: str = "device"

    def __post_init__(self) -> None:
        if self.dtype not in DEFAULT_TOL:
            raise ValueError(
                f"dtype must be torch.float32 or torch.float64, got {self.dtype}; less cannot resolve a swap"
            )
        if not 0 < self.tol < 1:
            raise ValueError(
                f"tol must lie strictly between 0 and 1, got {self.tol}; None takes the default of the dtype"
            )
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.eigensolver not in EIGENSOLVERS:
            raise ValueError(f"eigensolver must be one of {', '.join(EIGENSOLVERS)}, got {self.eigensolver!r}")
        if self.workspace < 1:
            raise ValueError(
                f"workspace must be a positive number of bytes, got {self.workspace}; "
                "None takes 256 MiB in host memory and 2 GiB on a device"
            )
