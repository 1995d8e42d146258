"""A model's arithmetic: bfloat16 matrix products, with the solver's states in float32."""

from __future__ import annotations

import torch

from sit_rl.models.generator_model import GeneratorModel


def bfloat16_forward(self: GeneratorModel, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A model's forward with bfloat16 matrix products and a float32 result."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return type(self).forward(self, x, t, y).float()
