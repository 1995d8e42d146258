"""report.html and the terminal's table, made from the files of a run folder: `python -m sit_rl.report runs/NAME`."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from pathlib import Path

import numpy as np
import torch

from sit_rl.components.image_sets import tile
from sit_rl.files.atomic import write_text, writing
from sit_rl.files.paths import require_paths
from sit_rl.runs.log import GRID_COLUMNS, PHASES, read_metrics

# Rows of the table: key in summary.json, name, whether lower is better.
ROWS = (
    ("fd", "FD", True), ("kid", "KID", True), ("mmd", "MMD", True), ("fd_b", "FD, second network", True),
    ("precision", "Precision", False), ("recall", "Recall", False),
    ("density", "Density", False), ("coverage", "Coverage", False),
)  # fmt: skip
# What sit_rl.train writes to summary.json and the tables here and in sit_rl.compare read.
SUMMARY_KEYS = ("config", "before", "after", "floor", "seconds", "images_generated", "protocol")
BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#888888"


def save_samples(folder: Path, name: str, images: torch.Tensor) -> None:
    """Keep the first evaluation images uint8 [n, C, H, W] for the report: figures/<name>.npy."""
    (folder / "figures").mkdir(exist_ok=True)
    np.save(folder / "figures" / f"{name}.npy", images.numpy())


def relative_change(before: float | None, after: float | None) -> float | None:
    """(after − before)/|before|, None where a metric was not computed or began at 0."""
    return None if not before or after is None else (after - before) / abs(before)


def percent(change: float | None) -> str:
    """A relative change as +1.2%, – for None; one that rounds to zero is +0.0% whatever its sign."""
    return "–" if change is None else f"{round(change, 3) + 0.0:+.1%}"


def table_rows(summary: dict) -> list[list[str]]:
    """Cells: metric, then before, after and change for each sampler; metrics that were not computed are left out."""
    rows = []
    for key, name, lower in ROWS:
        cells = [f"{name} {'↓' if lower else '↑'}"]
        for sampler in ("ode", "sde"):
            before, after = (summary[when][sampler].get(key) for when in ("before", "after"))
            if before is None or after is None:
                break
            cells += [f"{before:.4f}", f"{after:.4f}", percent(relative_change(before, after))]
        else:
            rows.append(cells)
    return rows


def sampler_kinds(summary: dict) -> list[str]:
    """What the two samplers are: ODE and SDE, or DDIM and DDPM."""
    return [summary["protocol"]["samplers"][key].split()[0].rstrip(",") for key in ("ode", "sde")]


def table_head(summary: dict) -> list[str]:
    """Headings of the table's columns."""
    return ["", *(text for kind in sampler_kinds(summary) for text in (f"{kind} before", "after", "change"))]


def summary_table(summary: dict) -> str:
    """The paper's table as text, with the real-against-real floor under it."""
    protocol = summary["protocol"]
    head = table_head(summary)
    rows = [head, *table_rows(summary)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    names = {key: net["name"] for key, net in protocol["networks"].items()}
    floor = [f"{k} {v:.4f}" for k, v in summary["floor"].items() if v is not None]
    count = protocol["heldout_images"]
    held = known(count, "held-out") if floor else "the reward's own real statistics" + (f" of {count}" if count else "")
    lines.append(
        f"FD: {names['fd']}; second network: {names.get('fd_b', 'none')}; {protocol['generated_images']} images "
        f"against {held}; {protocol['samplers']['ode']}; {protocol['samplers']['sde']}"
    )
    lines.append(
        f"{'real against real: ' + '  '.join(floor) + '; ' if floor else ''}"
        f"{summary['images_generated']} images generated; "
        f"{summary['seconds']['total']:.0f} s{_reward_share(summary['seconds'])}"
    )
    return "\n".join(lines)


def known(count: int | None, kind: str) -> str:
    """E.g. '5000 held-out'; a statistics file need not tell how many images it is of."""
    return f"{kind} statistics of an unknown count" if count is None else f"{count} {kind}"


def _reward_share(seconds: dict[str, float]) -> str:
    """What the reward, the engine's preparation included, takes of the training steps, as text; empty without steps."""
    steps = sum(seconds[phase] for phase in ("rollout", "reward", "update", "refresh"))
    return f"; reward {seconds['reward'] / steps:.1%} of the training steps" if steps else ""


def load_summary(path: Path) -> dict:
    """summary.json of a run folder, or that file itself; FileNotFoundError without one, ValueError for another file."""
    file = path / "summary.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no summary.json: a run writes it at its end")
    try:
        summary = json.loads(file.read_text())
    except ValueError as error:  # not JSON, or not text
        raise ValueError(
            f"{file} is not the summary of a run ({file.stat().st_size:,} bytes, {error}); pass a run's folder"
        ) from None
    missing = [key for key in SUMMARY_KEYS if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ValueError(f"{file} is not the summary of a run: it has no {missing[0]!r}")
    return summary


def write_report(folder: Path) -> Path:
    """Draw the figures and write report.html, self-contained, from what is in the folder; errors of `load_summary`."""
    summary = load_summary(folder)
    records = read_metrics(folder)
    figures = {
        "Fréchet distance over training": draw_curve(summary, records),
        "Samples from the same noise and labels": draw_samples(folder, sampler_kinds(summary)),
        "Reward of the candidate subsets": draw_rewards(records),
        "Where the time went": draw_time(summary),
    }
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in zip(("curve", "samples", "rewards", "time"), figures.values(), strict=True):
        if figure is not None:
            (folder / "figures" / f"{name}.png").write_bytes(figure)
    path = folder / "report.html"
    write_text(path, _page(folder.name, summary, figures))
    return path


def draw_curve(summary: dict, records: list[dict]) -> bytes:
    """Reference FD every step; held-out FD before and after in full, and on fewer images on the way."""
    plt = _pyplot()
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
    return _png(figure)


def draw_samples(folder: Path, kinds: list[str]) -> bytes | None:
    """Grids before and after, side by side, a row for each sampler."""
    names = [[f"{when}_{sampler}" for when in ("before", "after")] for sampler in ("ode", "sde")]
    paths = [[folder / "figures" / f"{name}.npy" for name in row] for row in names]
    if not all(p.is_file() for row in paths for p in row):
        return None
    plt = _pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(9, 9.4))
    for row, kind in enumerate(kinds):
        for column, when in enumerate(("before", "after")):
            axes[row, column].imshow(
                tile(np.load(paths[row][column]), GRID_COLUMNS), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axes[row, column].set_title(f"{kind}, {when}", fontsize=10)
            axes[row, column].axis("off")
    return _png(figure)


def draw_rewards(records: list[dict]) -> bytes | None:
    """Histogram of the subsets' FD change in the first and the last quarter of training."""
    scored = [r for r in records if r.get("subset_rewards")]
    if not scored:
        return None
    plt = _pyplot()
    quarter = max(1, len(scored) // 4)
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    parts = {"first quarter": (scored[:quarter], GREY), "last quarter": (scored[-quarter:], BLUE)}
    changes = {
        name: np.concatenate([-np.array(r["subset_rewards"]) - r["reference_fd"] for r in part])
        for name, (part, _) in parts.items()
    }
    edges = np.histogram_bin_edges(np.concatenate(list(changes.values())), bins=40)
    for name, values in changes.items():
        axes.hist(values, bins=edges, alpha=0.6, label=f"{name} of training", color=parts[name][1])
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="change of the reference FD by one subset (below 0 is better)", ylabel="subsets")
    axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def draw_time(summary: dict) -> bytes:
    """Seconds of each phase as bars, with their share of the total."""
    plt = _pyplot()
    seconds = summary["seconds"]
    phases = [p for p in PHASES if seconds.get(p)]
    other = seconds["total"] - sum(seconds[p] for p in phases)
    values = [*(seconds[p] for p in phases), max(other, 0.0)]
    figure, axes = plt.subplots(figsize=(7.5, 2.6))
    bars = axes.barh([*phases, "other"], values, color=BLUE)
    axes.bar_label(bars, [f"{v:.1f} s, {v / seconds['total']:.0%}" for v in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xlim=(0, max(values) * 1.2))
    return _png(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    _pyplot().close(figure)
    return buffer.getvalue()


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}img{max-width:100%}pre{background:#f6f6f6;padding:1rem;overflow:auto}"""


def _page(name: str, summary: dict, figures: dict[str, bytes | None]) -> str:
    """The whole HTML document; everything that came from outside is escaped."""
    cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag}>"  # noqa: E731
    head = "".join(cell("th", t) for t in table_head(summary))
    body = "".join("<tr>" + "".join(cell("td", c) for c in row) + "</tr>" for row in table_rows(summary))
    notes = summary_table(summary).splitlines()[-2:]
    pictures = "".join(
        f"<h2>{html.escape(title)}</h2>"
        f"<img alt='{html.escape(title)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        for title, png in figures.items() if png is not None
    )  # fmt: skip
    details = html.escape(json.dumps({"config": summary["config"], "protocol": summary["protocol"]}, indent=2))
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(name)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(name)}</h1><table><tr>{head}</tr>{body}</table>"
        + "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        + f"{pictures}<h2>Settings</h2><pre>{details}</pre></html>\n"
    )


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
