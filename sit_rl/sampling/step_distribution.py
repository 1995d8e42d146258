"""One step of any sampler: a Gaussian to draw from, with a log-probability."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class GaussianStep:
    """A Gaussian step x_t → x_s.

    mean  [n, C, H, W]
    std   standard deviation: a number, 0 for a step without noise, or a tensor [n, C, H, W]
    """

    mean: torch.Tensor
    std: float | torch.Tensor

    @property
    def noisy(self) -> bool:
        """Whether the step draws noise. Only then it has a log-probability."""
        return isinstance(self.std, torch.Tensor) or self.std > 0

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """mean + std·noise."""
        return self.mean + self.std * noise if self.noisy else self.mean

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log N(x; mean, std²) averaged over the dimensions of a sample, float32 [n]; needs std > 0.

        The mean and not the sum, as in DDPO and its successors. So clip ranges of its ratio depend on the dimension.
        """
        if not self.noisy:
            raise ValueError("a noiseless step has no log-probability; leave the sampler's last step out of the loss")
        std = self.std.float() if isinstance(self.std, torch.Tensor) else self.std
        log_std = std.log() if isinstance(std, torch.Tensor) else math.log(std)
        z = (x.float() - self.mean.float()) / std
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)
