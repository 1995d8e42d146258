"""Overhead of a training step next to model, features and reward, and the gain of a second one-thread rank.

Overhead: the default run's step on one thread.  The benchmark measures CPU time of all threads inside the model's
forward and backward passes, the optimiser with the averages, the feature network and the reward.  The remaining time is
overhead: noise, solver arithmetic, decoding, losses, clipping, gathering, the log, and the checkpoint with its
background save.  Other processes on the machine change CPU time by a few percent.  It runs on the CPU even if there is
a GPU, because CPU seconds do not measure a GPU's work.

Ranks: images per second of a training step, from its own metrics.jsonl, with one and with two one-thread ranks under
torchrun (gloo), at the same global batch, in turns.

    pytest bench/bench_training.py --benchmark-only -s [--full]   a quarter of the default's images; --full: all
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from fastfid import FeatureExtractor
from sit_rl.components.build import build_components
from sit_rl.config import resolve
from sit_rl.estimators import build_estimator
from sit_rl.models.averages import EMA
from sit_rl.models.sit import SiT
from sit_rl.presets import PRESETS
from sit_rl.reward.swap_reward import SwapReward
from sit_rl.runs.log import Clock, RunLog
from sit_rl.training.loop import train
from sit_rl.training.state import start

ROOT = Path(__file__).parent.parent
ROUNDS = 1  # one round has two steps with one rank and two steps with two ranks
STEPS = 3  # of a run; the first makes the reference set and new memory and does not count
# What is timed: owner and name of the function, and the part that it belongs to.
PARTS = (
    (SiT, "forward", "model"), (torch.Tensor, "backward", "model"),
    (torch.optim.AdamW, "step", "optimiser"), (EMA, "update", "optimiser"),
    (FeatureExtractor, "__call__", "features"),
    (SwapReward, "__init__", "reward"), (SwapReward, "propose", "reward"), (SwapReward, "score", "reward"),
    (SwapReward, "roll", "reward"),
)  # fmt: skip
OVERHEAD_TARGET, RANKS_TARGET = 0.05, 1.25
SMALL = {"candidates": 8, "minibatch": 100, "reference_size": 1_250}  # a quarter of each
SIZES = [pytest.param(SMALL, id="quarter"), pytest.param({}, id="whole", marks=pytest.mark.full)]


@contextmanager
def tally():
    """CPU seconds of this thread inside each of PARTS, as a dict that grows."""
    seconds = defaultdict(float)

    def timed(original, name):
        def call(*arguments, **options):
            started = time.thread_time()
            try:
                return original(*arguments, **options)
            finally:
                seconds[name] += time.thread_time() - started

        return call

    with ExitStack() as stack:
        for owner, method, name in PARTS:
            stack.enter_context(mock.patch.object(owner, method, timed(getattr(owner, method), name)))
        yield seconds


def shares(folder, changes):
    """Shares of the CPU time of all steps but the first: one per part, and the remaining time as `outside`."""
    config = PRESETS["fashion"][1].changed(out=folder, evaluate_every=0, judge_features=("none",), **changes)
    config = resolve(config.changed(embedded_images=1_000))
    components = build_components(config, torch.device("cpu"), progress=False)
    state = start(config, components, None, None, Clock())
    folder.mkdir()
    log, estimator = RunLog(folder, 0), build_estimator(config, components)
    train(config.changed(steps=1), components, state, estimator, log)
    with tally() as seconds:
        started = time.process_time()
        train(config.changed(steps=STEPS), components, state, estimator, log)
        state.writer.wait()
        total = time.process_time() - started
    return {name: value / total for name, value in seconds.items()} | {"outside": 1 - sum(seconds.values()) / total}


@pytest.mark.parametrize("changes", SIZES)
def test_step_overhead(benchmark, tmp_path, capsys, changes):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more threads, batches run in parallel, each in its own thread
    benchmark.group = "a training step on one thread"
    try:
        found = benchmark.pedantic(shares, args=(tmp_path / "run", changes), rounds=1)
    finally:
        torch.set_num_threads(threads)
    benchmark.extra_info |= found
    with capsys.disabled():
        text = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
        print(f"\nshares of a step: {text} (target of outside {OVERHEAD_TARGET:.0%})")


def images_per_second(folder, ranks, changes):
    """Images per second of every step but the first, of a run of STEPS steps on one-thread ranks."""
    config = PRESETS["fashion"][1].changed(**changes)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
        "sit_rl/train.py", "--out", str(folder), "--threads=1", f"--steps={STEPS}", "--evaluate-images=20",
        "--evaluate-every=0", "--judge-features=none", "--embedded-images=1000", *flags,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [config.reward.images_per_step / record["seconds"]["total"] for record in records[1:]]


@pytest.mark.parametrize("changes", SIZES)
def test_two_ranks(benchmark, tmp_path, capsys, changes):
    rates = {1: [], 2: []}

    def turn(number):
        for ranks in rates:
            rates[ranks] += images_per_second(tmp_path / f"{number}-{ranks}", ranks, changes)

    numbers = iter(range(10))
    benchmark.group = "training steps on one and two one-thread ranks"
    benchmark.pedantic(turn, setup=lambda: ((next(numbers),), {}), rounds=ROUNDS)
    one, two = (statistics.median(rates[ranks]) for ranks in (1, 2))
    benchmark.extra_info |= {"one": one, "two": two, "ratio": two / one}
    with capsys.disabled():
        print(f"\nimages per second: one rank {one:.1f}, two {two:.1f}, ratio {two / one:.2f} (target {RANKS_TARGET})")
