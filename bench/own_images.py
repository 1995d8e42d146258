"""Time and memory of pretraining and of RL on images of one's own, at 32 and 64 pixels.

    python bench/own_images.py > bench/results/own-images.csv         both sizes
    python bench/own_images.py --sizes 32 --iterations 10             a quicker look

The images are synthetic: discs and squares of any colour in two classes.  Only their number and size matter for time
and memory.  Each row is one size.  `sit_rl.pretrain base` and one step of `sit_rl.train` run as processes of their own,
with every choice that they make by default, except that a pretraining is short and that little is evaluated.

    iteration_seconds    of pretraining, mean over the iterations
    networks_seconds     reading the images, training both feature networks and judging 40 samples: the process's time
                         without the iterations
    step_seconds         of RL: rollout, reward and update of 1,600 images, without the reference set and evaluations
    *_megabytes          largest resident memory of the process
    *_cores              CPU seconds of the process per second: below the number of threads, others were using the
                         machine, and the seconds would be fewer on a free one
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from fastfid.runtime.version_commit_date import origin
from sit_rl.learner import checkpoint
from sit_rl.models.card import read_card
from sit_rl.models.loading import load_model

IMAGES = 500  # a step costs the same with more; reading and the networks take longer
CLASSES = ("disc", "square")
# The smallest reference set that holds a step's images, and evaluations that say nothing.
LITTLE = ("--evaluate-images", "60", "--evaluate-every", "0", "--reference-size", "1600")


def drawing(seed: int, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: a disc or a square of its own colour, place and size on a ground of its own."""
    rng = np.random.default_rng(seed)
    ground, ink = rng.integers(0, 256, (2, 3))
    y, x = np.mgrid[:side, :side] / side
    cy, cx, radius = *rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.4)
    far = np.hypot(y - cy, x - cx) if seed % 2 == 0 else np.maximum(abs(y - cy), abs(x - cx))
    return np.where((far < radius)[..., None], ink, ground).astype(np.uint8)


def write_images(folder: Path, side: int) -> Path:
    """The folder with IMAGES pictures in folders of their classes."""
    for seed in range(IMAGES):
        path = folder / CLASSES[seed % 2] / f"{seed:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawing(seed, side)).save(path)
    return folder


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    cores: float
    megabytes: int


def process(module: str, *words: object) -> Cost:
    """What a command takes that must end well; its output goes to stderr."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", module, *map(str, words)], stdout=sys.stderr)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{module} ended with status {child.returncode}")
    seconds = time.perf_counter() - started
    megabytes = round(usage.ru_maxrss / 1e3)  # Linux counts in KiB
    return Cost(seconds, (usage.ru_utime + usage.ru_stime) / seconds, megabytes)


def measured(side: int, iterations: int, steps: int, folder: Path) -> dict[str, object]:
    """A row of the table."""
    images, model, run = write_images(folder / "images", side), folder / "model", folder / "run"
    pretraining = process(
        "sit_rl.pretrain", "base", "--images", images, "--out", model,
        "--iterations", iterations, "--curve-every", iterations, "--curve-images", 40,
    )  # fmt: skip
    saved = checkpoint.latest(model / "checkpoints")
    assert saved is not None
    training = float(checkpoint.load_values(saved)["seconds"])
    rl = process("sit_rl.train", "--checkpoint", model, "--images", images, "--out", run, "--steps", steps, *LITTLE)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    return {
        "side": side, "images": IMAGES, "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in load_model(model).parameters()),
        "batch": read_card(model).training["batch"],
        "iteration_seconds": round(training / iterations, 3), "networks_seconds": round(pretraining.seconds - training),
        "pretraining_megabytes": pretraining.megabytes, "pretraining_cores": round(pretraining.cores, 2),
        "step_seconds": round(sum(last[phase] for phase in ("rollout", "reward", "update")), 1),
        "rl_megabytes": rl.megabytes, "rl_cores": round(rl.cores, 2), "machine": origin("cpu")["device"],
    }  # fmt: skip


def main() -> None:
    """Print the table as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--iterations", type=int, default=30, help="of pretraining")
    parser.add_argument("--steps", type=int, default=1, help="of RL; the last one counts")
    arguments = parser.parse_args()
    writer = None
    for side in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(side, arguments.iterations, arguments.steps, Path(folder))
        if writer is None:
            writer = csv.DictWriter(sys.stdout, row)
            writer.writeheader()
        writer.writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
