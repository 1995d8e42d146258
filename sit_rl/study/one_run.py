"""One run of a study, in a process of its own: `python -m sit_rl.study.one_run CONFIG.yaml [--evaluate-only]`.

`python -m sit_rl.study` starts it. It ends soon after the process that started it, with everything saved.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from fastfid.cli.command_line import parse
from fastfid.runtime.input_files import json_of, read_text, reading
from sit_rl.command_line import run_command
from sit_rl.components.build import build_components
from sit_rl.components.checks import check_inputs
from sit_rl.config import Config, resolve
from sit_rl.config_files import load_config
from sit_rl.files.atomic import write_json
from sit_rl.ranks.process_group import process_group
from sit_rl.runs.run_folder import locked_folder
from sit_rl.runs.summary import SAMPLERS
from sit_rl.train import run_in_group
from sit_rl.training.held_out import evaluate_model

RESULT = "evaluation.json"  # of a run that only evaluates
LOOK_EVERY = 1.0  # seconds between looks at the parent process


@dataclass(frozen=True)
class OneArguments:
    """Arguments of the command."""

    config: tyro.conf.Positional[Path]
    """config.yaml of the run"""
    evaluate_only: bool = False
    """evaluate the config's weights under both samplers, without training"""


def main(argv: list[str] | None = None) -> None:
    """Parse and run; an expected error is one sentence."""

    def work() -> None:
        arguments = parse(OneArguments, argv, description=__doc__)
        config = resolve(load_config(arguments.config))
        threading.Thread(target=stop_without, args=(os.getppid(),), daemon=True).start()
        if not arguments.evaluate_only:
            run_in_group(config)
            return
        with process_group(config.run.threads) as device:
            evaluate_only(config, device)

    run_command(work, interrupted="interrupted; the study's command goes on with this run")


def stop_without(parent: int) -> None:
    """Ask this process to stop, as the system does, once its parent process is not `parent` any more."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)


def evaluate_only(config: Config, device: torch.device) -> None:
    """Evaluate the config's weights under each sampler that has no result yet; evaluation.json keeps each at once."""
    check_inputs(config)
    path = config.run_folder / RESULT
    with locked_folder(config.run_folder):
        known = load_evaluation(config.run_folder)
        components = build_components(config, device, progress=False)
        for name, sampler in (("ode", config.evaluation.ode), ("sde", config.evaluation.sde)):
            if known[name] is None:
                known[name] = evaluate_model(
                    components, components.model, sampler, config.evaluation.images,
                    seed=config.seed, batch=config.rollout.batch, label=f"evaluate {name}",
                ).metrics  # fmt: skip
                write_json(path, known | {"config": config.to_dict()})


def load_evaluation(folder: Path) -> dict[str, Any]:
    """What evaluation.json of a run folder holds, with None for a sampler that has no result yet.

    ValueError or OSError, which names the file, for another content.
    """
    path, nothing = folder / RESULT, dict.fromkeys(SAMPLERS)
    if not path.is_file():
        return dict(nothing)
    with reading(path, "delete it, and the study makes it again", "as an evaluation"):
        found: dict[str, Any] = nothing | json_of(read_text(path))
        return found


if __name__ == "__main__":
    main()
