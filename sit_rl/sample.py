"""Generate images: a folder of PNG files, or an .npz for ADM's evaluator.

    python -m sit_rl.sample --images 100                            the embedded model, in seconds on a CPU
    python -m sit_rl.sample --checkpoint SiT-XL-2-256x256.pt --vae sd-vae-ft-ema/ --out samples.npz --images 50000 \\
        --sampler sit-sde --steps 250
    torchrun --nproc-per-node 8 -m sit_rl.sample …                  the same images, divided among GPUs
    python -m sit_rl.sample --checkpoint runs/NAME …                a run's averaged weights

Image i depends on (seed, i) and not on the number of ranks. It is image i of an evaluation with the same seed. After an
interruption, the same command resumes.

--sampler is a name or KIND-METHOD, with fields of SamplerConfig after commas. Names: ode and sde (second order; few
steps suffice for the embedded model), sit-ode, sit-sde and dit-ddpm (the official samplers). Example:
sde-euler,steps=100,diffusion=constant
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fastfid.runtime.atomic_files import write_atomically
from sit_rl.command_line import parse_briefly, run_on_ranks
from sit_rl.components.image_sets import tile
from sit_rl.generation.generator import load_generator
from sit_rl.generation.make_samples import make_samples
from sit_rl.generation.recipe import (
    Recipe,
    check_options,
    parse_sampler,
)
from sit_rl.generation.sample_files import SampleFiles
from sit_rl.ranks.messages import say
from sit_rl.ranks.process_group import is_main
from sit_rl.runs.log import GRID_COLUMNS

# Flags of --help; --help-all lists all.
MAIN_FLAGS = ("checkpoint", "vae", "images", "out", "sampler", "steps", "guidance", "seed", "grid", "batch")


@dataclass(frozen=True)
class SampleConfig(Recipe):
    """A recipe, its sampler, and where its images go."""

    sampler: str | None = None
    """ode, sde, sit-ode, sit-sde, dit-ddpm, or KIND-METHOD as above; default: ode for 1×28×28 images and for models of
    your own images, else sit-sde, dit-ddpm for a DiT, a pipeline's own, that of the evaluations for a run of --model"""
    steps: int | None = None
    """of the sampler; default: the sampler's"""
    guidance: float | None = None
    """classifier-free guidance scale; default: the sampler's, 1 for none"""
    out: Path = Path("runs/samples")
    """a folder for PNG files, or FILE.npz"""
    grid: Path | None = None
    """also a PNG of the first images, ten in a row"""
    threads: int = 0
    """CPU threads of a rank; 0: the cores divided among the ranks"""


def main(argv: list[str] | None = None) -> None:
    """Parse and run. An expected error is one sentence and exit status 2."""
    run_on_ranks(lambda: parse_briefly(SampleConfig, argv, __doc__, MAIN_FLAGS, "sit-rl sample"), run)


def run(config: SampleConfig, device: torch.device) -> None:
    """Check everything, sample the missing images and complete the output."""
    check_options(config)
    if config.sampler is not None:
        parse_sampler(config.sampler, config.steps, config.guidance)  # so that its errors come before the model is read
    if config.grid is not None:
        check_grid(config.grid)
    made = load_generator(config, device)
    sampler = parse_sampler(config.sampler or made.samplers[0], config.steps, config.guidance)
    files = make_samples(made, config, sampler, config.out)
    if config.grid is not None and is_main():
        write_grid(config.grid, files)
        say(f"grid        {config.grid}")


def check_grid(path: Path) -> None:
    """ValueError for a path of --grid that could not be written at the end."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"--grid {path} is not the name of a .png file; choose one")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"the folder of --grid {path} does not exist; create it first")


def write_grid(path: Path, files: SampleFiles) -> None:
    """Write a PNG of the first images, GRID_COLUMNS per row."""
    picture = tile(files.first(min(GRID_COLUMNS**2, files.count)).transpose(0, 3, 1, 2), GRID_COLUMNS)
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, "PNG"))


if __name__ == "__main__":
    main()
