"""Compare runs; for seeds of one configuration also mean and spread: `python -m sit_rl.compare runs/A runs/B …`.

Takes run folders or copies of their summary.json; prints a Markdown table.  Only runs of the same settings, networks
and real images share a mean; a line below the table tells why others do not.
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
from sit_rl.files.paths import listed, names_or_paths, require_paths
from sit_rl.ranks.messages import say
from sit_rl.runs.summary import (
    SAMPLERS,
    SUMMARY,
    load_summary,
    percent,
    relative_change,
    sampler_kinds,
    summary_file,
)

Summary = dict[str, Any]  # of summary.json
# Columns of relative change: heading, key in summary.json; each under both samplers.
CHANGES = (("FD", "fd"), ("2nd network", "fd_b"), ("recall", "recall"))
# Fields that may differ between repetitions of one run: the seed, and fields that do not influence the result.
REPETITION_FIELDS = ("seed", *MACHINE_FIELDS, "evaluate_every", "evaluate_every_images")
# Keys of the protocol that must agree within a mean, beside the networks: real images and samplers.
MEASUREMENT_FIELDS = ("generated_images", "heldout_images", "reward_real_images", "samplers")


def changes(summary: Summary) -> list[float | None]:
    """The relative change of every column; None for a metric that was not computed."""
    return [
        relative_change(*(summary[when][sampler].get(key) for when in ("before", "after")))
        for _, key in CHANGES
        for sampler in SAMPLERS
    ]


def groups(summaries: list[Summary]) -> list[list[Summary]]:
    """Summaries of equal settings and equal measurement, whatever their seeds, in order of first appearance."""
    found: dict[str, list[Summary]] = {}
    for summary in summaries:
        found.setdefault(json.dumps(decisive(summary), sort_keys=True), []).append(summary)
    return list(found.values())


def decisive(summary: Summary) -> dict[str, Any]:
    """What must be equal in the runs of one mean, by name: settings, and how the numbers were measured."""
    config = {name: value for name, value in summary["config"].items() if name not in REPETITION_FIELDS}
    protocol = {name: summary["protocol"].get(name) for name in MEASUREMENT_FIELDS}
    networks = {
        key: {name: net.get(name) for name in ("name", "preprocessing", "weights_sha256")}
        for key, net in summary["protocol"]["networks"].items()
    }
    return config | protocol | {"networks": networks}


def unlike(first: Summary, other: Summary) -> list[str]:
    """Names of what differs between two runs that no mean may cover."""
    mine, theirs = decisive(first), decisive(other)
    names = dict.fromkeys((*mine, *theirs))
    return [name.replace("_", " ") for name in names if mine.get(name) != theirs.get(name)]


def compare(summaries: list[Summary], names: list[str] | None = None) -> str:
    """A Markdown table: a row per run, one with mean ± standard deviation for repetitions, and what was not averaged.

    names  of the runs, such as their folders; what their configs tell unless given
    """
    named = dict(zip(map(id, summaries), names or map(_folder_of, summaries), strict=True))
    kinds = [" or ".join(dict.fromkeys(pair)) for pair in zip(*map(sampler_kinds, summaries), strict=True)]
    head = ["folder", "run", "data", "network", "images", *(f"{kind} FD" for kind in kinds)]
    head += [f"Δ {name}, {kind}" for name, _ in CHANGES for kind in kinds]
    rows = [head, [*["---"] * 4, *["---:"] * (len(head) - 4)]]
    alike = groups(summaries)
    for group in alike:
        rows += [_run_row(s, named[id(s)]) for s in group]
        if len(group) > 1:
            rows.append(_spread_row(group))
    table = "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
    return "\n".join([table, *_notes(alike, named)])


def _cell(text: str) -> str:
    """Text that does not end a cell of a Markdown table."""
    return text.replace("|", "\\|")


def _folder_of(summary: Summary) -> str:
    return str(summary["config"].get("out") or "")


def _run_row(summary: Summary, name: str) -> list[str]:
    config = summary["config"]
    what = f"{config['estimator']}, {config['reference']}, {config['credit']}, seed {config['seed']}"
    fds = [f"{summary['before'][s]['fd']:.3f} → {summary['after'][s]['fd']:.3f}" for s in SAMPLERS]
    networks = " + ".join(str(net["name"]) for net in summary["protocol"]["networks"].values())
    return [
        name, what, _data(summary), networks, f"{summary['images_generated']:,}", *fds, *map(percent, changes(summary))
    ]  # fmt: skip


def _data(summary: Summary) -> str:
    """The real images of the evaluation."""
    config, count = summary["config"], summary["protocol"].get("heldout_images")
    file = config.get("heldout") or config.get("real")
    name = "embedded Fashion-MNIST" if file is None else Path(file).name
    return name if count is None else f"{name} ({count:,})"


def _spread_row(group: list[Summary]) -> list[str]:
    columns = list(zip(*(changes(s) for s in group), strict=True))
    cells = [
        "–" if None in column else f"{percent(statistics.mean(column))} ± {statistics.stdev(column):.1%}"
        for column in columns
    ]
    repeated = len({summary["config"]["seed"] for summary in group}) < len(group)
    return ["", f"mean ± sd of {len(group)} {'runs' if repeated else 'seeds'}", *[""] * 5, *cells]


def _notes(alike: list[list[Summary]], named: dict[int, str]) -> list[str]:
    """Why runs are not in one mean, and what may differ within one."""
    first, *others = alike
    notes = [
        f"not in one mean: {named[id(first[0])]} and {named[id(group[0])]} differ in "
        f"{listed(unlike(first[0], group[0]))}"
        for group in others
    ]
    for group in alike:
        commits = {summary.get("commit") or summary.get("version") for summary in group}
        if len(commits) > 1:
            names = listed([named[id(summary)] for summary in group])
            notes.append(f"note: {names} were made by different versions: {listed(sorted(map(str, commits)))}")
    return ["", *notes] if notes else []


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
    folders = [(path.parent if path.name == SUMMARY else path).resolve().name for path in runs]
    say(compare([_comparable(path) for path in runs], names_or_paths(folders, runs)))


def _comparable(path: Path) -> Summary:
    """The summary of a run; ValueError that names the file if a row of the table cannot be made of it."""
    summary = load_summary(path)
    with reading(summary_file(path), "pass a run's folder", "as the summary of a run"):
        compare([summary])
    return summary


if __name__ == "__main__":
    main()
