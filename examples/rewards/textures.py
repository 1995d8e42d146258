"""A network of ten lines: how strongly an image answers to random filters.

fastfid eval SAMPLES REAL --network examples/rewards/textures.py:Textures
torchrun sit_rl/train.py --reward-features examples/rewards/textures.py:Textures
"""

import torch
from torch import Tensor, nn


class Textures(nn.Module):
    """Mean and spread of 32 random 5×5 filters: 64 features of grey or colour images of any size."""

    value_range = "-1..1"

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, 64] of images [n, c, h, w]."""
        maps = torch.relu(self.filters(x.mean(1, keepdim=True))).flatten(2)
        return torch.cat([maps.mean(2), maps.std(2)], dim=1)
