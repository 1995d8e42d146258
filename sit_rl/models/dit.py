"""DiT, the transformer of `sit.py` as a discrete diffusion model (Peebles & Xie 2023, arXiv 2212.09748).

The network, its parameter names and their shapes are those of SiT, so the tensors of a checkpoint do not show which one
it is. The numbers have another meaning: t is the step 0 … 999 of a noising chain (0 next to the data), unscaled. The
outputs are the noise ε̂ and the place of the variance between its bounds. `sit_rl.sampling.ddpm` samples from it.
"""

from __future__ import annotations

import torch

from sit_rl.models.sit import SiT, SiTConfig


class DiT(SiT):
    """Predicts the noise and the place of the variance for the reverse step at timestep t."""

    predicts = "noise"

    def __init__(self, config: SiTConfig):
        if not config.learn_sigma:
            raise ValueError("learn_sigma is False; DiT predicts its variance too, in a last layer of 2·C channels")
        super().__init__(config)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """[n, 2C, H, H]: ε̂, then the variance's place in [−1, 1], at x [n, C, H, H], t [n] in [0, 999], y int64 [n]."""
        return self.outputs(x, t, y)
