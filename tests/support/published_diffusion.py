"""Steps of discrete diffusion as the papers publish them, in NumPy."""

import math

import numpy as np

from sit_rl.sampling.ddpm import visited_timesteps


def chain(steps):
    """(β, ᾱ, ᾱ') of a respaced chain, ascending, by the definitions: β of the kept ᾱ, ᾱ' the one before, 1 at first."""
    levels = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[sorted(visited_timesteps(steps))]
    before = np.append(1.0, levels[:-1])
    return 1 - levels / before, levels, before


def published_step(noise, place, x, j, steps, method, eta):
    """Mean and spread of step j (0 at the data): Ho et al. eq. 6-7, Nichol & Dhariwal eq. 15, Song et al. eq. 12."""
    beta, level, before = (values[j] for values in chain(steps))
    data = (x - math.sqrt(1 - level) * noise) / math.sqrt(level)
    posterior = beta * (1 - before) / (1 - level)
    if method == "ddim":
        std = eta * math.sqrt((1 - before) / (1 - level)) * math.sqrt(1 - level / before)
        return math.sqrt(before) * data + math.sqrt(1 - before - std**2) * noise, std
    mean = math.sqrt(before) * beta / (1 - level) * data + math.sqrt(1 - beta) * (1 - before) / (1 - level) * x
    fraction = (place + 1) / 2
    return mean, np.exp(0.5 * (fraction * math.log(beta) + (1 - fraction) * math.log(posterior))) if j else 0.0
