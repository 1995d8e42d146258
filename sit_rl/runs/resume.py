"""From which checkpoint a run goes on.  `sit_rl.training.state` restores what the checkpoint holds."""

from __future__ import annotations

from pathlib import Path

from sit_rl.config import Config, differences
from sit_rl.config_files import load_config
from sit_rl.learner import checkpoint
from sit_rl.options.option import dashed
from sit_rl.runs.run_folder import check_replaceable


def checkpoint_to_resume(config: Config) -> Path | None:
    """The checkpoint to go on from, None for a fresh run; ValueError for a folder that is not this run's.

    ValueError as well for a damaged checkpoint, before the hours that the real images may take.
    """
    place = config.run_folder
    path = checkpoint.latest(place / "checkpoints") if config.resume else None
    if path is None:
        check_replaceable(config)
        return None
    saved = load_config(place / "config.yaml")
    changed = [name for name in differences(saved, config) if name != "steps" or config.steps < saved.steps]
    if changed:
        raise ValueError(
            f"{place} holds a run with another {dashed(changed[0])}; choose another --out, "
            "or --no-resume to start it afresh"
        )
    checkpoint.verify(path)
    return path
