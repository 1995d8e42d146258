"""sit_rl: reinforcement learning of SiT flow models with distribution-wise rewards."""
