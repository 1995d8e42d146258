"""The table of `sit_rl.evaluate`: a line for each metric, or, of several networks, a line for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sit_rl.runs.columns import GROUPS, columns

MISSING = "–"
WITH_INTERVAL = "fd"  # the metric whose interval the wide table shows; evaluation.json has all
Rows = Mapping[str, dict[str, Any]]


def table(rows: Rows) -> str:
    """Aligned text of the rows of evaluation.json; ± is half of the 95% interval."""
    networks = dict.fromkeys(score["network"] for row in rows.values() for score in row["scores"])
    lines = _by_network(rows) if len(networks) > 1 else _by_metric(rows)
    notes: dict[str, list[str]] = {}
    for name, row in rows.items():
        for note in _notes(row):
            notes.setdefault(note, []).append(name)
    told = [f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in notes.items()]
    return "\n".join([*lines, *told])


def _by_metric(rows: Rows) -> list[str]:
    """One line for each metric and one column for each row."""
    labels = {score["metric"]: score["label"] for row in rows.values() for score in row["scores"]}
    cells = [["", *rows]]
    for metric, label in labels.items():
        cells.append([label, *(_cell(_score(row, metric), interval=True) for row in rows.values())])
    return columns(cells, words=1)


def _by_network(rows: Rows) -> list[str]:
    """A block for each row: one line for each network, rewarded or never seen, and one column for each metric."""
    found = [score for row in rows.values() for score in row["scores"]]
    order = {"fd": 0, "fdr": 1}  # FD in units of that of real images stands beside FD
    metrics = sorted(dict.fromkeys(score["metric"] for score in found), key=lambda metric: order.get(metric, 2))
    labels = {s["metric"]: s["label"].removesuffix(f" ({s['network']})") for s in found}
    cells: list[list[str]] = []
    for name, row in rows.items():
        cells.append([name, "", *(labels[metric] for metric in metrics)])
        for network in dict.fromkeys(score["network"] for score in row["scores"]):
            rewarded = row.get("rewarded")
            role = "" if rewarded is None else GROUPS[network in rewarded]
            scores = [_score(row, metric, network) for metric in metrics]
            shown = [_cell(s, interval=m == WITH_INTERVAL) for s, m in zip(scores, metrics, strict=True)]
            cells.append([f"  {network}", role, *shown])
    return columns(cells, words=2)


def _score(row: dict[str, Any], metric: str, network: str | None = None) -> dict[str, Any] | None:
    """The score of a row by its metric and, if given, its network."""
    return next((s for s in row["scores"] if s["metric"] == metric and network in (None, s["network"])), None)


def _cell(score: dict[str, Any] | None, interval: bool) -> str:
    if score is None or score["value"] is None:
        return MISSING
    if score["interval"] is None or not interval:
        return f"{score['value']:.4f}"
    low, high = score["interval"]
    return f"{score['value']:.4f} ± {(high - low) / 2:.4f}"


def _notes(row: dict[str, Any]) -> list[str]:
    left = [f"{x['metric']} ({x['network']}) left out: {x['reason']}" for x in row["left_out"]]
    return left + [f"warning: {text}" for text in row["warnings"]]
