"""For TRL's `reward_funcs`, and trainers of images that call rewards as TRL does: score(prompts=, completions=)."""

from fastfid.rewards import DistributionReward, trl_reward


def distribution_score(real="real_images/", network="inception", size=5_000):
    """A function of the list `completions` of images; a new image replaces an old one of its own prompt."""
    return trl_reward(DistributionReward(real, network, size=size), labels="prompts")
