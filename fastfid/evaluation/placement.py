"""Where the metrics of a pair of sides are computed: on the network's device if the features fit there.

On a device, at most half of its free memory is used for features, so the metrics have room for the rest.  Larger
features stay in host memory, where their metrics are then computed, and a warning says so.  So the memory of a device
is bounded for any number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import SideInNetwork
from fastfid.features.extractor import usable_device
from fastfid.runtime import distributed

# Part of a device's free memory that features may take: KID and the distances of neighbours work in blocks of some
# hundred MB, and a covariance of 2,048 features with its factors takes as much.
PART_FOR_FEATURES = 0.5


def placed(sides: Sequence[SideInNetwork], settings: Settings, warnings: list[str]) -> tuple[SideInNetwork, ...]:
    """The sides of one comparison where their metrics are computed; a warning is added if they stay on the host.

    ValueError for a device that this machine does not have.
    """
    device = usable_device(distributed.local_device(settings.device))
    if device.type != "cuda":
        return tuple(sides)
    needed = sum(_bytes_of(x) for side in sides for x in (side.features, side.spatial_features))
    room = int(PART_FOR_FEATURES * torch.cuda.mem_get_info(device)[0])
    if needed > room:
        warnings.append(
            f"the metrics were computed in host memory: features take {needed / 1e9:.1f} GB, and {device} has "
            f"{room / 1e9:.1f} GB for them"
        )
        return tuple(sides)
    return tuple(on_device(side, device) for side in sides)


def on_device(side: SideInNetwork, device: torch.device) -> SideInNetwork:
    """The side with its moments and features on `device`; logits stay, as their score is a few sums."""
    return replace(
        side,
        moments=side.moments.to(device),
        features=_moved(side.features, device),
        spatial=None if side.spatial is None else side.spatial.to(device),
        spatial_features=_moved(side.spatial_features, device),
    )


def _moved(x: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x is None else x.to(device)


def _bytes_of(x: Tensor | None) -> int:
    return 0 if x is None else x.numel() * x.element_size()
