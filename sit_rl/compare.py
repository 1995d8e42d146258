"""Compare runs; for seeds of one configuration also mean and spread: `python -m sit_rl.compare runs/A runs/B …`.

Takes run folders or copies of their summary.json; prints a Markdown table of the runs, and one of every network that
judged them.  Only runs of the same settings, networks and real images share a mean; a line at the end tells why others
do not.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
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
from sit_rl.runs.columns import GROUPS
from sit_rl.runs.network_figure import network_groups
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
# Columns of relative change in the table of networks: heading, key of a network's scores.
NETWORK_CHANGES = (
    ("FD", "fd"), ("sliced W₂", "sliced_w2"),
    ("precision", "precision"), ("recall", "recall"), ("coverage", "coverage"),
)  # fmt: skip
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
    every = {"every_network": summary["protocol"].get("all_networks"), "roles_of_networks": network_groups(summary)}
    return config | protocol | {"networks": networks} | every


def unlike(first: Summary, other: Summary) -> list[str]:
    """Names of what differs between two runs that no mean may cover."""
    mine, theirs = decisive(first), decisive(other)
    names = dict.fromkeys((*mine, *theirs))
    return [name.replace("_", " ") for name in names if mine.get(name) != theirs.get(name)]


def compare(summaries: list[Summary], names: list[str] | None = None) -> str:
    """Markdown: a row per run, one with mean ± standard deviation for repetitions, every network, what has no mean.

    names  of the runs, such as their folders; what their configs tell unless given
    """
    named = dict(zip(map(id, summaries), names or map(_folder_of, summaries), strict=True))
    kinds = [" or ".join(dict.fromkeys(pair)) for pair in zip(*map(sampler_kinds, summaries), strict=True)]
    head = ["folder", "run", "data", "network", "images", *(f"{kind} FD" for kind in kinds)]
    head += [f"Δ {name}, {kind}" for name, _ in CHANGES for kind in kinds]
    rows = [head]
    alike = groups(summaries)
    for group in alike:
        rows += [_run_row(s, named[id(s)]) for s in group]
        if len(group) > 1:
            rows.append(_spread_row(group))
    tables = [markdown(rows, words=4), *(network_table(group, named) for group in alike)]
    return "\n".join(["\n\n".join(filter(None, tables)), *_notes(alike, named)])


def network_table(group: list[Summary], named: dict[int, str]) -> str:
    """Markdown: a row for each network and sampler, with means ± standard deviations over the group's runs.

    FD and FDr are means before and after training. Empty for summaries of earlier versions, which have no networks.

    named  names of the runs, by the id of their summaries
    """
    roles = network_groups(group[0])
    if not roles:
        return ""
    rows = [["network", "role", "sampler", "FD", "FDr", *(f"Δ {name}" for name, _ in NETWORK_CHANGES)]]
    for sampler, kind in zip(SAMPLERS, sampler_kinds(group[0]), strict=True):
        rows += [[name, GROUPS[seen], kind, *_network_cells(group, sampler, name)] for name, seen in roles.items()]
    title = ", ".join(filter(None, ["every network", _repetitions(group), listed([named[id(s)] for s in group])]))
    return f"{title}:\n\n{markdown(rows, words=3)}"


def _network_cells(group: list[Summary], sampler: str, name: str) -> list[str]:
    """FD, FDr and the changes of one network under one sampler."""
    before, after = ([summary[when][sampler]["networks"][name] for summary in group] for when in ("before", "after"))
    pairs = [f"{_mean(before, key)} → {_mean(after, key)}" for key in ("fd", "fdr")]
    changed = [
        [relative_change(first.get(key), last.get(key)) for first, last in zip(before, after, strict=True)]
        for _, key in NETWORK_CHANGES
    ]
    return [*pairs, *map(spread, changed)]


def _mean(scores: list[dict[str, Any]], key: str) -> str:
    values = [each[key] for each in scores if each.get(key) is not None]
    return f"{statistics.mean(values):.3g}" if len(values) == len(scores) else "–"


def markdown(rows: list[list[str]], words: int) -> str:
    """The rows as a Markdown table whose first `words` columns are words and whose others are numbers."""
    ruled = [rows[0], [*["---"] * words, *["---:"] * (len(rows[0]) - words)], *rows[1:]]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in ruled)


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
    columns = zip(*(changes(s) for s in group), strict=True)
    return ["", _repetitions(group), *[""] * 5, *map(spread, columns)]


def _repetitions(group: list[Summary]) -> str:
    """What the numbers of a group are; empty for one run."""
    if len(group) == 1:
        return ""
    repeated = len({summary["config"]["seed"] for summary in group}) < len(group)
    return f"mean ± sd of {len(group)} {'runs' if repeated else 'seeds'}"


def spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of relative changes; – if one is missing, and one value alone as it is."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return percent(None)
    deviation = f" ± {statistics.stdev(known):.1%}" if len(known) > 1 else ""
    return percent(statistics.mean(known)) + deviation


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
