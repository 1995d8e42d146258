"""Time and memory of pretraining and of RL on images of one's own, at 32 and 64 pixels.

    python bench/own_images.py                          both sizes, about five minutes on two free cores
    python bench/own_images.py --out other.csv --sizes 32 --iterations 5       a quicker look

The images are synthetic: discs and squares of any colour in two classes.  Only their number and size matter for time
and memory.  `sit_rl.pretrain base` and one step of `sit_rl.train` run as processes of their own, with every choice that
they make by default, except that a pretraining is short, that little is evaluated, and that a step is a half of a
default one.  The command prints what it does, writes a row for each size to --out, and ends with the table of
docs/guides/own-images.md, whose minutes are computed from the rows for IMAGES_OF_THE_GUIDE images.

    iteration_seconds      of pretraining, mean over the iterations
    network_step_seconds   of an optimiser step of both feature networks together, mean over their short training
    step_seconds           of RL: rollout, reward and update of `step_images` images, without the reference set and
                           evaluations
    *_megabytes            largest resident memory of the process
    *_cores                CPU seconds of the process per second: below the number of threads, others were using the
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
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from fastfid.runtime.version_commit_date import origin
from sit_rl import pretrain
from sit_rl.learner import checkpoint
from sit_rl.models.card import read_card
from sit_rl.models.loading import load_model
from sit_rl.presets import PRESETS
from sit_rl.pretraining import networks, own
from sit_rl.pretraining.flow import FlowSettings
from sit_rl.pretraining.options import CURVE_IMAGES, POINTS
from sit_rl.pretraining.plan import Choices, curve_seconds, flow_settings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "own-images.csv"
IMAGES = 500  # a step costs the same with more; only reading takes longer
CLASSES = ("disc", "square")
NETWORK_STEPS = 40  # of a feature network's training; a whole one has some hundred equal steps
# Half of the default's subsets of 50 images, the smallest reference set that holds them, and evaluations that say
# nothing.  Time grows by the number of images.
CANDIDATES, STEP_IMAGES = 16, 800
LITTLE = (
    "--candidates", str(CANDIDATES), "--reference-size", str(STEP_IMAGES), "--evaluate-images", "60",
    "--evaluate-every", "0",
)  # fmt: skip
IMAGES_OF_THE_GUIDE = 2_000
NETWORK_TIMES = "network_seconds.json"  # that `pretrain_briefly` leaves beside the model


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


def process(what: str, *words: object) -> Cost:
    """What a Python process takes that must end well; its output goes to stderr."""
    say(what)
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *map(str, words)], stdout=sys.stderr, cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{what}: the process ended with status {child.returncode}")
    seconds = time.perf_counter() - started
    megabytes = round(usage.ru_maxrss / 1e3)  # Linux counts in KiB
    say(f"{what}: {seconds:.0f} s")
    return Cost(seconds, (usage.ru_utime + usage.ru_stime) / seconds, megabytes)


def say(text: str) -> None:
    """Print progress, apart from the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def pretrain_briefly(words: list[str]) -> None:
    """The command `sit_rl.pretrain`, whose feature networks learn for NETWORK_STEPS steps each; it notes their time."""
    networks.LEAST_SEEN = networks.MOST_SEEN = NETWORK_STEPS * networks.BATCH
    seconds = {}

    def timed(role: str, *rest: Any) -> str:
        started = time.perf_counter()
        result = networks.train_network(role, *rest)
        seconds[role] = time.perf_counter() - started
        return result

    own.train_network = timed
    pretrain.main(words)
    out = Path(words[words.index("--out") + 1])
    (out.parent / NETWORK_TIMES).write_text(json.dumps(seconds))


def measured(side: int, iterations: int, folder: Path) -> dict[str, Any]:
    """A row of the table."""
    images, model, run = write_images(folder / "images", side), folder / "model", folder / "run"
    brief = "import sys; from bench.own_images import pretrain_briefly; pretrain_briefly(sys.argv[1:])"
    pretraining = process(
        f"{side} px: pretraining, {NETWORK_STEPS} steps of each network and {iterations} iterations",
        "-c", brief, "base", "--images", images, "--out", model,
        "--iterations", iterations, "--curve-every", iterations, "--curve-images", 40,
    )  # fmt: skip
    saved = checkpoint.latest(model / "checkpoints")
    assert saved is not None
    of_networks = json.loads((folder / NETWORK_TIMES).read_text())
    rl = process(
        f"{side} px: a step of RL", "-m", "sit_rl.train", "--checkpoint", model, "--images", images, "--out", run,
        "--steps", 1, *LITTLE,
    )  # fmt: skip
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    generator = load_model(model)
    return {
        "side": side, "images": IMAGES, "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in generator.parameters()), "width": generator.config.width,
        "batch": read_card(model).training["batch"],
        "iteration_seconds": round(float(checkpoint.load_values(saved)["seconds"]) / iterations, 3),
        "network_step_seconds": round(sum(of_networks.values()) / NETWORK_STEPS, 3),
        "pretraining_megabytes": pretraining.megabytes, "pretraining_cores": round(pretraining.cores, 2),
        "step_images": STEP_IMAGES,
        "step_seconds": round(sum(last[phase] for phase in ("rollout", "reward", "update")), 1),
        "rl_megabytes": rl.megabytes, "rl_cores": round(rl.cores, 2), "machine": origin("cpu")["device"],
    }  # fmt: skip


def guide_table(rows: list[dict[str, Any]]) -> str:
    """The rows as the table of the guide, in Markdown."""
    preset = PRESETS["own"][1]
    steps, images = preset.steps, preset.reward.images_per_step
    columns = [f"| | {' | '.join(str(row['side']) + ' px' for row in rows)} |", "|---|" + "---:|" * len(rows)]
    plans = [plan_of(row) for row in rows]
    minutes = [
        (row["network_step_seconds"] * network_steps / 60, pretraining_seconds(row, settings) / 60)
        for row, (settings, network_steps) in zip(rows, plans, strict=True)
    ]
    cells = {
        "generator": [f"{row['parameters'] / 1e6:.1f}M parameters, width {row['width']}" for row in rows],
        "both feature networks": [f"{of_networks:.1f} min" for of_networks, _ in minutes],
        "iteration of 64 images": [f"{row['iteration_seconds']:.2f} s" for row in rows],
        f"pretraining, {plans[0][0].iterations:,} iterations and {POINTS} points of the curve": [
            f"{of_networks + of_flow:.0f} min" for of_networks, of_flow in minutes
        ],
        "peak memory of pretraining": [f"{row['pretraining_megabytes'] / 1e3:.1f} GB" for row in rows],
        f"RL, {steps} steps of {images:,} images": [
            f"{steps * row['step_seconds'] * images / row['step_images'] / 60:.0f} min" for row in rows
        ],
        "peak memory of RL, with half of a step's images": [f"{row['rl_megabytes'] / 1e3:.1f} GB" for row in rows],
    }
    return "\n".join([*columns, *(f"| {name} | {' | '.join(values)} |" for name, values in cells.items())])


def plan_of(row: dict[str, Any]) -> tuple[FlowSettings, int]:
    """What a pretraining on IMAGES_OF_THE_GUIDE images would do: its settings, and the steps of a feature network."""
    given = Choices(0, 0, 0, None, None, pretrain.BATCH, None, 0)
    count = round(IMAGES_OF_THE_GUIDE * (1 - pretrain.OwnImageFlags.heldout_fraction))
    return flow_settings(count, row["width"], given), networks.steps_of(count)


def pretraining_seconds(row: dict[str, Any], settings: FlowSettings) -> float:
    """Seconds of all iterations and of the points of the curve."""
    each = row["iteration_seconds"]
    return float(settings.iterations * each + POINTS * curve_seconds(each, settings, CURVE_IMAGES))


def main() -> None:
    """Measure, write the rows as CSV and print the table of the guide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file of the rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--iterations", type=int, default=12, help="of pretraining")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for side in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(side, arguments.iterations, Path(folder)))
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    say(f"written to {arguments.out}")
    print(guide_table(rows))


if __name__ == "__main__":
    main()
