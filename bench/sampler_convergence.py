"""Held-out FD of a model against the number of sampler steps: where has it converged?

    python bench/sampler_convergence.py [--checkpoint FILE] [--images 5000] > bench/results/sampler_convergence.csv

Every row uses the same starting noise and labels, as the trainer's evaluations do; `relative` is the FD's distance from
that of the finest grid of the same sampler.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from sit_rl.config import PRESETS
from sit_rl.distributed import initialise
from sit_rl.evaluate import distance
from sit_rl.noise import Stream, balanced_labels
from sit_rl.rollout import generate
from sit_rl.samplers import SamplerConfig
from sit_rl.setting import build_setting

# The last of each list is the yardstick.
GRIDS = {
    ("ode", "heun", 1.0): (4, 6, 8, 10, 12, 16, 32),
    ("sde", "heun", 1.5): (8, 12, 16, 24, 48),
    ("sde", "euler", 1.0): (20, 50, 100),
}


def main() -> None:
    """One CSV line per sampler and step count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="default: the embedded base model")
    parser.add_argument("--images", type=int, default=5_000)
    arguments = parser.parse_args()
    config = replace(PRESETS["fashion"][1], checkpoint=arguments.checkpoint)
    setting = build_setting(config, initialise())
    labels = balanced_labels(arguments.images, setting.num_classes)
    print("sampler,method,power,steps,evaluations,fd,relative", flush=True)
    for (kind, method, power), counts in GRIDS.items():
        finest = None
        for steps in reversed(counts):
            sampler = SamplerConfig(kind, method, steps, power)
            made = generate(
                setting, setting.model, labels, sampler, seed=0, step=0, batch=config.rollout_batch,
                initial=Stream.EVALUATE, noisy=Stream.EVALUATE_SDE, label=str(sampler),
            )  # fmt: skip
            fd = distance(setting.heldout, made.features)
            finest = finest or fd
            print(
                f"{kind},{method},{power},{steps},{sampler.evaluations()},{fd:.4f},{fd / finest - 1:+.2%}", flush=True
            )


if __name__ == "__main__":
    main()
