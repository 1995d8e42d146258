"""For flow_grpo: put this function into `flow_grpo/rewards.py` and into the dictionary `score_functions` there.

Then `config.reward_fn = {"distribution": 1.0}`.
"""

from fastfid.rewards import DistributionReward, flow_grpo_reward


def distribution_score(device, real="real_images/", network="inception", size=5_000):
    """The function that flow_grpo calls with (images, prompts, metadata)."""
    return flow_grpo_reward(DistributionReward(real, network, size=size, device=device, shared=False))
