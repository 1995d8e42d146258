"""The user's own networks and reward functions, tried on two images before any work.

The images are noise, decoded as samples are.  So they have the size and the channels of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fastfid import FeatureExtractor
from fastfid.features.own_network import OwnNetwork, try_network
from sit_rl.config import Config
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.reward_names import PYTHON

# Images uint8 [2, c, h, w] in host memory, and labels int64 [2].
TryReward = Callable[[torch.Tensor, torch.Tensor], None]
Decode = Callable[[torch.Tensor], torch.Tensor]


def try_own(
    config: Config,
    nets: Sequence[FeatureExtractor],
    model: GeneratorModel,
    decode: Decode,
    try_reward: TryReward | None,
) -> None:
    """ValueError, in one sentence, if an own network or reward fails on two images; nothing without own ones."""
    own = [net for net in nets if isinstance(net.network, OwnNetwork)]
    rewarded = any(each.kind == PYTHON for each in config.reward_components)
    if not own and not rewarded:
        return
    images, labels = two_images(model, decode)
    for net in own:
        try_network(net, images)
    if rewarded and try_reward is not None:
        try_reward(images, labels)


def two_images(model: GeneratorModel, decode: Decode) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded noise, uint8 [2, c, h, w] in host memory, of the first two conditions."""
    noise = torch.randn(2, *model.sample_shape, generator=torch.Generator().manual_seed(0))
    images = decode(noise.to(next(model.parameters()).device)).cpu()
    return images, torch.arange(2) % len(model.conditions)
