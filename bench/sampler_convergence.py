"""FD of the base model on held-out images against the number of sampler steps: where has the sampler converged?

    python bench/sampler_convergence.py [--images 2000] > bench/results/sampler_convergence.csv

All rows start from the same noise and labels.  The SDE's rows also follow the same Brownian paths: the noise of a
coarse step is the sum of the noise of the fine steps inside it.  So rows differ only by their time grids.  Two
independent sets of paths differ by much more: the FD of 1,000 images changes by about a tenth.  `relative` is the
difference from the finest grid.  The last two ODE rows use Heun's method with uniform steps, which
follows the ODE up to t = 1.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from sit_rl.components.build import build_components
from sit_rl.presets import PRESETS
from sit_rl.ranks.process_group import initialise
from sit_rl.rollout import bind
from sit_rl.sampling.ode_and_sde_steps import sample, sigma_variance
from sit_rl.sampling.random_streams import Stream, sample_normal
from sit_rl.sampling.sampler_config import SamplerConfig, time_grid
from sit_rl.training.network_judge import distance

# Finest first. For the SDE, the number of noisy steps (steps − 1) of a coarse row divides that of the finest row, so
# all rows can share paths.
ODE_STEPS, SDE_STEPS = (45, 16, 12, 8), (118, 40, 14)
HEUN_STEPS = (16, 32)
BATCH = 100


def path_noise(fine: torch.Tensor, sampler: SamplerConfig, finest: SamplerConfig):
    """A function from a coarse step to its standard normal noise: the sum over the `fine` [n, steps, ...] inside it."""
    grids = [time_grid(c)[:-1] for c in (sampler, finest)]
    ratio = (len(grids[1]) - 1) // (len(grids[0]) - 1)

    def noise(i: int) -> torch.Tensor:
        inside = range(i * ratio, (i + 1) * ratio)
        total = sum(math.sqrt(sigma_variance(grids[1][j], grids[1][j + 1])) * fine[:, j] for j in inside)
        return total / math.sqrt(sigma_variance(grids[0][i], grids[0][i + 1]))

    return noise


@torch.no_grad()
def main() -> None:
    """Prints one CSV line per sampler and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="default: the embedded base model")
    parser.add_argument("--images", type=int, default=2_000)
    arguments = parser.parse_args()
    config = PRESETS["fashion"][1].changed(checkpoint=arguments.checkpoint)
    components = build_components(config, initialise())
    labels = components.conditions.balanced(arguments.images)
    print("kind,method,power,steps,fd,relative", flush=True)
    for default, counts in ((config.evaluation.ode, ODE_STEPS), (config.evaluation.sde, SDE_STEPS)):
        samplers = [replace(default, steps=steps) for steps in counts]
        if default.kind == "ode":
            samplers += [SamplerConfig("ode", "heun", steps) for steps in HEUN_STEPS]
        features = {sampler: [] for sampler in samplers}
        for start in tqdm(range(0, arguments.images, BATCH), desc=default.kind):
            rows = range(start, min(start + BATCH, arguments.images))
            x = sample_normal(0, Stream.EVALUATE, 0, rows, components.sample_shape)
            fine = None
            if default.kind == "sde":
                fine = sample_normal(0, Stream.EVALUATE_SDE, 0, rows, (counts[0] - 1, *components.sample_shape))
            velocity = bind(components.model, labels[rows.start : rows.stop])
            for sampler in samplers:
                noise = None if fine is None else path_noise(fine, sampler, samplers[0])
                images = components.decode(sample(velocity, x, sampler, noise))
                features[sampler].append(components.reward_net(images))
        fds = [distance(components.heldout, torch.cat(features[sampler])) for sampler in samplers]
        for s, fd in zip(samplers, fds, strict=True):
            print(f"{s.kind},{s.method},{s.power},{s.steps},{fd:.4f},{fd / fds[0] - 1:+.2%}", flush=True)


if __name__ == "__main__":
    main()
