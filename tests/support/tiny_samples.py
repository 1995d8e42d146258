"""Samples of a tiny model by the command `sit_rl.sample`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sit_rl.models.sit import SiTConfig
from sit_rl.sample import main

COLOUR = SiTConfig(image_size=8, patch_size=4, channels=3, width=32, depth=1, heads=2, num_classes=5)


def randomised(model, seed=0, std=0.2):
    """All weights N(0, std²): the published initialisation predicts zero everywhere."""
    torch.manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def run(path, out, *flags, images=23):
    """The command on 23 images in batches of 4, three ODE steps: six batches, the last one short."""
    arguments = ["--checkpoint", path, "--out", out, "--images", images, "--batch", 4, "--sampler", "ode-euler"]
    main([str(a) for a in (*arguments, "--steps", 3, "--threads", 1, *flags)])


def pixels(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(Path(folder).glob("*.png"))])


def stopped_by(capsys, *arguments, **keywords):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, **keywords)
    return capsys.readouterr().err
