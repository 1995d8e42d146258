"""report.html: table, figures and settings of a run in one file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from fastfid.runtime.templates import template
from sit_rl.files.atomic import write_text
from sit_rl.runs.figures import draw_components, draw_curve, draw_rewards, draw_samples, draw_time
from sit_rl.runs.log import read_metrics
from sit_rl.runs.network_figure import draw_networks
from sit_rl.runs.summary import load_summary, sampler_kinds, summary_table, table_head, table_rows


def write_run_report(folder: Path) -> Path:
    """Draw the figures and write report.html, which needs no other file, in a run folder; errors of `load_summary`."""
    summary = load_summary(folder)
    records = read_metrics(folder)
    figures = {
        "Rewarded and never-seen networks over training": draw_networks(summary, records),
        "Fréchet distance over training": draw_curve(summary, records),
        "Samples from the same noise and labels": draw_samples(folder, sampler_kinds(summary)),
        "Reward of the candidate subsets": draw_rewards(records),
        "Components of the reward": draw_components(records),
        "Where the time went": draw_time(summary),
    }
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in zip(
        ("networks", "curve", "samples", "rewards", "components", "time"), figures.values(), strict=True
    ):
        if figure is not None:
            (folder / "figures" / f"{name}.png").write_bytes(figure)
    path = folder / "report.html"
    write_text(path, _page(folder.name, summary, figures))
    return path


def _page(name: str, summary: dict[str, Any], figures: dict[str, bytes | None]) -> str:
    """The HTML document. The template escapes all values."""
    return template("sit_rl.runs", "report.html.jinja").render(
        name=name,
        head=table_head(summary),
        rows=table_rows(summary),
        notes=summary_table(summary).splitlines()[-2:],
        figures={title: base64.b64encode(png).decode() for title, png in figures.items() if png is not None},
        settings=json.dumps({"config": summary["config"], "protocol": summary["protocol"]}, indent=2),
    )
