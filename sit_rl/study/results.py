"""What the runs of a study found: changes of every network's metrics, means and spreads of the seeds, verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fastfid.runtime.input_files import reading
from sit_rl.config import Config, resolve
from sit_rl.runs.summary import SAMPLERS, relative_change
from sit_rl.study.budget import spent
from sit_rl.study.jobs import Job
from sit_rl.study.plan import BASE, Row, Study

# Metrics of which higher is better, reported beside the distances, where a network has them.
QUALITIES = ("recall", "coverage")
VERDICT_RULE = (
    "A row is better or worse than the control where the means of the change of FD in never-seen networks, averaged "
    "over both samplers, differ by more than the sum of both rows' standard deviations over at least two seeds each: "
    "the intervals mean ± sd do not overlap. Otherwise there is no verdict."
)


@dataclass(frozen=True)
class Found:
    """One run's relative changes against the untrained model, by sampler; None where something was not measured.

    rewarded   mean over the networks of the run's reward
    unseen     mean over the networks that no run of the study is rewarded by
    qualities  of recall and coverage, mean over the networks
    """

    row: Row
    seed: int
    images: float
    compute: float
    rewarded: dict[str, float | None]
    unseen: dict[str, float | None]
    qualities: dict[str, dict[str, float | None]]

    @property
    def score(self) -> float | None:
        """The change that verdicts are about: never-seen networks under both samplers."""
        return mean([self.unseen[sampler] for sampler in SAMPLERS])


@dataclass(frozen=True)
class Line:
    """One line of the table: a row with all its seeds, and the verdict in words."""

    row: Row
    found: list[Found]
    verdict: str


def networks_of(evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Network → {rewarded, fd, recall, …} of one sampler's evaluation, with or without results by network.

    An evaluation without them has the metrics of --reward-features, and the FD of --judge-features as fd_b.
    """
    if evaluation.get("networks"):
        return dict(evaluation["networks"])
    found = {config["reward_features"]: {"rewarded": True, **evaluation}}
    if evaluation.get("fd_b") is not None:
        found[_first(config["judge_features"])] = {"rewarded": False, "fd": evaluation["fd_b"]}
    return found


def _first(names: str | list[str]) -> str:
    """The first of several names; earlier versions have one name."""
    return names if isinstance(names, str) else names[0]


def collect(study: Study, jobs: Sequence[Job]) -> list[Found]:
    """The changes of every finished run; ValueError, which names the file, for a result of another content."""
    results = [(job, result) for job in jobs if (result := job.result()) is not None]
    bases = {job.seed: result for job, result in results if job.row.name == BASE}
    rewarded = {network for job, result in results if job.row.trained for network in _rewarded(job, result)}
    out = []
    for job, result in results:
        before = result["before"] if job.row.trained else bases.get(job.seed)
        if before is not None and job.row.name != BASE:
            after = result["after"] if job.row.trained else result
            with _reading(job):
                out.append(_found(job, before, after, result["config"], rewarded))
    return out


def _reading(job: Job) -> AbstractContextManager[None]:
    """The boundary around what a result file holds."""
    return reading(job.result_file, "delete it, and the study makes it again", "as a result")


def _rewarded(job: Job, result: dict[str, Any]) -> set[str]:
    with _reading(job):
        networks = networks_of(result["after"]["ode"], result["config"])
        return {name for name, values in networks.items() if values["rewarded"]}


def _found(
    job: Job, before: Mapping[str, Any], after: Mapping[str, Any], config: Mapping[str, Any], rewarded: set[str]
) -> Found:
    own: dict[str, float | None] = {}
    unseen: dict[str, float | None] = {}
    qualities: dict[str, dict[str, float | None]] = {quality: {} for quality in QUALITIES}
    for sampler in SAMPLERS:
        first, last = (networks_of(when[sampler], config) for when in (before, after))

        def change(metric: str, names: Sequence[str], first: Any = first, last: Any = last) -> float | None:
            return mean([relative_change(first[n].get(metric), last[n].get(metric)) for n in names if n in first])

        own[sampler] = change("fd", [name for name, values in last.items() if values["rewarded"]])
        unseen[sampler] = change("fd", [name for name in last if name not in rewarded and not last[name]["rewarded"]])
        for quality in QUALITIES:
            qualities[quality][sampler] = change(quality, list(last))
    cost = _cost(job.row)
    return Found(job.row, job.seed, cost["images"], cost["compute"], own, unseen, qualities)


def _cost(row: Row) -> dict[str, float]:
    """Images and velocity evaluations of a row's training."""
    config: Config = resolve(row.config)
    return {what: spent(config, what) if row.trained else 0.0 for what in ("images", "compute")}


def lines_of(study: Study, found: Sequence[Found]) -> list[Line]:
    """A line for each row that has a result, with its verdict against the control."""
    by_row = {row: [each for each in found if each.row == row] for row in study.rows}
    control = next((runs for row, runs in by_row.items() if row.name == study.control and row.trained), [])
    return [Line(row, runs, verdict(row, runs, control)) for row, runs in by_row.items() if runs]


def verdict(row: Row, runs: Sequence[Found], control: Sequence[Found]) -> str:
    """In words, whether the row is better than the control, by VERDICT_RULE."""
    if not control or row == control[0].row:
        return "control" if control else "–"
    (one, sd_one), (other, sd_other) = (spread([each.score for each in some]) for some in (runs, control))
    if one is None or other is None or sd_one is None or sd_other is None:
        return "–"
    if abs(one - other) <= sd_one + sd_other:
        return "within the spread"
    return "better" if one < other else "worse"


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation of what was measured; None where there are too few values."""
    known = [value for value in values if value is not None]
    return mean(values), statistics.stdev(known) if len(known) > 1 else None


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of what was measured; None for nothing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
