"""The folder of a run: whose it is, and what a fresh run removes from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fastfid.runtime.distributed import from_main
from fastfid.runtime.input_files import read_text
from sit_rl.components.checks import given_paths
from sit_rl.config import Config
from sit_rl.config_files import load_config
from sit_rl.files.atomic import folder, writing
from sit_rl.files.lock import held
from sit_rl.learner import checkpoint
from sit_rl.ranks.messages import say
from sit_rl.ranks.process_group import barrier, is_main
from sit_rl.runs.summary import PROGRESS, SUMMARY

# The file that a run holds a lock on while it works in its folder.
LOCK = "run.lock"
# What a run writes beside config.yaml, and a fresh run in the same folder removes: its folders with the files in them
# (those of checkpoints/ are from version 0.1.0), and its files.
FOLDERS = {
    "checkpoints": ("step-*.pt",),
    "tensorboard": ("events.out.tfevents.*",),
    "figures": (
        "before_*.npy",
        "now_*.npy",
        "after_*.npy",
        "networks.png",
        "curve.png",
        "samples.png",
        "rewards.png",
        "time.png",
    ),
    "ema": ("step-*.safetensors",),
}
FILES = ("metrics.jsonl", SUMMARY, PROGRESS, "report.html", "ema.safetensors")


@contextmanager
def locked_folder(place: Path) -> Iterator[None]:
    """Inside the block the run folder exists, and this run is the only one in it; all ranks call it.

    The main rank holds the lock for all. ValueError, before anything is written, if another run holds it. On failure
    an empty folder is removed.
    """
    with ExitStack() as stack:

        def take() -> str | None:
            stack.enter_context(folder(place))
            with writing("--out", place):
                return stack.enter_context(held(place / LOCK, "--out", place))

        note = from_main(take)
        if note:
            say(f"note: {note}")
        yield


def check_replaceable(config: Config) -> None:
    """ValueError if a fresh run would remove files that no run has written, or that this run needs."""
    place = config.run_folder
    there = [place / name for name in (*FOLDERS, *FILES) if (place / name).exists()]
    if there and not is_run(place):
        raise ValueError(f"{there[0]} is in the way and {place} is no run's folder; choose another --out")
    inside = [f"{flag} {path}" for flag, path in given_paths(config) if _within(path, there)]
    if inside:
        raise ValueError(
            f"{inside[0]} is part of the run that a fresh one in {place} would replace; copy it elsewhere, or choose "
            "another --out"
        )
    if config.resume and any((place / "checkpoints").glob("step-*.pt")):
        raise ValueError(f"{place} holds a run of version 0.1.0; choose another --out, or --no-resume to replace it")
    if config.resume and (place / SUMMARY).is_file():
        raise ValueError(
            f"{place} holds a finished run without its checkpoints; choose another --out, or --no-resume to replace it"
        )


def is_run(place: Path) -> bool:
    """Whether a folder has the config.yaml of a run, of any version."""
    try:
        return any(line.startswith("estimator:") for line in read_text(place / "config.yaml").splitlines())
    except (OSError, ValueError):
        return False


def _within(path: str | Path | None, places: list[Path]) -> bool:
    """Whether a path is one of `places` or lies in one, links followed."""
    return path is not None and any(Path(path).resolve().is_relative_to(place.resolve()) for place in places)


def prepare_folder(config: Config, fresh: bool) -> None:
    """After everything is loaded: empty a fresh run's folder except its config.yaml, or tidy a resumed one."""
    place = config.run_folder
    barrier()  # every rank has looked at what was there
    if is_main():
        with writing("--out", place):
            checkpoint.clean(place / "checkpoints")
            if fresh:
                remove_run(place)
                config.save(place / "config.yaml")
            else:
                if load_config(place / "config.yaml").steps != config.steps:
                    config.save(place / "config.yaml")
                checkpoint.discard_old(place / "checkpoints", config.run.keep_checkpoints)  # it may have been lowered
    barrier()


def remove_run(place: Path) -> None:
    """Delete what an earlier run has written, its checkpoints first, each at once. Other files in its folders stay."""
    for old in checkpoint.checkpoints(place / "checkpoints"):
        checkpoint.discard(old)
    for name, patterns in FOLDERS.items():
        for stale in [path for pattern in patterns for path in (place / name).glob(pattern)]:
            stale.unlink()
        with suppress(OSError):  # it is not there, or not empty
            (place / name).rmdir()
    for name in FILES:
        (place / name).unlink(missing_ok=True)
