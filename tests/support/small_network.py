"""A small random network, and features and images for it."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastfid import FeatureExtractor

D = 8  # features of the small network


def features(n, seed, shift=0.0, d=D):
    """float32 [n, d], correlated normal rows; the mixing is the same for every seed."""
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)) @ mixing + shift).float()


def pixels(n, seed, side=12):
    """uint8 [n, side, side]: smooth blobs whose place and brightness vary, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centres, bright = rng.uniform(2, side - 2, (n, 2)), rng.uniform(80, 200 + 5 * seed, n)
    square = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    return (bright[:, None, None] * np.exp(-square / 8) + rng.uniform(0, 20, (n, side, side))).astype(np.uint8)


def write_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04}.png")
    return folder


class Small(nn.Module):
    """A random convolution, pooled: features [n, D]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv2d(1, D, 5, stride=2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.relu(self.layer(x)).mean(dim=(2, 3))


def small(name="small"):
    module = Small()
    return FeatureExtractor.from_module(module, D, name=name), module
