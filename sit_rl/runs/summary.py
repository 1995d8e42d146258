"""The result of a run, its table as text, and its files: summary.json, and progress.json of a run under way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastfid.runtime.input_files import json_of, read_text, reading
from sit_rl.components.build import Components
from sit_rl.components.networks import NetworkSides
from sit_rl.config import Config
from sit_rl.reward.components import RewardSide
from sit_rl.sampling.sampler_config import SamplerConfig

SCHEMA = "sit_rl.summary/1"  # the number grows when a key is removed or changes its meaning
SUMMARY, PROGRESS = "summary.json", "progress.json"
SAMPLERS = ("ode", "sde")  # keys of both files: without and with noise; DDIM and DDPM for a DiT

# Rows of the table: key in summary.json, name, whether lower is better.
ROWS = (
    ("fd", "FD", True), ("kid", "KID", True), ("mmd", "MMD", True), ("fd_b", "FD, second network", True),
    ("precision", "Precision", False), ("recall", "Recall", False),
    ("density", "Density", False), ("coverage", "Coverage", False),
)  # fmt: skip
# Keys of summary.json, written by sit_rl.train. The tables here and in sit_rl.compare read them.
SUMMARY_KEYS = ("config", "before", "after", "floor", "seconds", "images_generated", "protocol")


def relative_change(before: float | None, after: float | None) -> float | None:
    """(after − before)/|before|; None if a metric was not computed or was 0 before."""
    return None if not before or after is None else (after - before) / abs(before)


def percent(change: float | None) -> str:
    """A relative change as +1.2%; – for None, and +0.0% for every change that rounds to zero.

    Below −100% the number is negative afterwards, as an unbiased estimate of a distance near 0 may be: "below 0".
    """
    if change is None:
        return "–"
    return "below 0" if round(change, 3) < -1 else f"{round(change, 3) + 0.0:+.1%}"


def table_rows(summary: dict[str, Any]) -> list[list[str]]:
    """One row per computed metric: its name, then before, after and change for each sampler."""
    rows = []
    for key, name, lower in ROWS:
        cells = [f"{name} {'↓' if lower else '↑'}"]
        for sampler in SAMPLERS:
            before, after = (summary[when][sampler].get(key) for when in ("before", "after"))
            if before is None or after is None:
                break
            cells += [f"{before:.4f}", f"{after:.4f}", percent(relative_change(before, after))]
        else:
            rows.append(cells)
    return rows


# Keys of `floor`, in words.
OF_FLOOR = {"fd": "FD", "fd_b": "second network"}


def protocol(config: Config, components: Components, side: RewardSide | None, metrics: Iterable[str]) -> dict[str, Any]:
    """How the numbers of summary.json were measured: metrics, networks, images, reward, samplers, weights."""
    nets = {"fd": components.networks[0], "fd_b": components.judge}
    return {
        "metrics": list(metrics),
        "networks": {key: identity(sides) for key, sides in nets.items() if sides},
        "all_networks": [identity(sides) for sides in components.networks],
        "generated_images": config.evaluation.images,
        "heldout_images": components.heldout.moments.count,
        "reward_real_images": components.real.moments.count,
        "reward": {str(each): each.weight for each in config.reward_components},
        "reward_networks": {n.name: n.weights_sha256 for n in (components.reward_net, *components.more_nets)},
        "reward_preprocessing": {n.name: n.preprocessing for n in (components.reward_net, *components.more_nets)},
        "reward_sources": {} if side is None else dict(side.sources),
        "samplers": {"ode": str(config.evaluation.ode), "sde": str(config.evaluation.sde)},
        "weights": f"EMA, decay {config.update.ema} per optimiser step",
    }


def identity(sides: NetworkSides) -> dict[str, Any]:
    """What identifies a network of the evaluations, and whether it was rewarded."""
    net = sides.net
    return {
        "name": net.name,
        "preprocessing": net.preprocessing,
        "weights_sha256": net.weights_sha256,
        "rewarded": sides.rewarded,
    }


def metrics_in_line(metrics: Mapping[str, Any], names: Iterable[str]) -> str:
    """The numbers of these metrics in a line; metrics that were not computed are left out."""
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in names if metrics.get(name) is not None)


def kind_of(sampler: SamplerConfig | str) -> str:
    """The name of a sampler in a word: ODE or SDE, DDIM or DDPM."""
    return str(sampler).split()[0].rstrip(",")


def sampler_kinds(summary: dict[str, Any]) -> list[str]:
    """Names of the two samplers: ODE and SDE, or DDIM and DDPM."""
    return [kind_of(summary["protocol"]["samplers"][key]) for key in SAMPLERS]


def table_head(summary: dict[str, Any]) -> list[str]:
    """Headings of the table's columns."""
    return ["", *(text for kind in sampler_kinds(summary) for text in (f"{kind} before", "after", "change"))]


def summary_table(summary: dict[str, Any]) -> str:
    """The paper's table as text, with the distance of real images from real images below it."""
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
    floor = [f"{OF_FLOOR.get(k, k)} {v:.4f}" for k, v in summary["floor"].items() if v is not None]
    count = protocol["heldout_images"]
    own = "the reward's own real statistics" + (f" of {count}" if count else "")
    held = count_in_words(count, "held-out") if floor else own
    lines.append(
        f"FD: {names['fd']}; second network: {names.get('fd_b', 'none')}; {protocol['generated_images']} images "
        f"against {held}; {protocol['samplers']['ode']}; {protocol['samplers']['sde']}"
    )
    lines.append(
        f"{'real images against real images: ' + ', '.join(floor) + '; ' if floor else ''}"
        f"{summary['images_generated']:,} images generated; "
        f"{summary['seconds']['total']:.0f} s{_reward_share(summary['seconds'])}"
    )
    return "\n".join(lines)


def count_in_words(count: int | None, kind: str) -> str:
    """For example '5000 held-out'. A statistics file need not contain the number of its images."""
    return f"{kind} statistics of an unknown count" if count is None else f"{count} {kind}"


def _reward_share(seconds: dict[str, float]) -> str:
    """The reward's share of the training steps, with the engine's preparation, as text; empty without steps."""
    steps = sum(seconds[phase] for phase in ("rollout", "reward", "update", "refresh"))
    return f"; reward {seconds['reward'] / steps:.1%} of the training steps" if steps else ""


def summary_file(path: Path) -> Path:
    """The summary of a run folder, or the file itself."""
    return path / SUMMARY if path.is_dir() else path


def load_summary(path: Path) -> dict[str, Any]:
    """Read summary.json, given a run folder or the file; FileNotFoundError without it, ValueError for another file."""
    file = summary_file(path)
    if not file.exists():
        under_way = " (it is under way: `python -m sit_rl.report` shows it)" if (path / PROGRESS).exists() else ""
        raise FileNotFoundError(f"{path} holds no {SUMMARY}: a run writes it at its end{under_way}")
    summary = _load(file)
    with reading(file, "pass a run's folder", "as the summary of a run"):
        summary_table(summary)  # now, because an error of a wrong entry here names the file
    return summary


def load_results(folder: Path) -> dict[str, Any]:
    """The results of a run folder so far: progress.json of a run under way, else `load_summary`."""
    file = results_file(folder)
    return _load(file) if file.name == PROGRESS else load_summary(folder)


def results_file(folder: Path) -> Path:
    """The file that holds the newest results of a run folder."""
    return folder / (PROGRESS if (folder / PROGRESS).exists() else SUMMARY)


def _load(file: Path) -> dict[str, Any]:
    """Read either file; ValueError where it has another content."""
    with reading(file, "pass a run's folder", "as the summary of a run"):
        text = read_text(file)
        try:
            summary: dict[str, Any] = json_of(text)
        except ValueError as error:  # not JSON
            raise ValueError(
                f"{file} is not the summary of a run ({len(text):,} bytes, {error}); pass a run's folder"
            ) from None
        missing = [key for key in SUMMARY_KEYS if not isinstance(summary, dict) or key not in summary]
        if missing:
            raise ValueError(f"{file} is not the summary of a run: it has no {missing[0]!r}")
    return summary
