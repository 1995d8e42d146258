"""report.html: table, figures and settings of a run in one file."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

from sit_rl.files.atomic import write_text
from sit_rl.runs.figures import draw_curve, draw_rewards, draw_samples, draw_time
from sit_rl.runs.log import read_metrics
from sit_rl.runs.summary import load_summary, sampler_kinds, summary_table, table_head, table_rows


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
