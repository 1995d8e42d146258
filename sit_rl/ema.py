"""Exponential moving averages of a module's parameters, several at once, and any other one made from them afterwards.

Power-function averages (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv
2312.02696, §3) weigh the weights of update τ by τ^γ: with t updates done,

    θ̄(t) = β θ̄(t−1) + (1 − β) θ(t),   β = (1 − 1/t)^(γ+1),

and the profile's standard deviation is σ_rel·t with σ_rel² = (γ+1)/((γ+2)²(γ+3)). Snapshots of two of them taken
through a run give, by least squares over their profiles, the average of any other σ_rel after the run:

    python -m sit_rl.ema runs/NAME --sigma-rel 0.1 --out ema-0.1.safetensors
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sit_rl.files.paths import reading, require_paths
from sit_rl.models.loading import read_safetensors, write_safetensors


class EMA:
    """Keeps `module`, a frozen copy whose parameters follow θ̄ ← decay·θ̄ + (1 − decay)·θ."""

    def __init__(self, source: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay is {decay}; it must be in [0, 1)")
        self.decay = decay
        self.module = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, decay: float | None = None) -> None:
        """Move towards `source`, by `decay` where given, else by the average's own."""
        weight = 1 - (self.decay if decay is None else decay)
        torch._foreach_lerp_(_local(self.module), _local(source), weight)


def _local(module: nn.Module) -> list[torch.Tensor]:
    """The parameters' data, of sharded ones this rank's part."""
    return [p.to_local() if hasattr(p, "to_local") else p.data for p in module.parameters()]


class PowerEMA(EMA):
    """The power-function average of relative width `sigma_rel`; see the module's text."""

    def __init__(self, source: nn.Module, sigma_rel: float):
        super().__init__(source, 0.0)
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)

    def update_after(self, source: nn.Module, updates: int) -> None:
        """Move towards `source`, the weights after `updates` updates (from 1)."""
        self.update(source, decay=(1 - 1 / updates) ** (self.gamma + 1))


def gamma_of(sigma_rel: float) -> float:
    """The exponent γ > −1 whose profile has relative standard deviation `sigma_rel`, in (0, 1/√12]: γ ≥ 0.

    With s = σ_rel⁻², (γ+2)²(γ+3) = s(γ+1) is a cubic, of which the largest real root is meant.
    """
    widest = 12**-0.5  # γ = 0: every update weighs the same
    if not 0 < sigma_rel <= widest:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; it must be in (0, {widest:.4f}], where the latter is the plain mean"
        )
    s = sigma_rel**-2
    roots = np.roots([1, 7, 16 - s, 12 - s])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-6 * np.abs(roots).max()].real.max()))


def profile_product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """∫ p_a p_b dτ of two profiles p(τ) = (γ+1) τ^γ / t^(γ+1) on [0, t], each given as (γ, t).

    = (γ_a+1)(γ_b+1)/(γ_a+γ_b+1) · m^(γ_a+γ_b+1) / (t_a^(γ_a+1) t_b^(γ_b+1)), m = min(t_a, t_b); in logarithms, as
    narrow profiles have γ of hundreds.
    """
    (ga, ta), (gb, tb) = a, b
    log = (ga + gb + 1) * np.log(min(ta, tb)) - (ga + 1) * np.log(ta) - (gb + 1) * np.log(tb)
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * float(np.exp(log))


def posthoc_coefficients(snapshots: list[tuple[float, float]], target: tuple[float, float]) -> np.ndarray:
    """Weights [n] of the snapshots' profiles, each (γ, t), whose sum is nearest in L² to the target's: float64."""
    gram = np.array([[profile_product(a, b) for b in snapshots] for a in snapshots])
    return np.linalg.lstsq(gram, np.array([profile_product(a, target) for a in snapshots]), rcond=None)[0]


def synthesise(folder: Path, sigma_rel: float) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The average of width `sigma_rel` at the last of the snapshots in `folder`/ema: (tensors, the file's metadata)."""
    require_paths([("run", folder)])
    paths = sorted((folder / "ema").glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"{folder}/ema holds no snapshots: train with --ema-power 0.05 0.1 --ema-snapshot-every 1"
        )
    headers = [read_safetensors(path)[1] for path in paths]
    foreign = next((p for p, h in zip(paths, headers, strict=True) if not {"sigma_rel", "updates"} <= h.keys()), None)
    if foreign is not None:
        raise ValueError(f"{foreign} is no snapshot of a power-function average; move it elsewhere")
    profiles = [(gamma_of(float(h["sigma_rel"])), float(h["updates"])) for h in headers]
    last = max(t for _, t in profiles)
    weights = posthoc_coefficients(profiles, (gamma_of(sigma_rel), last))
    total: dict[str, torch.Tensor] = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, value in read_safetensors(path)[0].items():
            part = weight * value.double()
            total[name] = total[name] + part if name in total else part
    metadata = {k: v for k, v in headers[-1].items() if k != "sigma_rel"} | {"sigma_rel": str(sigma_rel)}
    return {name: value.float() for name, value in total.items()}, metadata


def main() -> None:
    """Command line of the post-hoc average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with --ema-power and --ema-snapshot-every")
    parser.add_argument("--sigma-rel", type=float, required=True, help="relative width σ_rel of the average to make")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    arguments = parser.parse_args()
    try:
        if not arguments.out.parent.is_dir():
            raise FileNotFoundError(f"the folder of --out {arguments.out} does not exist; make it, or choose another")
        tensors, metadata = synthesise(arguments.run, arguments.sigma_rel)
        with reading("--out", arguments.out):
            write_safetensors(arguments.out, tensors, metadata)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(arguments.out)


if __name__ == "__main__":
    main()
