"""Figures of a finished run as PNG files, for slides and documents, drawn with matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sit_rl.components.image_sets import tile
from sit_rl.runs.log import GRID_COLUMNS
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
