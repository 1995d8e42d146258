"""The plan of a pretraining on a user's images: every number that was not given is chosen from the images."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sit_rl.models.averages import EMA
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.pretraining.flow import CURVE_SAMPLER, FlowData, FlowSettings, fit, optimizer_of

# Sides that are chosen where the images have none of their own. Larger ones are given by --size.
SIZES = (64, 32)
# Most patches along a side: 64 tokens for a model of pixels. Attention and MLP cost as many tokens.
MOST_PATCHES = {"up to 28 px": 4, "above": 8}
SMALL_SIDE = 28  # pixels: 16 tokens are enough up to here (the embedded model has them)
LEAST_PATCHES = 4
# Width: that of the embedded model, or more where a patch has more values. In a narrower model one token cannot
# hold the noise of a patch, which is a part of the velocity.
LEAST_WIDTH, WIDTH_STEP, WIDTH_PER_VALUE = 128, 64, 1.25
DEPTH, HEAD_WIDTH = 4, 32
# Images seen: so many passes, but not fewer or more than these. The embedded model saw 1.5 million.
PASSES, LEAST_SEEN, MOST_SEEN = 150, 300_000, 1_500_000
# Peak learning rate of the embedded model, whose width is 128; wider models get less in proportion.
LR_AT_128 = 2e-3
# Decay of the averaged weights: they reach over the last tenth of the iterations, or over 1,000 of them.
SLOWEST_EMA, ITERATIONS_TO_EMA = 0.999, 10
TIMED = 3  # iterations that are timed, after one that is not


@dataclass(frozen=True)
class Choices:
    """What a user gave; None and 0 are chosen from the images, and without `vae` the model is one of pixels."""

    patch: int
    width: int
    depth: int
    iterations: int | None
    lr: float | None
    batch: int
    ema: float | None
    seed: int
    vae: Path | None = None
    mirror: bool = False
    curve_every: int | None = None
    curve_images: int | None = None


def choose_size(sides: list[tuple[int, int]]) -> tuple[int, str]:
    """Side of the images that are made, from (height, width) of some images, and why."""
    heights = {side for pair in sides for side in pair}
    own = next(iter(heights)) if len(heights) == 1 else 0
    if own and own <= SIZES[0] and patch_of(own):
        return own, "the images' own size"
    middle = statistics.median(min(pair) for pair in sides)
    size = next((size for size in SIZES if size <= middle), SIZES[-1])
    return size, f"half of the images have a smaller side of at least {middle:g}; --size chooses another"


def patch_of(side: int) -> int:
    """Side of a patch for samples of this side; 0 if no patch fits: the side has no divisor between 4 and 8."""
    most = MOST_PATCHES["up to 28 px" if side <= SMALL_SIDE else "above"]
    return next((side // count for count in range(most, LEAST_PATCHES - 1, -1) if side % count == 0), 0)


def model_config(shape: tuple[int, int, int], classes: int, given: Choices) -> SiTConfig:
    """Shape of the model for samples (C, H, H); ValueError for a patch, width or depth that does not fit."""
    channels, side, _ = shape
    patch = given.patch or patch_of(side)
    if not patch or side % patch:
        asked = f"--patch {given.patch} does not divide" if given.patch else "no patch divides"
        near = max(4, round(side / 8) * 8)
        raise ValueError(
            f"{asked} samples of {side}×{side} into equal patches; choose another --patch or --size, such as {near}"
        )
    values = channels * patch**2
    width = given.width or max(LEAST_WIDTH, -(-int(WIDTH_PER_VALUE * values) // WIDTH_STEP) * WIDTH_STEP)
    if width % HEAD_WIDTH or width < HEAD_WIDTH:
        raise ValueError(f"--width is {width}; it must be a multiple of {HEAD_WIDTH}, the width of an attention head")
    if given.depth < 0:
        raise ValueError(f"--depth is {given.depth}; it must be at least 1")
    return SiTConfig(
        image_size=side, patch_size=patch, channels=channels, width=width, depth=given.depth or DEPTH,
        heads=width // HEAD_WIDTH, num_classes=classes, learn_sigma=False,
    )  # fmt: skip


def flow_settings(count: int, width: int, given: Choices) -> FlowSettings:
    """Settings of the optimisation for `count` training images."""
    batch = min(given.batch, count)
    seen = min(MOST_SEEN, max(LEAST_SEEN, PASSES * count))
    iterations = given.iterations or round(seen / batch)
    return FlowSettings(
        iterations=iterations,
        batch=batch,
        lr=given.lr or LR_AT_128 * min(1.0, LEAST_WIDTH / width),
        ema=given.ema if given.ema is not None else max(0.0, min(SLOWEST_EMA, 1 - ITERATIONS_TO_EMA / iterations)),
        seed=given.seed,
    )


def seconds_per_iteration(model: SiT, data: FlowData, settings: FlowSettings) -> float:
    """Seconds of an iteration, measured on copies, so that nothing changes. All ranks call it."""
    timed = FlowSettings(TIMED + 1, settings.batch, settings.lr, settings.ema, settings.seed)
    copied = copy.deepcopy(model)
    laps = [time.perf_counter()]
    for _ in fit(copied, EMA(copied, settings.ema), optimizer_of(copied, timed), data, timed, silent=True):
        laps.append(time.perf_counter())
    return min(after - before for before, after in zip(laps[1:-1], laps[2:], strict=True))


def curve_seconds(per_iteration: float, settings: FlowSettings, images: int) -> float:
    """Seconds of one point of the curve: an iteration is three evaluations of its batch (forward, and twice back)."""
    return per_iteration / settings.batch / 3 * images * CURVE_SAMPLER.evaluations()


def duration(seconds: float) -> str:
    """Seconds, minutes or hours as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5_400 else f"{seconds / 3600:.1f} hours"


def peak_megabytes() -> float:
    """Most memory that this process has used, MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in KiB


def parameters_of(config: SiTConfig) -> int:
    """Number of parameters of a SiT."""
    with torch.device("meta"):
        return sum(p.numel() for p in SiT(config).parameters())


def samples_path(out: Path, iteration: int) -> Path:
    """The grid of samples after an iteration."""
    return out / "samples" / f"iteration-{iteration:07d}.png"
