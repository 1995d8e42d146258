"""A small SiT with random weights."""

import torch

from sit_rl.models.sit import SiT, SiTConfig

SMALL = SiTConfig(image_size=8, patch_size=2, channels=3, width=48, depth=2, heads=4, num_classes=5, learn_sigma=True)


def random_sit(config=SMALL, seed=0):
    """All trained weights N(0, 0.2²): the published initialisation predicts zero everywhere."""
    torch.manual_seed(seed)
    model = SiT(config)
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.2 * torch.randn_like(p)
    return model.eval()
