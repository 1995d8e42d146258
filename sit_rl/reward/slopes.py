"""The gradient of an image's advantage in what the reward reads of it, for estimators that follow it.

The credit of an image is the change of the distance D by leaving it out, whose first term does not depend on it. With
the standard deviation σ of its group's credits, weights w and fades f of the components,

    ∂A_i/∂x_i = −Σ_c w_c f_c/σ_c · ∂D_c(set)/∂x_i / Σ_c w_c,

where the set holds the step's own images: the exact distance of the current set, not a linear function that was fixed
before the images moved. An advantage is clipped; its gradient is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastfid import PreparedSet
from fastfid.rewards.protocol import DifferentiableSet
from sit_rl.reward.advantages import group_spreads
from sit_rl.reward.components import Component
from sit_rl.reward.mix import Part
from sit_rl.reward.swap_reward import named


def advantage_slopes(
    components: Sequence[Component],
    prepared: Sequence[PreparedSet],
    parts: Sequence[Part],
    rows: torch.Tensor,
    labels: torch.Tensor,
    how: str,
    width: int,
) -> torch.Tensor:
    """∂A/∂row float32 [n, width] of the images that are `rows` int64 [n] of the sets; labels int64 [n] are theirs.

    prepared  the set under each component, with the step's images in it
    parts     credits, weights and fades of the components; `how` as in `advantages`
    width     columns of a row of `RewardSide`

    ValueError, with the component's name, for one without a gradient.
    """
    total = sum(part.weight for part in parts)
    slopes = torch.zeros(len(rows), width, dtype=torch.float64, device=rows.device)
    for component, one, part in zip(components, prepared, parts, strict=True):
        with named(component):
            if not isinstance(one, DifferentiableSet):
                raise ValueError(
                    "it has no gradient, which --estimator adjoint_matching follows; choose another estimator"
                )
            gradient = one.gradient()
        units = group_spreads(part.credit, labels, how, part.rounding)
        factor = (part.weight * part.fade / total / units).to(gradient)
        slopes[:, component.columns] -= (factor[:, None] * gradient[rows.to(gradient.device)]).to(slopes)
    return slopes.float()
