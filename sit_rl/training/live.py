"""The report of a run while it trains: progress.json and report.html, from the first evaluation on."""

from __future__ import annotations

import time
from typing import Any

from fastfid.runtime.version_commit_date import origin
from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.files.atomic import write_json
from sit_rl.ranks.messages import say
from sit_rl.ranks.process_group import is_main, world_size
from sit_rl.runs.html_report import write_run_report
from sit_rl.runs.summary import PROGRESS, SCHEMA, protocol
from sit_rl.training.held_out import METRICS, floor, real_against_real
from sit_rl.training.state import State

# Seconds between two reports where no evaluation asks for one, and in units of what the last one took: a report of the
# default run takes 0.1 s, and one of a long log never more than a twentieth of the time.
EVERY_SECONDS, EVERY_TIMES = 20.0, 20.0


class Live:
    """Writes the results so far, and the report of them, into the run folder.  It works on the main rank alone."""

    def __init__(self, config: Config, components: Components, state: State):
        self.config, self.components, self.state = config, components, state
        self.stamp = origin(components.device)
        self._floor: dict[str, float | None] | None = None
        self._real: dict[str, dict[str, Any]] = {}
        self._due = 0.0  # by time.monotonic
        self._told = False

    def summary(self, status: str) -> dict[str, Any]:
        """The results so far; those of a finished run are its summary.json.

        status  "running", "finished", or why the run ended early
        """
        if self._floor is None:
            self._floor = floor(self.components)
            self._real = real_against_real(self.components, self.config.evaluation.images)
        return {
            "schema": SCHEMA,
            **self.stamp,
            "status": status,
            "step": self.state.step,
            "config": self.config.to_dict(),
            "before": self.state.evaluations.get("before", {}),
            "after": self.state.evaluations.get("after", {}),
            "floor": self._floor,
            "real_against_real": self._real,
            "seconds": {k: round(v, 2) for k, v in self.state.clock.state_dict().items()},
            "images_generated": self.state.images_generated,
            "ranks": world_size(),
            "extensions": self.state.extensions,
            "protocol": protocol(self.config, self.components, self.state.side, METRICS),
        }

    def step(self, evaluated: bool) -> None:
        """Write after a training step, unless the last report is recent and the step has not `evaluated` the model."""
        if evaluated or time.monotonic() > self._due:
            self.write()

    def write(self, status: str = "running") -> None:
        """Write progress.json and report.html.  A failure does not end the training; a note reports the first one."""
        if not is_main() or not self.state.evaluations.get("before"):
            return
        started = time.monotonic()
        try:
            write_json(self.config.run_folder / PROGRESS, self.summary(status))
            write_run_report(self.config.run_folder)
        except (OSError, ValueError) as error:
            if not self._told:
                say(f"note: the report of the run under way could not be written ({error}); the training goes on")
            self._told = True
        ended = time.monotonic()
        self._due = ended + max(EVERY_SECONDS, EVERY_TIMES * (ended - started))
