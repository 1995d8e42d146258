"""Make report.html from the files of a run folder: `python -m sit_rl.report runs/NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from fastfid.cli.command_line import parse
from sit_rl.command_line import run_command
from sit_rl.files.atomic import writing
from sit_rl.files.paths import require_paths
from sit_rl.ranks.messages import say
from sit_rl.runs.html_report import write_run_report


@dataclass(frozen=True)
class ReportArguments:
    """Arguments of the command."""

    run: tyro.conf.Positional[Path]
    """run folder"""


def main(argv: list[str] | None = None) -> None:
    """Parse and write the report. An expected error is one sentence."""
    run_command(lambda: report_on(parse(ReportArguments, argv, description=__doc__).run))


def report_on(run: Path) -> None:
    """Write the report of a run folder and print its path."""
    require_paths([("run", run)])
    if not run.is_dir():
        raise ValueError(f"run {run} is a file; pass the folder of the run")
    with writing("run", run):
        say(str(write_run_report(run)))


if __name__ == "__main__":
    main()
