"""What a run tells while it goes: metrics.jsonl, TensorBoard, the terminal, and where its time went."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from sit_rl.components.image_sets import tile
from sit_rl.config import Config
from sit_rl.files.atomic import write_text
from sit_rl.files.paths import require_extra
from sit_rl.ranks.process_group import is_main

PHASES = ("setup", "rollout", "reward", "update", "refresh", "evaluate", "save")
GRID_COLUMNS = 10  # of a sample grid; evaluation labels cycle through the classes, so each column is one class of ten


class Clock:
    """Seconds spent in each phase and in total, over the whole run (resumes included) and since the last `lap`."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.running: str | None = None  # the phase under way, or the one that an exception ended
        self.go_on(seconds)

    def go_on(self, seconds: dict[str, float] | None) -> None:
        """Count on from an earlier process's `state_dict`."""
        self.seconds = {phase: 0.0 for phase in PHASES} | (seconds or {})
        self._earlier, self._started = self.seconds.pop("total", 0.0), time.perf_counter()
        self._lap = self.state_dict()

    @contextmanager
    def phase(self, name: str):
        """Count the time inside a with-block towards `name`."""
        started, self.running = time.perf_counter(), name
        try:
            yield
            self.running = None
        finally:
            self.seconds[name] += time.perf_counter() - started

    def state_dict(self) -> dict[str, float]:
        """Seconds of every phase, and `total`: wall time of every process that worked on the run."""
        return self.seconds | {"total": self._earlier + time.perf_counter() - self._started}

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        now, before = self.state_dict(), self._lap
        self._lap = now
        return {k: v - before[k] for k, v in now.items()}


class RunLog:
    """Writes one line a step; a resumed run first drops the lines of steps it will repeat.

    metrics.jsonl and TensorBoard always, Weights & Biases where `remote` is a run of `start_wandb`.
    """

    def __init__(self, folder: Path, first_step: int, remote=None):
        self.enabled, self.remote = is_main(), remote
        if not self.enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(folder) if r["step"] < first_step]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def step(self, record: dict) -> None:
        """Append a record, a flat dict with an integer `step`, and show its numbers in TensorBoard."""
        if not self.enabled:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        numbers = {k: v for k, v in _flatten(record) if k != "step" and isinstance(v, (int, float))}
        for name, value in numbers.items():
            self.board.add_scalar(name, value, record["step"])
        self.board.flush()
        if self.remote is not None:
            self.remote.log(numbers, step=record["step"])

    def images(self, name: str, images: torch.Tensor, step: int) -> None:
        """Show a grid of uint8 images [n, C, H, W] in TensorBoard."""
        if self.enabled and len(images):
            grid = tile(images.numpy(), GRID_COLUMNS)
            self.board.add_image(name, grid, step, dataformats="HW" if grid.ndim == 2 else "HWC")

    def close(self) -> None:
        """Finish the TensorBoard file and the Weights & Biases run."""
        if self.enabled:
            self.board.close()
            if self.remote is not None:
                self.remote.finish()


def start_wandb(config: Config):
    """A Weights & Biases run that a resume of the same folder continues; one sentence where it cannot begin."""
    require_extra("--wandb")
    import wandb

    project, folder = config.run.wandb, config.run_folder
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    try:
        return wandb.init(
            project=project,
            name=folder.name,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=config.to_dict(),
        )
    except Exception as error:  # its own types, for a missing login or network
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"--wandb {project} could not begin a run ({reason}); run `wandb login`, or set WANDB_MODE=offline"
        ) from None


def read_metrics(folder: Path) -> list[dict]:
    """Records of metrics.jsonl; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def say(text: str) -> None:
    """Print on the main rank, without breaking a progress bar."""
    if is_main():
        tqdm.write(text)


def _flatten(record: dict, prefix: str = ""):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
