"""Make a power-function average of any width after a run, from the snapshots that the run has kept.

Snapshots of two averages (`sit_rl.models.averages`) during a run determine the average of any other σ_rel, by least
squares over their profiles (Karras et al. 2024, arXiv 2312.02696, §3):

    python -m sit_rl.ema runs/NAME --sigma-rel 0.1 --out ema-0.1.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tyro

from fastfid.cli.command_line import parse
from sit_rl.command_line import run_command
from sit_rl.files.paths import reading, require_paths
from sit_rl.files.tensor_files import read_safetensors, write_safetensors
from sit_rl.models.averages import gamma_of
from sit_rl.ranks.messages import say


def profile_product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """∫ p_a p_b dτ of two profiles p(τ) = (γ+1) τ^γ / t^(γ+1) on [0, t], each given as (γ, t).

    = (γ_a+1)(γ_b+1)/(γ_a+γ_b+1) · m^(γ_a+γ_b+1) / (t_a^(γ_a+1) t_b^(γ_b+1)) with m = min(t_a, t_b). It is computed with
    logarithms, because γ of narrow profiles is in the hundreds.
    """
    (ga, ta), (gb, tb) = a, b
    log = (ga + gb + 1) * np.log(min(ta, tb)) - (ga + 1) * np.log(ta) - (gb + 1) * np.log(tb)
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * float(np.exp(log))


def posthoc_coefficients(snapshots: list[tuple[float, float]], target: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Weights float64 [n] of the snapshots' profiles, each (γ, t), whose sum is nearest to the target's in L²."""
    gram = np.array([[profile_product(a, b) for b in snapshots] for a in snapshots])
    products = np.array([profile_product(a, target) for a in snapshots])
    weights: npt.NDArray[np.float64] = np.linalg.lstsq(gram, products, rcond=None)[0]
    return weights


def synthesise(folder: Path, sigma_rel: float) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of the average of width `sigma_rel` at the last snapshot in `folder`/ema."""
    require_paths([("run", folder)])
    paths = sorted((folder / "ema").glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"{folder}/ema holds no snapshots: train with --ema-power 0.05 0.1 --ema-snapshot-every 1"
        )
    headers = [read_safetensors(path)[1] for path in paths]
    foreign = next((p for p, h in zip(paths, headers, strict=True) if not {"sigma_rel", "updates"} <= h.keys()), None)
    if foreign is not None:
        raise ValueError(f"{foreign} is not a snapshot of a power-function average; move it elsewhere")
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


@dataclass(frozen=True)
class EMAArguments:
    """Arguments of the command."""

    run: tyro.conf.Positional[Path]
    """folder of a run with --ema-power and --ema-snapshot-every"""
    sigma_rel: float
    """relative width σ_rel of the average to make"""
    out: Path
    """.safetensors file to write"""


def main(argv: list[str] | None = None) -> None:
    """Parse and write the average. An expected error is one sentence."""
    flags = ("--sigma-rel", "--out")
    run_command(lambda: write_average(parse(EMAArguments, argv, description=__doc__, flags=flags)))


def write_average(arguments: EMAArguments) -> None:
    """Write the average and print its path."""
    if not arguments.out.parent.is_dir():
        raise FileNotFoundError(f"the folder of --out {arguments.out} does not exist; make it, or choose another")
    tensors, metadata = synthesise(arguments.run, arguments.sigma_rel)
    with reading("--out", arguments.out):
        write_safetensors(arguments.out, tensors, metadata)
    say(str(arguments.out))


if __name__ == "__main__":
    main()
