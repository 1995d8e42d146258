"""A small reward of images with a reference set, and other trainers' forms of it."""

from functools import cache

import torch
from torch import nn

from fastfid import DistributionReward, FeatureExtractor, FeatureMoments
from fastfid.rewards.adapters import flow_grpo_reward, trl_reward


class Pooled(nn.Module):
    """Means and spreads of an image's channels, [n, 6]."""

    def forward(self, images):
        x = images.float().expand(-1, 3, -1, -1).flatten(2)
        return torch.cat([x.mean(2), x.std(2, correction=0)], dim=1) / 255


def pixels(count, seed):
    """uint8 [count, 3, 5, 6]."""
    return torch.randint(0, 256, (count, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def fresh():
    """A reward of images of any size without a state; its real side is moments, which no cache keeps."""
    network = FeatureExtractor.from_module(Pooled(), 6, prepare=lambda x: x, name="flat")
    return DistributionReward(FeatureMoments.from_features(network(pixels(12, 0))), network, size=8, shared=False)


@cache
def reward():
    """It with a reference set and its unit."""
    made = fresh()
    made.refresh(pixels(12, 0))
    made(pixels(12, 0)[:4])
    return made


@cache
def trl():
    """It as a reward of TRL's trainers."""
    return trl_reward(reward(), labels=None)


@cache
def flow_grpo():
    """It as a reward of flow_grpo."""
    return flow_grpo_reward(reward())
