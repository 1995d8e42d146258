"""The charts of a run's report, from its summary and the records of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from fastfid.pages.charts import COLD, WARM, Chart, Line, chart, histogram
from sit_rl.runs.columns import GROUPS
from sit_rl.runs.network_figure import curve, line_styles, network_groups
from sit_rl.runs.summary import SAMPLERS, sampler_kinds

Records = list[dict[str, Any]]

STEP = "training step"
# Key of a step's record, title, label of the axis, and what it means.
OF_STEPS = (
    ("loss", "Loss", "loss", "Mean over the optimiser steps of a training step."),
    ("drift", "Drift from the base model", "mean squared difference of velocities", ""),
    ("kl", "KL from the policy that made the images", "nats", ""),
    ("gradient_norm", "Norm of the gradient, before clipping", "norm", ""),
    ("image_reward_std", "Spread of the images' rewards", "standard deviation", ""),
    ("lr", "Learning rate", "rate", ""),
)
# Key of an evaluation's metrics, title and label of the axis; whether the axis starts from 0.
OF_EVALUATIONS = (
    ("fd_b", "Fréchet distance on the second network", "FD", True),
    ("recall", "Recall", "recall", False),
    ("precision", "Precision", "precision", False),
)


def distance_charts(summary: dict[str, Any], records: Records) -> list[Chart]:
    """FD of the reference set and of the evaluations over training, then the other metrics."""
    first = chart(
        "Fréchet distance over training",
        [
            Line("reference set", _of_steps(records, "reference_fd"), color=3),
            *_evaluations(summary, records, "fd"),
        ],
        STEP,
        f"FD ({_network(summary)})",
        levels=[(summary["floor"].get("fd"), "real images against real images")],
        note=_counts(summary, records),
    )
    others = [
        chart(title, _evaluations(summary, records, key), STEP, label, from_zero=zero)
        for key, title, label, zero in OF_EVALUATIONS
    ]
    return _drawn([first, *others, _by_count(summary)])


def network_charts(summary: dict[str, Any], records: Records) -> list[Chart]:
    """For each sampler, FD of every network in units of the base model's.

    Rewarded networks have cold colours and solid lines, those never seen warm colours and dashed lines.
    """
    groups = network_groups(summary)
    styles = line_styles(groups, {True: COLD, False: WARM})
    drawn = []
    for sampler, kind in zip(SAMPLERS, sampler_kinds(summary), strict=True):
        points = curve(summary, records, sampler)
        lines = [
            Line(f"{name}, {GROUPS[rewarded]}", [(step, fds[name] / points[0][1][name]) for step, fds in points],
                 "line" if rewarded else "dashed", *styles[name])
            for name, rewarded in groups.items() if points
        ]  # fmt: skip
        counted = summary["before"].get(sampler, {}).get("first_images") or {}
        note = f"In units of the base model's FD; {counted.get('images', 0):,} images."
        title, levels = f"FD of each network, {kind} sampler", [(1.0, "the base model")]
        drawn.append(chart(title, lines, STEP, "FD / FD of the base model", note=note, levels=levels))
    return _drawn(drawn)


def training_charts(records: Records) -> list[Chart]:
    """Loss, drift, KL, gradient norm, rewards and learning rate, of what the estimator has."""
    drawn = [
        chart(title, [Line(label, _of_steps(records, key))], STEP, label, note=note)
        for key, title, label, note in OF_STEPS
    ]
    return _drawn([*drawn, _rewards(records), *_components(records)])


def _network(summary: dict[str, Any]) -> str:
    return str(summary["protocol"]["networks"]["fd"]["name"])


def _counts(summary: dict[str, Any], records: Records) -> str:
    """How many images each mark stands for, where the numbers differ."""
    few, many = summary["config"]["evaluate_every_images"], summary["config"]["evaluate_images"]
    if few == many or not any(r.get("evaluation") for r in records):
        return ""
    return f"Large marks: {many:,} images. Dashed: {few:,} images on the way, which raises the distance."


def _evaluations(summary: dict[str, Any], records: Records, key: str) -> list[Line]:
    """For each sampler, the evaluations on the way, and those before and after training."""
    lines = []
    for color, (sampler, kind) in enumerate(zip(SAMPLERS, sampler_kinds(summary), strict=True), start=1):
        way = [(r["step"] + 1, (r["evaluation"].get(sampler) or {}).get(key)) for r in records if r.get("evaluation")]
        ends = [(step, found.get(sampler, {}).get(key)) for step, found in _whole(summary)]
        few, many = summary["config"]["evaluate_every_images"], summary["config"]["evaluate_images"]
        lines += [
            Line(f"{kind}, {few:,} images", _known(way), "dashed", color),
            Line(f"{kind}, {many:,} images", _known(ends), "dots", color),
        ]
    return lines


def _whole(summary: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Step and results of the evaluations with all images: before, at the end of every extended run, after."""
    extended = [(each["step"], each["after"]) for each in summary.get("extensions", [])]
    return [(0, summary["before"]), *extended, (summary["config"]["steps"], summary["after"])]


def _known(points: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None]


def _of_steps(records: Records, key: str) -> list[tuple[float, float]]:
    return _known((r["step"], r.get(key)) for r in records)


def _by_count(summary: dict[str, Any]) -> Chart | None:
    """FD against the number of generated images: the bias of a finite N."""
    lines = []
    for color, when in ((2, "before"), (1, "after")):
        for sampler, kind in zip(SAMPLERS, sampler_kinds(summary), strict=True):
            found = summary[when].get(sampler, {})
            if found.get("fd_by_images") and found.get("fd") is not None:
                points = [(n, fd) for n, fd in found["fd_by_images"]]
                points.append((summary["config"]["evaluate_images"], found["fd"]))
                lines.append(Line(f"{kind}, {when}", points, "line" if sampler == "ode" else "dashed", color))
    return chart(
        "Fréchet distance against the number of images", lines, "generated images", f"FD ({_network(summary)})",
        note="The first images of an evaluation. Few images raise a distance on average; chance moves it both ways.",
    )  # fmt: skip


def _rewards(records: Records) -> Chart | None:
    """Histogram of the first component's change by one subset, early and late in training; None without rewards."""
    scored = [r for r in records if r.get("subset_rewards")]
    quarter = max(1, len(scored) // 4)
    parts = {"first quarter of the steps": scored[:quarter], "last quarter": scored[-quarter:]}
    changes = {
        name: [-reward - _reference_distance(r) for r in part for reward in r["subset_rewards"]]
        for name, part in parts.items()
    }
    note = "Change of the reference set's distance by one candidate subset. Below 0 is better."
    return histogram("Rewards of the candidate subsets", changes, "change of the distance", "subsets", note)


def _reference_distance(record: dict[str, Any]) -> float:
    """The first component's distance of the reference set, in a step that scored subsets."""
    components = record.get("components")
    distance: float = next(iter(components.values()))["distance"] if components else record["reference_fd"]
    return distance


def _components(records: Records) -> list[Chart | None]:
    """Each component's distance relative to the first step's, and its share of the advantages; none for one alone."""
    mixed = [r for r in records if len(r.get("components") or {}) > 1]
    if not mixed:
        return []

    def lines(value: Callable[[str, dict[str, Any]], float]) -> list[Line]:
        return [
            Line(
                name,
                [(r["step"], value(name, r["components"][name])) for r in mixed if name in r["components"]],
                color=COLD[i % len(COLD)],
            )  # as the rewarded networks have
            for i, name in enumerate(mixed[0]["components"])
        ]

    first = {name: part["distance"] for name, part in mixed[0]["components"].items()}
    relative = lines(lambda name, part: part["distance"] / first[name] if first[name] else math.nan)
    return [
        chart("Components of the reward", relative, STEP, "distance / first step's"),
        chart("Shares of the advantages", lines(lambda _, part: part["share"]), STEP, "share"),
    ]


def _drawn(charts: Iterable[Chart | None]) -> list[Chart]:
    return [each for each in charts if each is not None]
