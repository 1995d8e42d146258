"""How the model is judged, before, during and after the training."""

from __future__ import annotations

from dataclasses import dataclass

from sit_rl.options.option import check_bounds, option
from sit_rl.sampling.sampler_config import SamplerConfig, noisy_steps


@dataclass(frozen=True)
class EvaluationOptions:
    """How the model is judged, before, during and after the training."""

    ode: SamplerConfig = option(
        lambda: SamplerConfig("ode", "adams", 12, power=1.5),
        "the noiseless sampler of every evaluation; for a DiT discrete ddim with eta 0",
        flag="evaluate_ode",
    )
    sde: SamplerConfig = option(
        lambda: SamplerConfig("sde", "adams", 40, power=1.5),
        "the noisy one; for a DiT discrete ddpm, or ddim with eta above 0",
        flag="evaluate_sde",
    )
    images: int = option(5_000, "images of the evaluations before and after", flag="evaluate_images")
    every: int = option(8, "steps between evaluations on the way; 0 means none", flag="evaluate_every", least=0)
    every_images: int = option(
        500,
        "images of the evaluations on the way: the first of the same noise and labels",
        flag="evaluate_every_images",
    )

    def check(self) -> None:
        """ValueError if a sampler has the wrong kind, or the images are too few for a covariance."""
        check_bounds(self)
        if noisy_steps(self.ode) or not noisy_steps(self.sde):
            raise ValueError(
                f"--evaluate-ode is {self.ode} and --evaluate-sde {self.sde}; the first must draw no noise "
                "(kind ode, or ddim with eta 0) and the second must (kind sde, ddpm, or ddim with eta above 0): both "
                "columns of the table are reported"
            )
        counts = {"evaluate-images": self.images}
        if self.every:
            counts["evaluate-every-images"] = self.every_images
        for name, count in counts.items():
            if count < 2:
                raise ValueError(f"--{name} is {count}; a covariance needs at least 2")
