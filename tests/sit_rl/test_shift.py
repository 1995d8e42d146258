"""The shift of a grid of times: SD3's equation, and what keeps its place."""

import math
from dataclasses import asdict, replace

import pytest

from sit_rl.generation.recipe import SAMPLERS, parse_sampler, sampler_words
from sit_rl.sampling.sampler_config import LAST_STEP, SamplerConfig, time_grid


@pytest.mark.parametrize("shift", [1.0, 3.0, math.exp(1.15), 0.5])
def test_noise_levels_are_shifted_as_published(shift):
    """σ' = sσ/(1 + (s − 1)σ) with σ = 1 − t (arXiv 2403.03206, eq. 23)."""
    plain, shifted = (time_grid(SamplerConfig("ode", "euler", 7, shift=s)) for s in (1.0, shift))
    for t, moved in zip(plain, shifted, strict=True):
        sigma = 1 - t
        assert moved == pytest.approx(1 - shift * sigma / (1 + (shift - 1) * sigma), abs=1e-15)
    assert shifted[0] == 0 and shifted[-1] == 1 and shifted == sorted(shifted)


def test_the_last_step_keeps_its_length():
    for sampler in (SamplerConfig("ode", "adams", 6, power=1.5), SamplerConfig("sde", "euler", 6)):
        grid = time_grid(replace(sampler, shift=3.0))
        assert 1 - grid[-2] == pytest.approx(LAST_STEP) and grid[1] < time_grid(sampler)[1]


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_shift_is_refused(shift):
    with pytest.raises(ValueError, match="shift is .*; it must be a positive number"):
        SamplerConfig(shift=shift)


def test_a_chain_has_no_shift():
    with pytest.raises(ValueError, match="a discrete chain does not have"):
        SamplerConfig("discrete", "ddpm", 10, shift=3.0)


@pytest.mark.parametrize(
    "sampler",
    [*SAMPLERS.values(), SamplerConfig("ode", "euler", 28, shift=math.exp(1.15), guidance=3.5)],
    ids=str,
)
def test_a_sampler_is_made_again_from_its_words(sampler):
    assert asdict(parse_sampler(sampler_words(sampler))) == asdict(sampler)
