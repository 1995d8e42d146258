"""How a step's samples are made."""

from __future__ import annotations

from dataclasses import dataclass

from sit_rl.options.option import check_bounds, option
from sit_rl.sampling.sampler_config import SamplerConfig


@dataclass(frozen=True)
class RolloutOptions:
    """How a step's samples are made."""

    sampler: SamplerConfig = option(
        lambda: SamplerConfig("ode", "adams", 10, power=1.5), "advantage_matching and rejection", flag="rollout"
    )
    sde_sampler: SamplerConfig = option(
        lambda: SamplerConfig("sde", "euler", 20),
        "sde_policy_gradient: sde euler, or for a DiT discrete ddpm, or ddim with eta above 0",
        flag="rollout_sde",
    )
    adjoint_sampler: SamplerConfig = option(
        lambda: SamplerConfig("sde", "ancestral", 20, power=1.5),
        "adjoint_matching: sde ancestral, or sde euler with diffusion sbdm; its samples must not depend on the noise "
        "that they start from",
        flag="rollout_adjoint",
    )
    batch: int = option(
        200,
        "images sampled at once; fixes the grouping of samples, and so their last bits, whatever the number of ranks",
        flag="rollout_batch",
        least=1,
        machine=True,
    )

    def check(self) -> None:
        """ValueError if a policy gradient cannot use its sampler."""
        check_bounds(self)
        if not self.sde_sampler.has_density:
            raise ValueError(
                f"--rollout-sde is {self.sde_sampler}, whose steps do not have the density that a policy gradient "
                "needs; choose kind sde with method euler, or for a DiT kind discrete, 3 steps or more, method ddpm, "
                "or ddim with eta above 0"
            )
        if not self.adjoint_sampler.memoryless or not self.adjoint_sampler.has_density:
            raise ValueError(
                f"--rollout-adjoint is {self.adjoint_sampler}, whose samples depend on the noise that they start from; "
                "choose kind sde with method ancestral and 2 steps or more, or method euler with diffusion sbdm"
            )
