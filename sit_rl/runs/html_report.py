"""report.html of a run, under way or finished: results, samples, curves and settings in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastfid.pages.charts import number
from fastfid.pages.pictures import png
from fastfid.pages.templates import template
from fastfid.runtime.input_files import reading
from sit_rl.components.image_sets import tile
from sit_rl.config import resolve
from sit_rl.files.atomic import write_bytes, write_text
from sit_rl.files.lock import is_held
from sit_rl.presets import PRESETS
from sit_rl.runs.figure_files import Samples, all_saved_samples, draw_curve, draw_samples
from sit_rl.runs.log import GRID_COLUMNS, PHASES, read_metrics
from sit_rl.runs.network_figure import draw_networks, gap_in_words
from sit_rl.runs.report_charts import distance_charts, network_charts, training_charts
from sit_rl.runs.results import changes_in_words, class_table, extensions_in_words, network_tables, sampler_table
from sit_rl.runs.run_folder import LOCK
from sit_rl.runs.settings_table import settings_table
from sit_rl.runs.summary import SAMPLERS, load_results, results_file, sampler_kinds, summary_table

REFRESH = 15  # seconds after which a browser loads the page of a run under way again
PICTURE = 1000  # most pixels of a side of a grid of images: 10 × 10 images of 100 pixels


def write_run_report(folder: Path) -> Path:
    """Write report.html, which needs no other file, in a run folder; errors of `load_results`.

    A finished run also gets its curve and its samples as PNG files in figures/.
    """
    summary, records = load_results(folder), read_metrics(folder)
    with reading(results_file(folder), "pass a run's folder", "as the results of a run"):
        status = summary.get("status", "finished")
        if status == "running" and not is_held(folder / LOCK):
            status = "its process has ended without a word; the same command resumes it"
        samples = all_saved_samples(folder)
        page = _page(folder, summary, records, status, samples)
        figures = _figures(summary, records, samples) if status == "finished" else {}
    for name, figure in figures.items():
        (folder / "figures").mkdir(exist_ok=True)
        write_bytes(folder / "figures" / f"{name}.png", figure)
    path = folder / "report.html"
    write_text(path, page)
    return path


def _figures(summary: dict[str, Any], records: list[dict[str, Any]], samples: Samples) -> dict[str, bytes]:
    """The PNG files of figures/, by name."""
    drawn = {
        "networks": draw_networks(summary, records),
        "curve": draw_curve(summary, records),
        "samples": draw_samples(samples, sampler_kinds(summary)),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _page(folder: Path, summary: dict[str, Any], records: list[dict[str, Any]], status: str, samples: Samples) -> str:
    """The HTML document. The template escapes all values."""
    finished, running = status == "finished", status == "running"
    return template("sit_rl.runs", "report.html.jinja").render(
        title=folder.resolve().name,
        refresh=REFRESH if running else 0,
        status=_status(summary, records, status),
        command=summary.get("command"),
        words=changes_in_words(summary),
        extensions=extensions_in_words(summary),
        tables=[sampler_table(summary, records, sampler) for sampler in SAMPLERS if sampler in summary["before"]],
        notes=summary_table(summary).splitlines()[-2:] if finished else [],
        networks=network_tables(summary),
        network_charts=network_charts(summary, records) if finished else [],
        gap=gap_in_words(summary, records).splitlines() if finished else [],
        flips=_flips(samples, sampler_kinds(summary)),
        distances=distance_charts(summary, records),
        training=training_charts(records),
        classes=[table for sampler in SAMPLERS if (table := class_table(summary, sampler))],
        time=_time(summary["seconds"]),
        facts=_facts(summary),
        settings=settings_table(summary["config"], _preset(summary)),
    )


def _status(summary: dict[str, Any], records: list[dict[str, Any]], status: str) -> str:
    """Where the run is, in a line."""
    steps = summary["config"]["steps"]
    if status == "finished":
        return f"finished: {steps} steps in {_duration(summary['seconds']['total'])}"
    done = summary.get("step", len(records))
    if status != "running":
        return f"ended at step {done} of {steps}: {status}"
    return f"running: step {done} of {steps}, {_duration(summary['seconds']['total'])} so far; this page renews itself"


def _duration(seconds: float) -> str:
    """12 s, 9.5 min or 3.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _flips(samples: Samples, kinds: list[str]) -> list[dict[str, Any]]:
    """For each sampler, images before training and the newest ones, of the same noise and labels."""
    found = []
    for sampler, kind in zip(SAMPLERS, kinds, strict=True):
        before, after = (samples.get(f"{when}_{sampler}") for when in ("before", "after"))
        name = "newest evaluation" if after is None else "after training"
        later = samples.get(f"now_{sampler}") if after is None else after
        if before is not None and later is not None:
            both = [
                {"name": title, "png": png(tile(images, GRID_COLUMNS), PICTURE)}
                for title, images in (("before training", before), (name, later))
            ]
            found.append({"id": sampler, "title": f"{kind} sampler", "before": both[0], "after": both[1]})
    return found


def _time(seconds: dict[str, float]) -> list[tuple[str, float, str]]:
    """Name, share of the longest, and text of each phase."""
    phases = {phase: seconds[phase] for phase in PHASES if seconds.get(phase)}
    phases["other"] = max(seconds["total"] - sum(phases.values()), 0.0)
    longest, total = max(*phases.values(), 1e-9), max(seconds["total"], 1e-9)
    return [(name, value / longest, f"{value:.1f} s, {value / total:.0%}") for name, value in phases.items()]


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers depend on."""
    protocol = summary["protocol"]
    facts = [
        (f"network of {'the reward' if key == 'fd' else 'the judge'}", f"{net['name']}, weights "
         f"{(net.get('weights_sha256') or 'unknown')[:12]}, {net.get('preprocessing') or 'preprocessing unknown'}")
        for key, net in protocol["networks"].items()
    ]  # fmt: skip
    facts += [("sampler", text) for text in protocol["samplers"].values()]
    facts += [(name, summary[name]) for name in ("version", "commit", "date", "torch", "device") if summary.get(name)]
    facts += [("images generated", number(summary["images_generated"]))]
    return facts


def _preset(summary: dict[str, Any]) -> dict[str, Any]:
    """The values that the run's preset and estimator have by themselves; empty for an unknown preset."""
    name, estimator = summary["config"].get("preset"), summary["config"].get("estimator")
    if name not in PRESETS:
        return {}
    return resolve(PRESETS[name][1].changed(estimator=estimator)).to_dict()
