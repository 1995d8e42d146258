"""A model whose time runs from data to noise, as REPA's and Flow-GRPO's, as one whose time runs from noise to data.

With t' = 1 − t the velocity changes its sign: v(x, t) = −v'(x, 1 − t). Both changes are linear maps of weights. The
first layer of the time's MLP takes cosines and sines of ωt, and

    cos ω(1−t) = cos ω cos ωt + sin ω sin ωt,    sin ω(1−t) = sin ω cos ωt − cos ω sin ωt,

so its weights are rotated for each frequency; the last layer is negated.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from sit_rl.models.sit import SiT, time_frequencies


@torch.no_grad()
def reverse_time(model: SiT) -> None:
    """Replace the weights, in place, by those of the model with reversed time; twice gives the same model again."""
    first, last = cast(nn.Linear, model.t_embedder.mlp[0]), model.final_layer.linear
    omega = time_frequencies(first.weight.device).double()
    cosines, sines = first.weight.double().chunk(2, dim=1)
    rotated = [cosines * omega.cos() + sines * omega.sin(), cosines * omega.sin() - sines * omega.cos()]
    first.weight.copy_(torch.cat(rotated, dim=1))
    for part in (last.weight, last.bias):
        part.neg_()
