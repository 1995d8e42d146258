"""`fastfid eval` next to what no evaluation can avoid: reading the images and one pass of the network over them.

500 PNG of 64×64 against 500 others, EfficientNet-Lite0 at 96 pixels, every metric with its interval, no cache
(--full: 10,000 against 10,000, five minutes on two cores).  The images are enlarged Fashion-MNIST images with random
colours and noise.

extra_info: number of images, seconds of reading and features, seconds of the metrics, and whole / (reading + features).
"""

import colorsys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfid import evaluate

pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 needs the extra efficientnet")

ASSETS = Path(__file__).parents[1] / "sit_rl" / "assets"
SIDE = 64  # pixels


def coloured(grey, rng):
    """uint8 [64, 64, 3]: a grey image [28, 28] enlarged, in a random hue, with noise like a photograph."""
    large = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(float)
    hue = np.array(colorsys.hsv_to_rgb(rng.random(), rng.random() / 2, 1.0))
    return (large[:, :, None] * hue + rng.integers(-6, 7, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def write(folder, images, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(coloured(image, rng)).save(folder / f"{i:05}.png")
    return folder


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.full)])
def test_eval(benchmark, tmp_path, count):
    files = (ASSETS / f"fashion_mnist_{name}.npz" for name in ("train", "heldout"))
    train, heldout = (np.load(file)["images"][:, 0] for file in files)
    samples = write(tmp_path / "samples", train[:count], 0)
    reference = write(
        tmp_path / "reference", np.resize(heldout, (count, 28, 28)), 1
    )  # each image twice, in two colours
    results = []

    def call():
        results.append(evaluate(samples, reference, features="efficientnet-lite0", cache=False))

    benchmark.group = f"eval {count} PNG of {SIDE}x{SIDE}"
    benchmark.pedantic(call, rounds=1)
    seconds = results[-1].provenance["seconds"]
    benchmark.extra_info.update(
        images=2 * count,
        seconds_of_reading_and_features=seconds["features"],
        seconds_of_metrics=seconds["metrics"],
        whole_over_reading_and_features=round(1 + seconds["metrics"] / seconds["features"], 3),
    )
    assert not [left for left in results[-1].left_out if left.metric not in ("sfid", "fd_infinity")]
