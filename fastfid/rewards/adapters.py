"""A `DistributionReward` as the reward functions of other trainers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfid.rewards.distribution_reward import DistributionReward
from fastfid.runtime import distributed
from fastfid.runtime.devices import as_tensor

FlowGrpoReward = Callable[..., tuple[npt.NDArray[np.float64], dict[str, float]]]
TrlReward = Callable[..., list[float]]


def flow_grpo_reward(reward: DistributionReward, by_prompt: bool = True) -> FlowGrpoReward:
    """A reward function (images, prompts, metadata) → (scores [n], distances), as flow_grpo calls them.

    images     float tensors [n, c, h, w] from 0 to 1, or uint8 arrays [n, h, w, c]
    by_prompt  True  a new image replaces an old one of its own prompt; False: the oldest one

    flow_grpo calls rewards from several threads, in an order of its own on each rank.  So with several ranks `reward`
    must not be shared: make it with shared=False.
    """
    if reward.value_range != (0, 1):
        raise ValueError(
            f"flow_grpo's images run from 0 to 1, and the reward has value_range {reward.value_range}; pass (0, 1)"
        )
    if reward.shared and distributed.world_size() > 1:
        raise ValueError("flow_grpo calls rewards in another order on each rank; make the reward with shared=False")

    def scored(
        images: Any, prompts: Sequence[str], metadata: object = None, only_strict: bool = True
    ) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
        if by_prompt and not isinstance(prompts, list | tuple):
            raise ValueError(f"prompts are a {type(prompts).__name__}; pass a list, or make it with by_prompt=False")
        scores = reward(images, list(prompts) if by_prompt else None)
        return scores.cpu().numpy(), reward.distances

    return scored


def trl_reward(
    reward: DistributionReward, images: str = "completions", labels: str | None = None, name: str = "distribution"
) -> TrlReward:
    """A reward function (prompts, completions, **columns) → n numbers, as TRL's trainers call them.

    images  "completions"  the argument that holds the images: a tensor, an array, or a list of PIL images, arrays or
                           tensors
    labels  None           the argument that holds classes or prompts, such as "prompts"
    name    of the function, under which TRL logs it

    The distances are logged by TRL's `log_metric` where the trainer passes it.  Every rank calls it together.
    """

    def scored(prompts: Any = None, completions: Any = None, **columns: Any) -> list[float]:
        given = {"prompts": prompts, "completions": completions, **columns}
        for wanted in filter(None, (images, labels)):
            if given.get(wanted) is None:
                known = ", ".join(key for key, value in given.items() if value is not None)
                raise ValueError(
                    f"the reward {name} reads its images or labels from {wanted!r}, and was given {known}; name one "
                    "of these"
                )
        scores = reward(stacked(given[images]), None if labels is None else given[labels])
        log = columns.get("log_metric")
        if callable(log):
            for network, distance in reward.distances.items():
                log(f"{name}/{network}", distance)
        return [float(score) for score in scores]

    scored.__name__ = name
    return scored


def stacked(images: Any) -> Any:
    """One tensor [n, ...] of a list of images of one size: PIL images, arrays [h, w(, c)] or tensors [c, h, w]."""
    if not isinstance(images, list | tuple):
        return images
    tensors = [_tensor(image) for image in images]
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"images have the shapes {shapes[0]} and {shapes[1]}; make all of one size and one mode")
    if not tensors:
        raise ValueError("there are no images; pass at least one")
    kinds = sorted({f"{tensor.dtype} on {tensor.device}" for tensor in tensors})
    if len(kinds) > 1:  # torch would turn integers from 0 to 255 into floats beside those from 0 to 1
        raise ValueError(f"images are {kinds[0]} and {kinds[1]}; pass all of one kind")
    return torch.stack(tensors)


def _tensor(image: Any) -> Tensor:
    if hasattr(image, "getbands"):  # PIL
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"an image has mode {image.mode}; convert it to RGB or L")
        image = np.array(image)
    tensor = as_tensor(image, "an image")
    if not isinstance(image, Tensor) and tensor.ndim == 3 and tensor.shape[2] in (1, 3):
        tensor = tensor.permute(2, 0, 1)
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3:
        raise ValueError(f"an image has shape {tuple(tensor.shape)}; pass [h, w], [h, w, c] or a tensor [c, h, w]")
    return tensor
