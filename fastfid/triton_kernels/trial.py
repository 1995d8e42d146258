"""A trial before trust: each kernel on a small case against its reference, once for a device and its compiler.

Compilers have miscompiled kernels of this kind before (chained products on Blackwell, for one), and a machine may have
no compiler that Triton can call.  So the first use of Triton on a device compares every kernel with its `_ref`, which
takes seconds.  The verdict is kept in a file whose name holds whatever decides it: the device, its capability, the
versions of torch and triton, and the sources of this folder.  A kernel that fails is not used:
`backend.triton_obstacle` passes on the sentence, which `SwapEngine.report` returns, and stderr tells it once.

The file lies in the cache's folder (runtime/cache_folder.py).  If it cannot be written, every process makes the trial
again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.cache_folder import cache_folder
from fastfid.runtime.errors import one_line
from fastfid.runtime.input_files import json_of, read_text
from fastfid.triton_kernels import KERNELS, load

# What a kernel may differ from its reference, as a part of the result's largest entry: float32 sums of 96 products of
# random sign err by about 10·6e-8, and the factors add 40 pivots of such an error.  A miscompiled kernel is far off.
ALLOWED = 2e-5


@lru_cache
def obstacle(device: torch.device) -> str:
    """Why the kernels must not be used on this CUDA device, or an empty string; by trial or an earlier one's file."""
    if not torch.cuda.is_available():  # nothing to try it on: the device is somebody's plan
        return ""
    path = cache_file(device)
    verdict = _kept(path)
    if verdict is None:
        try:
            verdict = verdict_of(device)
        except torch.OutOfMemoryError as full:  # says nothing about a kernel: the next process tries again
            verdict = f"no memory was left for the trial of the kernels: {one_line(full)}"
            print(f"fastfid: {verdict}; torch computes instead, in this process", file=sys.stderr)
            return verdict
        _keep(path, verdict)
    if verdict:
        print(f"fastfid: {verdict}; torch computes instead (remembered in {path})", file=sys.stderr)
    return verdict


def verdict_of(device: torch.device) -> str:
    """What is wrong with the first kernel that fails on this device, in half a sentence, or an empty string.

    torch.OutOfMemoryError where the device has no room.
    """
    for name in KERNELS:
        try:
            error = error_of(name, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as caught:  # no compiler, an instruction that the device lacks …
            return f"the trial of the kernel {name} ended with {type(caught).__name__}: {one_line(caught)}"
        if not error <= 1:
            return f"the kernel {name} is wrong by {error:.1e} times what rounding allows in a trial on {device}"
    return ""


def error_of(name: str, device: torch.device) -> float:
    """Largest difference of a kernel from its reference on the small case, in units of what is allowed."""
    found, expected = _CASES[name](device)
    errors = [
        ((a.double() - b.double()).abs().max() / (ALLOWED * b.double().abs().max())).item()
        for a, b in zip(found, expected, strict=True)
    ]
    return max(errors, key=lambda error: error if error == error else float("inf"))  # NaN is the largest


# --- the small cases --------------------------------------------------------------------------------------------------


def _normal(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _plan_grams(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    kernel, w, functions = load("plan_grams"), _normal(device, 2, 40, 96), _normal(device, 150, seed=1)
    first, stop = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 32], [96, 86]))
    given = w, functions, first, stop, torch.tensor([0, 96], device=device)
    return [kernel.plan_grams(*given)], [kernel.plan_grams_ref(*given)]


def _ldl_logdet(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    kernel, rows = load("ldl_logdet"), _normal(device, 4, 40, 96).double() / 60
    grams = (rows @ rows.mT).unflatten(0, (2, 2)).float()
    found, expected = kernel.ldl_logdet(grams, 20), kernel.ldl_logdet_ref(grams, 20)
    # inverse iteration is no eigenvalue to the last digit: a tenth of it counts as right
    near = (found.remaining / expected.remaining - 1).abs() < 0.1
    return [found.logdets, near], [expected.logdets, torch.ones_like(near)]


def _centre_sums(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    kernel, mean = load("centre_sums"), _normal(device, 40, seed=2).double()
    removed = torch.tensor([[1, 7], [8, 0]], device=device)
    given = _normal(device, 2, 3, 40), _normal(device, 9, 40, seed=1), removed, mean, mean
    return list(kernel.centre_sums(*given)), list(kernel.centre_sums_ref(*given))


def _project(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    kernel, mean = load("project"), _normal(device, 70, seed=2).double()
    given = _normal(device, 50, 70), mean, _normal(device, 70, 33, seed=1)
    return [kernel.project(*given)], [kernel.project_ref(*given)]


def _moments(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    kernel, centre = load("moments"), torch.zeros(70, dtype=torch.float64, device=device)
    given = _normal(device, 90, 70) + 1, centre
    return list(kernel.centred_moments(*given)), list(kernel.centred_moments_ref(*given))


def _rank_update(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    kernel, matrix = load("rank_update"), _normal(device, 70, 70)
    given = (matrix + matrix.T), _normal(device, 2, 3, 70, seed=1), _normal(device, 2, 4, 70, seed=2)
    return [kernel.rank_update(*given)], [kernel.rank_update_ref(*given)]


def _newton_schulz(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    kernel, rows = load("newton_schulz"), _normal(device, 1, 200, 70)
    matrix, steps = rows.mT @ rows / 1000, [(1.5, -0.5, 0.0)] * 2
    *_, found = kernel.iterates(matrix, steps)
    *_, expected = kernel.iterates_ref(matrix.double(), steps)
    return [found[0]], [expected[0]]


_CASES: dict[str, Callable[[torch.device], tuple[list[Tensor], list[Tensor]]]] = {
    "plan_grams": _plan_grams,
    "ldl_logdet": _ldl_logdet,
    "centre_sums": _centre_sums,
    "project": _project,
    "moments": _moments,
    "rank_update": _rank_update,
    "newton_schulz": _newton_schulz,
}


# --- the verdict's file -----------------------------------------------------------------------------------------------


def cache_file(device: torch.device) -> Path:
    """Where the verdict on this device is kept; another device, compiler or source has another file."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    decided_by = [properties.name, str((properties.major, properties.minor)), torch.__version__, triton.__version__]
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256("\n".join(decided_by).encode() + b"".join(path.read_bytes() for path in sources))
    return cache_folder() / f"kernel-trial-{digest.hexdigest()[:16]}.json"


def _kept(path: Path) -> str | None:
    """The verdict in the file; None if there is none that can be read."""
    try:
        verdict = json_of(read_text(path))["verdict"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict if isinstance(verdict, str) else None


def _keep(path: Path, verdict: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(json.dumps({"verdict": verdict}).encode()))
    except OSError:  # a read-only home: the next process makes its own trial
        return
