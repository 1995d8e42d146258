"""Training state on disk: written under a temporary name and renamed, so a crash never leaves a broken file."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch

NAME = re.compile(r"step-(\d{6})\.pt")


def save(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Write `state` as step-NNNNNN.pt and drop all but the newest `keep` checkpoints; OSError says what to free."""
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"step-{step:06d}.pt", folder / f".step-{step:06d}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free / 1e6
        raise OSError(
            f"could not save {path} ({error}; {free:.0f} MB free): make room and run the same command, "
            "it resumes from the last checkpoint"
        ) from None
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if NAME.fullmatch(p.name)) if folder.is_dir() else []


def load_latest(folder: Path) -> dict | None:
    """State of the newest checkpoint, tensors and plain values only, or None where there is none."""
    found = checkpoints(folder)
    if not found:
        return None
    try:
        return torch.load(found[-1], map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"checkpoint {found[-1]} cannot be read ({reason}); delete it to resume from the one before"
        ) from None
