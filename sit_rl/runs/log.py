"""What a run reports while it runs: metrics.jsonl, TensorBoard, the terminal, and the seconds of each phase."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from fastfid.runtime.errors import one_line
from fastfid.runtime.hashes import sha256
from fastfid.runtime.input_files import json_of
from sit_rl.components.image_sets import tile
from sit_rl.config import Config
from sit_rl.files.atomic import write_text
from sit_rl.files.paths import listed, require_extra
from sit_rl.ranks.messages import say
from sit_rl.ranks.process_group import is_main

PHASES = ("setup", "rollout", "reward", "update", "refresh", "evaluate", "save")
NAMED_LINES = 3  # damaged lines that a note names; the first ones are enough to find the cause
GRID_COLUMNS = 10  # evaluation labels cycle through the classes, so with ten classes each column shows one class


class Clock:
    """Seconds of each phase and in total: over the whole run with its resumes, and since the last `lap`."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.running: str | None = None  # the current phase, or the phase that an exception ended
        self.continue_from(seconds)

    def continue_from(self, seconds: dict[str, float] | None) -> None:
        """Continue from the `state_dict` of an earlier process."""
        self.seconds = {phase: 0.0 for phase in PHASES} | (seconds or {})
        self._earlier, self._started = self.seconds.pop("total", 0.0), time.perf_counter()
        self._lap = self.state_dict()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds inside a with-block for the phase `name`."""
        started, self.running = time.perf_counter(), name
        try:
            yield
            self.running = None
        finally:
            self.seconds[name] += time.perf_counter() - started

    def state_dict(self) -> dict[str, float]:
        """Seconds of every phase, and `total`: the wall time of all processes that worked on the run."""
        return self.seconds | {"total": self._earlier + time.perf_counter() - self._started}

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        now, before = self.state_dict(), self._lap
        self._lap = now
        return {k: v - before[k] for k, v in now.items()}


class Remote(Protocol):
    """What is used of a Weights & Biases run."""

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        """Send the numbers of one step."""

    def finish(self) -> None:
        """End the run."""


class RunLog:
    """Writes one line per step. A resumed run first removes the lines of the steps that it will repeat.

    Writes metrics.jsonl and TensorBoard, and Weights & Biases if `remote` is a run of `start_wandb`.
    """

    def __init__(self, folder: Path, first_step: int, remote: Remote | None = None):
        self.enabled, self.remote = is_main(), remote
        if not self.enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(folder) if r["step"] < first_step]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def step(self, record: dict[str, Any]) -> None:
        """Append a record that has an integer `step`, and show its numbers in TensorBoard."""
        if not self.enabled:
            return
        with open(self.path, "a", encoding="utf-8") as file:
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


def start_wandb(config: Config) -> Remote:
    """A Weights & Biases run, continued by a resume of the same folder; OSError if it cannot start."""
    require_extra("--wandb")
    import wandb

    project, folder = config.run.wandb, config.run_folder
    identity = sha256([str(folder.resolve())])[:16]
    try:
        run: Remote = wandb.init(
            project=project,
            name=folder.name,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=config.to_dict(),
        )
        return run
    except Exception as error:  # wandb has its own types, for a missing login or network
        reason = one_line(error)
        raise OSError(
            f"--wandb {project} could not begin a run ({reason}); run `wandb login`, or set WANDB_MODE=offline"
        ) from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl. Other lines are left out, and a note names them; not the last one if a crash cut it."""
    path = folder / "metrics.jsonl"
    *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    records = [_record(line) for line in [*lines, rest]]
    bad = [str(i + 1) for i, line in enumerate(lines) if line.strip() and records[i] is None]
    if bad:
        which = f"line {bad[0]} is" if len(bad) == 1 else f"lines {listed(_few(bad))} are"
        say(f"note: in {path}, {which} damaged or not of a training step; left out")
    return [record for record in records if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line of metrics.jsonl; None for any other text."""
    try:
        record = json_of(line.decode("utf-8-sig"))  # an editor may have put a byte order mark before the first line
    except ValueError:  # UnicodeDecodeError is one
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _few(words: list[str]) -> list[str]:
    """The first words, and how many more there are."""
    return words if len(words) <= NAMED_LINES else [*words[:NAMED_LINES], f"{len(words) - NAMED_LINES} more"]


def _flatten(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(a/b/c, value) of nested dicts."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
