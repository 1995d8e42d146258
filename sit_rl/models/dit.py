"""DiT, the transformer of `sit.py` as a discrete diffusion model (Peebles & Xie 2023, arXiv 2212.09748).

The network, its parameter names and their shapes are SiT's, so that no tensor of a checkpoint tells one from the other.
What differs is what the numbers mean: t is the step 0 … 999 of a noising chain (0 next to the data), unscaled, and the
outputs are the noise ε̂ and where the variance lies between its bounds. `sit_rl.sampling.ddpm` samples from it.
"""

from __future__ import annotations

import torch

from sit_rl.models.sit import SiT, SiTConfig


class DiT(SiT):
    """Noise and variance fraction of the reverse step at timestep t."""

    predicts = "noise"

    def __init__(self, config: SiTConfig):
        if not config.learn_sigma:
            raise ValueError("learn_sigma is False; DiT predicts its variance too, in a last layer of 2·C channels")
        super().__init__(config)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """[n, 2C, H, H]: ε̂, then the variance's place in [−1, 1], at x [n, C, H, H], t [n] in [0, 999], y int64 [n]."""
        return self.outputs(x, t, y)
