"""CMMD: its value by the published formula, its protocol, and no other network's."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import FeatureExtractor, cmmd, evaluate
from fastfid.features.vision_transformers import CLIP_INPUTS, CLIP_MEAN, CLIP_STD
from fastfid.protocols import protocol_named
from tests.support.small_network import Small, features, pixels

pytestmark = pytest.mark.usefixtures("own_cache")


def published(x, y):
    """1000 (mean k(x, x) + mean k(y, y) − 2 mean k(x, y)) of rows of length 1, σ = 10, in NumPy."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

    def mean(a, b):
        return np.exp(-np.square(a[:, None] - b).sum(-1) / (2 * 10**2)).mean()

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_value_is_the_published_one():
    real, fake = features(60, 1), features(50, 2, 0.5)
    assert float(cmmd(real, fake)) == pytest.approx(published(real.double().numpy(), fake.double().numpy()), rel=1e-9)
    assert float(cmmd(3 * real, fake)) == pytest.approx(float(cmmd(real, fake)), rel=1e-6)  # lengths do not count
    assert float(cmmd(real, real)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="row 1 of the features is all zeros"):
        cmmd(real, torch.cat([fake[:1], torch.zeros(1, 8)]))


def test_protocol_computes_it_for_clip_alone():
    protocol = protocol_named("cmmd")
    assert protocol.metrics == ("cmmd",) and protocol.network == "clip-l14-336" and protocol.clip in CLIP_INPUTS
    a, b = pixels(60, 1), pixels(60, 9)
    clip = FeatureExtractor.from_module(Small(), 8, name="clip-small")
    score = evaluate(a, b, features=clip, protocol="cmmd")["cmmd"]
    rows = [clip(torch.from_numpy(images)[:, None]) for images in (b, a)]
    assert score.value == pytest.approx(float(cmmd(*rows)), rel=1e-6)
    assert score.interval[0] < score.value < score.interval[1]
    other = evaluate(a, b, features=FeatureExtractor.from_module(Small(), 8, name="other"), metrics=["fd", "cmmd"])
    assert [left.reason for left in other.left_out if left.metric == "cmmd"] == [
        "CMMD is defined for features of CLIP, not of other; use --protocol cmmd"
    ]


@pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 50), (51, 30)])
def test_images_are_cropped_and_resized_as_the_tool_does(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    short, side = min(height, width), 24
    left, top = (width - short) // 2, (height - short) // 2
    picture = Image.fromarray(image).crop((left, top, left + short, top + short)).resize((side, side), Image.BICUBIC)
    expected = (np.asarray(picture) / 255 - CLIP_MEAN) / CLIP_STD
    found = CLIP_INPUTS["square"][0](torch.from_numpy(image).permute(2, 0, 1)[None], side)
    np.testing.assert_allclose(found[0].permute(1, 2, 0), expected, atol=1e-5)
