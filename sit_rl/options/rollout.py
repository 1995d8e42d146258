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
