"""Figures of a finished run as PNG files, for slides and documents, drawn with matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.input_files import reading
from fastfid.runtime.mapped_arrays import open_numpy
from sit_rl.components.image_sets import tile
from sit_rl.ranks.messages import say
from sit_rl.runs.log import GRID_COLUMNS
from sit_rl.runs.summary import SAMPLERS, sampler_kinds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]
BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#888888"
# For two groups of lines: the families of fastfid/pages/charts.py on a white ground.
COLD, WARM = ("#2166ac", "#6b4fa0", "#2e7d5b", "#0b8299"), ("#c8532f", "#b0307a", "#946c00", "#8a4a2b")
Samples = dict[str, Pixels]  # by the names of `save_samples`


def save_samples(folder: Path, name: str, images: torch.Tensor) -> None:
    """Save the first evaluation images uint8 [n, C, H, W] for the report, as figures/<name>.npy."""
    (folder / "figures").mkdir(exist_ok=True)
    write_atomically(_samples_file(folder, name), lambda file: np.save(file, images.numpy()))


def all_saved_samples(folder: Path) -> Samples:
    """The images that `save_samples` wrote of every evaluation, each file read once."""
    names = [f"{when}_{sampler}" for sampler in SAMPLERS for when in ("before", "now", "after")]
    found = {name: saved_samples(folder, name) for name in names}
    return {name: images for name, images in found.items() if images is not None}


def saved_samples(folder: Path, name: str) -> Pixels | None:
    """The images that `save_samples` wrote; None without the file, and, with a note, for one that is damaged."""
    path = _samples_file(folder, name)
    if not path.exists():
        return None
    try:
        with reading(path, "the report goes without it", "as images"):
            found = open_numpy(path)
            if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.ndim != 4 or 0 in found.shape:
                raise ValueError("it holds no images uint8 [n, C, H, W]")
            if found.shape[1] not in (1, 3):
                raise ValueError(f"its images have {found.shape[1]} channels")
            return np.array(found)
    except (ValueError, OSError) as damaged:
        say(f"note: {damaged}")
        return None


def _samples_file(folder: Path, name: str) -> Path:
    return folder / "figures" / f"{name}.npy"


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


def draw_samples(samples: Samples, kinds: list[str]) -> bytes | None:
    """Sample grids before and after training, side by side, one row per sampler; None where some are missing."""
    images = [[samples.get(f"{when}_{sampler}") for when in ("before", "after")] for sampler in SAMPLERS]
    if any(each is None for row in images for each in row):
        return None
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(9, 9.4))
    for row, kind in enumerate(kinds):
        for column, when in enumerate(("before", "after")):
            picture = tile(cast(Pixels, images[row][column]), GRID_COLUMNS)
            axes[row, column].imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
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
