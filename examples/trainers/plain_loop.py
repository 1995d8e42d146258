"""A plain PyTorch loop: a small generator learns from the scores of its images, then by the gradient of FD itself.

python examples/trainers/plain_loop.py REAL_IMAGES
"""

import sys

import torch
from torch import nn

from fastfid.rewards import DistributionReward


class Blobs(nn.Module):
    """Noise → grey images [n, 1, 16, 16] from 0 to 1: a blob of learned place and width."""

    def __init__(self):
        super().__init__()
        self.place, self.spread = nn.Parameter(torch.tensor([4.0, 11.0])), nn.Parameter(torch.tensor(1.0))

    def forward(self, noise):
        centre = self.place + self.spread * noise  # [n, 2]
        grid = torch.arange(16.0)
        rows, columns = (torch.exp(-((grid - centre[:, i, None]) ** 2) / 8) for i in (0, 1))
        return (rows[:, :, None] * columns[:, None, :])[:, None]


def train(real, network, steps=20, count=64, size=256, lr=0.3):
    """The generator and the distances of its images before and after; `real` and `network` as of DistributionReward."""
    random = torch.Generator().manual_seed(0)
    generator, reward = Blobs(), DistributionReward(real, network, size=size)
    optimizer = torch.optim.Adam(generator.parameters(), lr=lr)
    with torch.no_grad():
        reward.refresh(generator(torch.randn(size, 2, generator=random)))
    before = reward.distances
    for _ in range(steps):
        images = generator(torch.randn(count, 2, generator=random))
        loss = reward.change(images)  # exact change of FD if these images replace as many of the reference set
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reward(images.detach())  # scores [n], for a policy gradient; the images join the reference set
    return generator, before, reward.distances


if __name__ == "__main__":
    _, before, after = train(sys.argv[1], "fashion-a")
    print(f"before {before}, after {after}")
