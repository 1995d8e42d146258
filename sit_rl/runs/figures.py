"""The figures of a run's report, drawn with matplotlib from the files in its folder."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sit_rl.components.image_sets import tile
from sit_rl.runs.log import GRID_COLUMNS, PHASES
from sit_rl.runs.summary import sampler_kinds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#888888"


def save_samples(folder: Path, name: str, images: torch.Tensor) -> None:
    """Save the first evaluation images uint8 [n, C, H, W] for the report, as figures/<name>.npy."""
    (folder / "figures").mkdir(exist_ok=True)
    np.save(folder / "figures" / f"{name}.npy", images.numpy())


def draw_curve(summary: dict[str, Any], records: list[dict[str, Any]]) -> bytes:
    """FD of the reference set at every step; held-out FD before and after training, and on fewer images between."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 4))
    steps = summary["config"]["steps"]
    reference = [(r["step"], r["reference_fd"]) for r in records if r.get("reference_fd") is not None]
    if reference:
        axes.plot(
            *zip(*reference, strict=True), color=GREY, lw=1.5, label="reference set against the reward's real images"
        )
    for sampler, kind, color in zip(("ode", "sde"), sampler_kinds(summary), (BLUE, ORANGE), strict=True):
        ends = [summary[when][sampler]["fd"] for when in ("before", "after")]
        axes.plot(
            [0, steps],
            ends,
            "o",
            color=color,
            ms=8,
            label=f"{summary['protocol']['samplers'][sampler]}: {summary['config']['evaluate_images']} images",
        )
        way = [(r["step"] + 1, r["evaluation"][sampler]["fd"]) for r in records if r.get("evaluation")]
        if way:
            axes.plot(
                *zip(*way, strict=True),
                "x--",
                color=color,
                lw=1,
                label=f"{kind}: {summary['config']['evaluate_every_images']} images (biased up)",
            )
    if summary["floor"]["fd"] is not None:
        axes.axhline(summary["floor"]["fd"], color="black", lw=0.8, ls=":", label="real against real")
    network = summary["protocol"]["networks"]["fd"]["name"].replace("$", r"\$")  # not as a formula
    axes.set(xlabel="training step", ylabel=f"FD ({network})", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def draw_samples(folder: Path, kinds: list[str]) -> bytes | None:
    """Sample grids before and after training, side by side, one row per sampler; None without the files."""
    names = [[f"{when}_{sampler}" for when in ("before", "after")] for sampler in ("ode", "sde")]
    paths = [[folder / "figures" / f"{name}.npy" for name in row] for row in names]
    if not all(p.is_file() for row in paths for p in row):
        return None
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(9, 9.4))
    for row, kind in enumerate(kinds):
        for column, when in enumerate(("before", "after")):
            axes[row, column].imshow(
                tile(np.load(paths[row][column]), GRID_COLUMNS), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axes[row, column].set_title(f"{kind}, {when}", fontsize=10)
            axes[row, column].axis("off")
    return png(figure)


def draw_rewards(records: list[dict[str, Any]]) -> bytes | None:
    """Histogram of the first component's change by one subset, early and late in training; None without rewards."""
    scored = [r for r in records if r.get("subset_rewards")]
    if not scored:
        return None
    plt = pyplot()
    quarter = max(1, len(scored) // 4)
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    parts = {"first quarter": (scored[:quarter], GREY), "last quarter": (scored[-quarter:], BLUE)}
    changes = {
        name: np.concatenate([-np.array(r["subset_rewards"]) - _reference_distance(r) for r in part])
        for name, (part, _) in parts.items()
    }
    edges = np.histogram_bin_edges(np.concatenate(list(changes.values())), bins=40)
    for name, values in changes.items():
        axes.hist(values, bins=edges, alpha=0.6, label=f"{name} of training", color=parts[name][1])
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="change of the reference set's distance by one subset (below 0 is better)", ylabel="subsets")
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def _reference_distance(record: dict[str, Any]) -> float:
    """The first component's distance of the reference set, in a step that scored subsets."""
    components = record.get("components")
    distance: float = next(iter(components.values()))["distance"] if components else record["reference_fd"]
    return distance


def draw_components(records: list[dict[str, Any]]) -> bytes | None:
    """Each component's distance relative to the first step's, and its share of the advantages; None for one alone."""
    mixed = [r for r in records if len(r.get("components") or {}) > 1]
    if not mixed:
        return None
    plt = pyplot()
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 5), sharex=True)
    steps = [r["step"] for r in mixed]
    for name in mixed[0]["components"]:
        parts = [r["components"][name] for r in mixed]
        first = parts[0]["distance"]
        label = name.replace("$", r"\$")  # not as a formula
        above.plot(steps, [part["distance"] / first if first else float("nan") for part in parts], label=label)
        below.plot(steps, [part["share"] for part in parts], label=label)
    above.set(ylabel="distance / first step's")
    below.set(xlabel="training step", ylabel="share of the advantages")
    below.axhline(0, color="black", lw=0.8)
    above.legend(fontsize=8, frameon=False)
    return png(figure)


def draw_time(summary: dict[str, Any]) -> bytes:
    """Bars: the seconds of each phase and their share of the total."""
    plt = pyplot()
    seconds = summary["seconds"]
    phases = [p for p in PHASES if seconds.get(p)]
    other = seconds["total"] - sum(seconds[p] for p in phases)
    values = [*(seconds[p] for p in phases), max(other, 0.0)]
    figure, axes = plt.subplots(figsize=(7.5, 2.6))
    bars = axes.barh([*phases, "other"], values, color=BLUE)
    axes.bar_label(bars, [f"{v:.1f} s, {v / seconds['total']:.0%}" for v in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xlim=(0, max(values) * 1.2))
    return png(figure)


def pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    pyplot().close(figure)
    return buffer.getvalue()
