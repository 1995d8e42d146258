"""The results of a run as tables and sentences of its report."""

from __future__ import annotations

from typing import Any

from fastfid.pages.charts import number
from sit_rl.runs.columns import GROUPS
from sit_rl.runs.network_figure import network_groups
from sit_rl.runs.summary import ROWS, SAMPLERS, percent, relative_change, sampler_kinds

# Columns of the table of networks: key, heading, whether lower is better.
OF_NETWORKS = (
    ("fd", "FD", True), ("fdr", "FDr", True), ("precision", "precision", False), ("recall", "recall", False),
    ("density", "density", False), ("coverage", "coverage", False), ("sliced_w2", "sliced W₂", True),
)  # fmt: skip
OF_CLASSES = ("precision", "recall", "density", "coverage")


def sampler_table(summary: dict[str, Any], records: list[dict[str, Any]], sampler: str) -> dict[str, Any]:
    """{title, head, rows}: the metrics of one sampler before, on the way or after, and their change.

    A row is (name, before, its interval, later, its interval, change, "good" or "worse").
    """
    before, after = summary["before"][sampler], summary["after"].get(sampler)
    later, name = after, "after"
    if after is None:
        way = [r for r in records if (r.get("evaluation") or {}).get(sampler)]
        later = way[-1]["evaluation"][sampler] if way else {}
        images = summary["config"]["evaluate_every_images"]
        name = f"step {way[-1]['step'] + 1}, {images:,} images" if way else "after"
    rows = []
    for key, label, lower in ROWS:
        if before.get(key) is None:
            continue
        change = None if after is None else relative_change(before[key], after.get(key))
        rows.append(
            {
                "name": f"{label} {'↓' if lower else '↑'}",
                "before": _number(before[key]),
                "before_interval": _interval(before, key),
                "after": _number(later.get(key)),
                "after_interval": _interval(later, key),
                "change": "" if after is None else percent(change),
                "kind": _kind(change, lower),
            }
        )
    kind = sampler_kinds(summary)[SAMPLERS.index(sampler)]
    images = f"{summary['protocol']['generated_images']:,}"
    return {"title": f"{kind} sampler, {images} images", "head": ["", "before", name, "change"], "rows": rows}


def _kind(change: float | None, lower: bool) -> str:
    """Whether a change is good or worse; neither if it rounds to zero."""
    if change is None or percent(change) == percent(0.0):
        return ""
    return "good" if (change < 0) == lower else "worse"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _interval(metrics: dict[str, Any], key: str) -> str:
    """The 95% interval of a metric, empty where there is none."""
    found = metrics.get(f"{key}_interval")
    return "" if not found else f"{number(found[0])} to {number(found[1])}"


def changes_in_words(summary: dict[str, Any]) -> list[str]:
    """A sentence for each network: by how much FD fell or rose."""
    sentences = []
    networks, groups = summary["protocol"]["networks"], list(network_groups(summary).values())
    rewarded, judges = groups.count(True), groups.count(False)
    roles = {
        "fd": f"the first of {rewarded} rewarded networks" if rewarded > 1 else "the network of the reward",
        "fd_b": f"the first of {judges} networks that only judge" if judges > 1 else "which only judges",
    }
    for key, role in roles.items():
        parts = []
        for sampler, kind in zip(SAMPLERS, sampler_kinds(summary), strict=True):
            before, after = (summary[when].get(sampler, {}).get(key) for when in ("before", "after"))
            change = relative_change(before, after)
            if change is not None:
                parts.append(f"{_moved(change)} with the {kind} sampler, from {number(before)} to {number(after)}")
        if parts:
            name = networks.get(key, {}).get("name")
            sentences.append(f"FD on {name or 'the network'} ({role}) {', and '.join(parts)}.")
    return sentences


def _moved(change: float) -> str:
    """A relative change in words; one that rounds to zero is none."""
    if percent(change) == percent(0.0):
        return "stayed the same"
    return f"{'fell' if change < 0 else 'rose'} by {abs(change):.1%}"


def extensions_in_words(summary: dict[str, Any]) -> list[str]:
    """What a reader must know of a run that went on to more steps than it was begun with."""
    return [extension_in_words(each, summary["config"].get("lr_schedule")) for each in summary.get("extensions", [])]


def extension_in_words(extension: dict[str, Any], schedule: str | None) -> str:
    """One extension as a sentence, with its consequence for the learning rate."""
    start = (
        f"The run was begun with {extension['from_steps']} steps and went on to {extension['to_steps']} after step "
        f"{extension['step']}"
    )
    if schedule != "cosine":
        return f"{start}; its learning rate is constant, so it is the run of {extension['to_steps']} steps."
    return (
        f"{start}. The cosine of its learning rate was stretched to {extension['to_steps']} steps: the rate went from "
        f"{number(extension['lr_before'])} to {number(extension['lr_after'])} there. The result is therefore not that "
        f"of a run of {extension['to_steps']} steps from the start."
    )


def network_tables(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """{title, head, rows} for each sampler, of the networks that judged; none for a summary of an earlier version."""
    tables = []
    for sampler, kind in zip(SAMPLERS, sampler_kinds(summary), strict=True):
        before, after = (summary[when].get(sampler, {}).get("networks", {}) for when in ("before", "after"))
        found = after or before
        kept = [each for each in OF_NETWORKS if any(scores.get(each[0]) is not None for scores in found.values())]
        rows = [
            [f"{name}, {GROUPS[bool(scores.get('rewarded'))]}"]
            + [_pair(before.get(name, {}).get(key), after.get(name, {}).get(key)) for key, _, _ in kept]
            for name, scores in found.items()
        ]
        if rows:
            head = ["network", *(f"{label} {'↓' if lower else '↑'}" for _, label, lower in kept)]
            tables.append({"title": f"{kind} sampler", "head": head, "rows": rows})
    return tables


def class_table(summary: dict[str, Any], sampler: str) -> dict[str, Any] | None:
    """{title, head, rows} of the classes, the lowest recall first; None where the evaluation has no classes."""
    before, after = ({c["class"]: c for c in _classes(summary, when, sampler)} for when in ("before", "after"))
    last = after or before
    if not last:
        return None
    order = sorted(last, key=lambda name: (last[name]["recall"], name))
    rows = [
        [str(name), f"{last[name]['images']:,}", f"{last[name]['real']:,}"]
        + [_pair(before.get(name, {}).get(key), after.get(name, {}).get(key)) for key in OF_CLASSES]
        for name in order
    ]
    kind = sampler_kinds(summary)[SAMPLERS.index(sampler)]
    head = ["class", "images", "real", *(f"{key} ↑" for key in OF_CLASSES)]
    return {"title": f"{kind} sampler", "head": head, "rows": rows}


def _classes(summary: dict[str, Any], when: str, sampler: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = summary[when].get(sampler, {}).get("classes") or []
    return found


def _pair(before: float | None, after: float | None) -> str:
    """before → after, with three digits, so that a phone has room; one number where there is only one."""
    return " → ".join(f"{value:.3g}" for value in (before, after) if value is not None)
