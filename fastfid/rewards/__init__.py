"""Set rewards: how good a set of generated images is as a whole, and what each image contributes; one file each.

What follows is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfid.rewards.adapters import flow_grpo_reward, trl_reward
    from fastfid.rewards.checked_reward import CheckedReward
    from fastfid.rewards.credit import change_each, swap_credit
    from fastfid.rewards.density_ratio import DensityRatioReward
    from fastfid.rewards.distribution_reward import DistributionReward
    from fastfid.rewards.frechet import FrechetReward
    from fastfid.rewards.kernel import KernelReward
    from fastfid.rewards.per_image import CallableReward, ScoreReward
    from fastfid.rewards.protocol import DifferentiableSet, PreparedSet, SetReward
    from fastfid.rewards.sliced_wasserstein import SlicedWassersteinReward

# The file of each public name.
FILES = {
    "adapters": ("flow_grpo_reward", "trl_reward"),
    "checked_reward": ("CheckedReward",),
    "credit": ("change_each", "swap_credit"),
    "density_ratio": ("DensityRatioReward",),
    "distribution_reward": ("DistributionReward",),
    "frechet": ("FrechetReward",),
    "kernel": ("KernelReward",),
    "per_image": ("CallableReward", "ScoreReward"),
    "protocol": ("DifferentiableSet", "PreparedSet", "SetReward"),
    "sliced_wasserstein": ("SlicedWassersteinReward",),
}

__all__ = [
    "CallableReward",
    "CheckedReward",
    "DensityRatioReward",
    "DifferentiableSet",
    "DistributionReward",
    "FrechetReward",
    "KernelReward",
    "PreparedSet",
    "ScoreReward",
    "SetReward",
    "SlicedWassersteinReward",
    "change_each",
    "flow_grpo_reward",
    "swap_credit",
    "trl_reward",
]


def __getattr__(name: str) -> Any:
    """A public name, imported on first use (PEP 562)."""
    for file, names in FILES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
