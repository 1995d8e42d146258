"""A tiny checkpoint, and the samples that the command makes of it."""

import pytest

from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT
from tests.support.tiny_samples import COLOUR, pixels, randomised, run


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A checkpoint that makes 3×8×8 images in 5 classes."""
    path = tmp_path_factory.mktemp("models") / "colour.safetensors"
    save_model(randomised(SiT(COLOUR)), path)
    return path


@pytest.fixture(scope="module")
def whole(colour, tmp_path_factory):
    """Images [23, 8, 8, 3] of one undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "images"
    run(colour, out)
    return pixels(out)
