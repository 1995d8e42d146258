"""Sampling next to the model's own forward passes: `sit_rl.sample` with the embedded model, 20 ODE steps.

Each round does the work of the whole command, from noise to complete PNG files or one .npz.  It measures CPU seconds of
all threads inside the model's forward, and CPU seconds of the process.  Both come from the same period, so a slow
machine or another process changes their ratio little.  The 20 passes of an image take 0.54 GFLOP (27 MFLOP each,
counted).  Its noise is 784 normal values, its file has 0.5 KB.  It runs on the CPU even if there is a GPU, because CPU
seconds do not measure a GPU's work.

    pytest bench/bench_sampling.py --benchmark-only [--full]     prints overhead = whole / forward, target 1.15
"""

import itertools
import statistics
import threading
import time
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from sit_rl.generation.generator import load_generator
from sit_rl.generation.make_samples import make_samples
from sit_rl.models.sit import SiT
from sit_rl.sample import SampleConfig
from sit_rl.sampling.sampler_config import SamplerConfig

SAMPLER = SamplerConfig("ode", "adams", 20, power=1.5)
ROUNDS = 3  # the median counts


@contextmanager
def inside_the_model():
    """A list that receives the CPU seconds of every forward pass, measured in its own thread."""
    seconds, lock, forward = [], threading.Lock(), SiT.forward

    def timed(*arguments):
        started = time.thread_time()
        out = forward(*arguments)
        with lock:
            seconds.append(time.thread_time() - started)
        return out

    with mock.patch.object(SiT, "forward", timed):
        yield seconds


@pytest.mark.parametrize("images", [500, pytest.param(5_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("form", ["png", "npz"])
def test_sampling_overhead(benchmark, tmp_path, capsys, form, images):
    config = SampleConfig(images=images)
    made = load_generator(config, torch.device("cpu"))
    ratios, wall, number = [], [], itertools.count()

    def whole():
        name = f"{next(number)}"
        started = time.process_time(), time.perf_counter()
        with inside_the_model() as seconds:
            make_samples(made, config, SAMPLER, tmp_path / (name if form == "png" else f"{name}.npz"))
        ratios.append((time.process_time() - started[0]) / sum(seconds))
        wall.append(time.perf_counter() - started[1])

    benchmark.group = f"sampling {images} images, 20 steps"
    benchmark.pedantic(whole, rounds=ROUNDS if images <= 500 else 1)
    ratio, rate = statistics.median(ratios), images / statistics.median(wall)
    benchmark.extra_info |= {"cpu": ratio, "images_per_second": rate}
    with capsys.disabled():
        print(f"\n{form}, {images} images: whole / forward {ratio:.3f} of CPU time (target 1.15), {rate:.0f} images/s")
