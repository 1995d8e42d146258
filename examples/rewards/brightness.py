"""A reward of ten lines: every image has a score of its own, and brighter images are better.

torchrun sit_rl/train.py --reward fd examples/rewards/brightness.py:brightness=0.2
"""

from torch import Tensor


def brightness(images: Tensor, labels: Tensor) -> Tensor:
    """Scores [n] of images uint8 [n, c, h, w]; the labels int64 [n] are not used."""
    return images.float().mean((1, 2, 3)) / 255
