"""What sampling costs beside the model's own forward passes: `sit_rl.sample` with the embedded model, 20 ODE steps.

Each round times the forward passes alone (same batches, shapes and threads, through the same `map_batches`), then the
whole command's work from noise to complete PNG files or one .npz. An image's 20 passes are 0.54 GFLOP (27 MFLOP each,
counted); its noise is 784 normal draws, its file 0.5 KB. The ratio is of CPU time, which a neighbour on the machine
changes by percents, and beside it of wall time, which it may double.

    pytest bench/bench_sampling.py --benchmark-only [--full]     prints overhead = whole / forward, target 1.15
"""

import itertools
import statistics
import time

import pytest
import torch

from sit_rl.parallel import map_batches
from sit_rl.sample import SampleConfig, batch_of, load_generator, make_samples, one_thread_a_batch
from sit_rl.samplers import SamplerConfig

SAMPLER = SamplerConfig("ode", "adams", 20, power=1.5)
ROUNDS = 3  # of which the median counts


@torch.no_grad()
def forward_passes(made, config):
    """Every forward pass that sampling the images takes, and nothing else."""
    size = batch_of(config, made.model)
    batches = [min(size, config.images - start) for start in range(0, config.images, size)]

    def passes(n):
        x, t, y = torch.zeros(n, 1, 28, 28), torch.full((n,), 0.5), torch.zeros(n, dtype=torch.long)
        for _ in range(SAMPLER.evaluations()):
            made.model(x, t, y)

    with one_thread_a_batch(made.device, len(batches)):
        for _ in map_batches(passes, batches, made.device):
            pass


def timed(call, *arguments):
    """(CPU seconds of all threads, wall seconds) of a call."""
    started = time.process_time(), time.perf_counter()
    call(*arguments)
    return time.process_time() - started[0], time.perf_counter() - started[1]


@pytest.mark.parametrize("images", [500, pytest.param(5_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("form", ["png", "npz"])
def test_sampling_overhead(benchmark, tmp_path, capsys, form, images):
    config = SampleConfig(images=images)
    made = load_generator(config, torch.device("cpu"))
    forward, whole, number = [], [], itertools.count()
    forward_passes(made, SampleConfig(images=200))  # warm-up: threads and memory

    def before():
        forward.append(timed(forward_passes, made, config))
        name = f"{next(number)}"
        return (made, config, SAMPLER, tmp_path / (name if form == "png" else f"{name}.npz")), {}

    benchmark.group = f"sampling {images} images, 20 steps"
    rounds = ROUNDS if images <= 500 else 1
    benchmark.pedantic(lambda *arguments: whole.append(timed(make_samples, *arguments)), setup=before, rounds=rounds)
    cpu, wall = (statistics.median(w[i] / f[i] for w, f in zip(whole, forward, strict=True)) for i in (0, 1))
    benchmark.extra_info |= {"cpu": cpu, "wall": wall}
    with capsys.disabled():
        print(f"\n{form}, {images} images: whole / forward {cpu:.3f} of CPU time, {wall:.3f} of wall (target 1.15)")
