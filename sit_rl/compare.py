"""Compare runs; for seeds of one configuration also mean and spread: `python -m sit_rl.compare runs/A runs/B …`.

Takes run folders or copies of their summary.json; prints a Markdown table.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fastfid.cli.command_line import parse
from fastfid.runtime.input_files import reading
from sit_rl.command_line import run_command
from sit_rl.config import MACHINE_FIELDS
from sit_rl.files.paths import require_paths
from sit_rl.runs.summary import load_summary, percent, relative_change, sampler_kinds, summary_file

# Columns of relative change: heading, key in summary.json; each under both samplers.
CHANGES = (("FD", "fd"), ("2nd network", "fd_b"), ("recall", "recall"))
SAMPLERS = ("ode", "sde")  # keys in summary.json: without and with noise; DDIM and DDPM for a DiT
# Fields that may differ between repetitions of one run: the seed, and fields that do not influence the result.
REPETITION_FIELDS = ("seed", *MACHINE_FIELDS, "evaluate_every", "evaluate_every_images")


def changes(summary: dict[str, Any]) -> list[float | None]:
    """The relative change of every column; None for a metric that was not computed."""
    return [
        relative_change(*(summary[when][sampler].get(key) for when in ("before", "after")))
        for _, key in CHANGES
        for sampler in SAMPLERS
    ]


def groups(summaries: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Summaries grouped by configuration without the seed, in order of first appearance."""
    found: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        decisive = {k: v for k, v in summary["config"].items() if k not in REPETITION_FIELDS}
        found.setdefault(json.dumps(decisive, sort_keys=True), []).append(summary)
    return list(found.values())


def compare(summaries: list[dict[str, Any]]) -> str:
    """A Markdown table: one row per run with its FDs, and one row with mean ± standard deviation for repetitions."""
    kinds = [" or ".join(dict.fromkeys(pair)) for pair in zip(*map(sampler_kinds, summaries), strict=True)]
    head = ["run", "images", *(f"{kind} FD" for kind in kinds)]
    head += [f"Δ {name}, {kind}" for name, _ in CHANGES for kind in kinds]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for group in groups(summaries):
        rows += [_run_row(s) for s in group]
        if len(group) > 1:
            rows.append(_spread_row(group))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _run_row(summary: dict[str, Any]) -> list[str]:
    config = summary["config"]
    name = f"{config['estimator']}, {config['reference']}, {config['credit']}, seed {config['seed']}"
    fds = [f"{summary['before'][s]['fd']:.3f} → {summary['after'][s]['fd']:.3f}" for s in SAMPLERS]
    return [name, f"{summary['images_generated']:,}", *fds, *map(percent, changes(summary))]


def _spread_row(group: list[dict[str, Any]]) -> list[str]:
    columns = list(zip(*(changes(s) for s in group), strict=True))
    cells = [
        "–" if None in column else f"{percent(statistics.mean(column))} ± {statistics.stdev(column):.1%}"
        for column in columns
    ]
    repeated = len({summary["config"]["seed"] for summary in group}) < len(group)
    return [f"mean ± sd of {len(group)} {'runs' if repeated else 'seeds'}", "", "", "", *cells]


@dataclass(frozen=True)
class CompareArguments:
    """Arguments of the command."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or files like summary.json"""


def main(argv: list[str] | None = None) -> None:
    """Parse and print the table; an expected error is one sentence."""
    run_command(lambda: print_comparison(parse(CompareArguments, argv, description=__doc__).runs))


def print_comparison(runs: tuple[Path, ...]) -> None:
    """Print the table of the runs' summaries."""
    if not runs:
        raise ValueError("no runs are given; pass run folders, or files like summary.json")
    require_paths(("run", path) for path in runs)
    print(compare([_comparable(path) for path in runs]))


def _comparable(path: Path) -> dict[str, Any]:
    """The summary of a run; ValueError that names the file if a row of the table cannot be made of it."""
    summary = load_summary(path)
    with reading(summary_file(path), "pass a run's folder", "as the summary of a run"):
        compare([summary])
    return summary


if __name__ == "__main__":
    main()
