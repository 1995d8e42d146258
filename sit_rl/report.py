"""report.html and the terminal's table, made from the files of a run folder: `python -m sit_rl.report runs/NAME`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sit_rl.files.atomic import writing
from sit_rl.files.paths import require_paths
from sit_rl.runs.html_report import write_report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    try:
        run = parser.parse_args().run
        require_paths([("run", run)])
        if not run.is_dir():
            raise ValueError(f"run {run} is a file; pass the folder of the run")
        with writing("run", run):
            print(write_report(run))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
