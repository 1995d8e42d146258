"""Run a study, a grid of configurations and seeds, and compare: `python -m sit_rl.study FILE.yaml`.

    python -m sit_rl.study docs/studies/reference.yaml --dry-run     the runs and what they cost
    python -m sit_rl.study docs/studies/reference.yaml               run them, on every core or GPU; resumes
    python -m sit_rl.study docs/studies/reference.yaml --jobs 1

Writes study.md, study.csv, study.png and study.html to --out, by default runs/study-FILE. docs/studies.md describes the
file.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro

from fastfid.cli.command_line import CHECK_FAILED, CommandError, parse
from sit_rl.command_line import run_command
from sit_rl.config import Config, resolve
from sit_rl.files.atomic import folder, writing
from sit_rl.files.lock import held
from sit_rl.files.paths import listed
from sit_rl.presets import FASHION
from sit_rl.ranks.messages import say
from sit_rl.runs.forecast import aligned, evaluation_cost, evaluations
from sit_rl.study.jobs import Job, Pool, devices, jobs_of, unfinished
from sit_rl.study.plan import read_study
from sit_rl.study.report import write_study
from sit_rl.study.results import collect, lines_of

LOCK = "study.lock"
# What the default run takes on two cores (README.md), by which --dry-run predicts others.
DEFAULT_RUN_CORE_SECONDS = 2 * 532


@dataclass(frozen=True)
class StudyArguments:
    """Arguments of the command."""

    file: tyro.conf.Positional[Path]
    """the study, in YAML"""
    out: Path | None = None
    """folder of the runs and the report; default runs/study-FILE"""
    jobs: int = 0
    """runs at a time; 0: one a GPU, or one a core"""
    dry_run: bool = False
    """print the runs, their images and velocity evaluations, and stop"""


def main(argv: list[str] | None = None) -> None:
    """Parse and run; an expected error is one sentence and exit status 2, a failed run exit status 1."""
    run_command(
        lambda: run(parse(StudyArguments, argv, description=__doc__)),
        interrupted="interrupted; the same command goes on with the runs that are left",
    )


def run(arguments: StudyArguments) -> None:
    """Do the runs that are left and write the report; CommandError, after the report, if one of them failed."""
    if arguments.jobs < 0:
        raise ValueError(f"--jobs is {arguments.jobs}; it must not be negative")
    study = read_study(arguments.file)
    out = arguments.out or Path("runs") / f"study-{study.name}"
    places, threads = devices(arguments.jobs)
    jobs = jobs_of(study, out, threads)
    left = unfinished(jobs)
    say(plan(jobs, left, len(places)))
    if arguments.dry_run:
        return
    with ExitStack() as stack:
        stack.enter_context(folder(out))
        with writing("--out", out):
            note = stack.enter_context(held(out / LOCK, "--out", out))
        if note:
            say(f"note: {note}")
        failed = Pool(places, say).run(left)
        missing = [job.name for job in jobs if job.result() is None]
        lines = lines_of(study, collect(study, jobs))
        if not lines:
            raise CommandError(f"no run has ended: {next(iter(failed.values()), 'nothing was run')}", CHECK_FAILED)
        report = write_study(study, lines, missing, out)
    say(f"\n{(out / 'study.md').read_text(encoding='utf-8')}\nreport      {report}")
    if failed:
        raise CommandError(f"{listed(list(failed))} failed; the same command runs what is missing", CHECK_FAILED)


def plan(jobs: list[Job], left: list[Job], places: int) -> str:
    """Aligned lines: the runs, those that are left, and what they cost."""
    cost = sum(_cost(job) for job in left)
    hours = cost / _whole(resolve(FASHION)) * DEFAULT_RUN_CORE_SECONDS / 3600
    rows = list(dict.fromkeys(job.row for job in jobs))
    lines = {
        "study": f"{len(jobs)} runs of {len(rows)} rows, {len(left)} of them left, {places} at a time",
        "evaluations": f"{cost:,.0f} velocity evaluations of training and judging",
        "predicted": f"{hours:.1f} core-hours where the model is the embedded one (from the time of the default run)",
    }
    for i, row in enumerate(rows, 1):
        what = f"{row.config.steps} steps, matched by {' and '.join(row.matched)}" if row.trained else "not trained"
        lines[f"row {i}"] = f"{row.name}: {what}"
    return aligned(lines)


def _cost(job: Job) -> float:
    """Velocity evaluations of one run."""
    return _whole(job.config) if job.row.trained else job.config.evaluation.images * evaluation_cost(job.config)


def _whole(config: Config) -> float:
    return sum(evaluations(config).values())


if __name__ == "__main__":
    main()
