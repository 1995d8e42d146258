"""Turns saved benchmarks into a table and two plots.

    pytest bench/ --benchmark-only --benchmark-json=all.json
    pytest bench/bench_swap_growth.py --full --benchmark-only --benchmark-json=growth.json     larger B and N
    python -m bench.report all.json growth.json --device "2 cores of a Xeon at 2.5 GHz"

Writes bench/results/<device>-benchmarks.csv and .md, with one row per benchmark for all files and groups that were run,
and two figures of the swap benchmarks: seconds per candidate by method, and growth with the number of candidates B and
of reference samples N.  bench/measuring.py explains the columns.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SCORE = re.compile(r"score \d+ swaps of 50, d=(\d+)")
ENGINE = "engine"
FROM_EXTRA = ("candidates", "flops", "bytes", "gflops", "share_of_peak", "peak", "error", "error_unit")


def rows_of(saved: dict) -> list[dict]:
    """One record per benchmark: file, group, name, median seconds, seconds per candidate, and FROM_EXTRA or None."""
    rows = []
    for b in saved["benchmarks"]:
        extra = b["extra_info"]
        rows.append(
            {
                "file": b["fullname"].split("::")[0],
                "group": b["group"] or "",
                "name": re.sub(r"^(bench|test)_|\[.*", "", b["name"]).replace("_", " "),
                "parameter": (re.findall(r"\[(.*)\]", b["name"]) or [""])[0],
                "seconds": b["stats"]["median"],
                "rounds": b["stats"]["rounds"],
                "each": extra.get("seconds_per_candidate", b["stats"]["median"]),
                **{name: extra.get(name) for name in FROM_EXTRA},
                "extra": extra,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """Markdown with one heading per file and one table per group. The numbers of a row are those of one candidate."""
    lines = []
    for file in dict.fromkeys(row["file"] for row in rows):
        lines.append(f"\n## {file}")
        members = [row for row in rows if row["file"] == file]
        for group in dict.fromkeys(row["group"] for row in members):
            lines += group_table(group, [row for row in members if row["group"] == group])
    return "\n".join(lines).strip() + "\n"


def group_table(group: str, rows: list[dict]) -> list[str]:
    """Lines of one group, the fastest first.

    `× ours` is the ratio to the first benchmark of the group, which is ours. It is empty if all rows are one benchmark
    with different parameters.
    """
    ours = rows[0]["each"] if len({row["name"] for row in rows}) > 1 else None
    units = " or ".join(dict.fromkeys(row["error_unit"] for row in rows if row["error_unit"]))
    heading = ["", "seconds each", "of", "rounds", "× ours", "GFLOP/s", "share of peak", "GB moved"]
    heading.append(f"error / {units}" if units else "error")
    lines = [f"\n**{group}**\n", f"| {' | '.join(heading)} |", "|---|" + "---:|" * (len(heading) - 1)]
    for row in sorted(rows, key=lambda row: row["each"]):
        lines.append(f"| {' | '.join(cells(row, ours))} |")
    return lines


def cells(row: dict, ours: float | None) -> list[str]:
    """One row of a group's table. A cell is empty if nothing was counted."""

    def shown(value, text):
        return "" if value is None else text.format(value)

    gigabytes = None if row["bytes"] is None else row["bytes"] / (row["candidates"] or 1) / 1e9
    return [
        " ".join(part for part in (row["name"], distinct(row)) if part),
        f"{row['each']:.3g}",
        shown(row["candidates"], "{:,}"),
        str(row["rounds"]),
        "" if ours is None else ratio(row["each"] / ours),
        shown(row["gflops"], "{:.3g}"),
        shown(row["share_of_peak"], f"{{:.0%}} {row['peak']}"),
        shown(gigabytes, "{:.2g}"),
        shown(row["error"], "{:.1e}"),
    ]


def ratio(value: float) -> str:
    """About three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def distinct(row: dict) -> str:
    """The parameter, or an empty string if the name of the group contains its numbers."""
    numbers = row["parameter"].split("-")
    told = set(numbers) <= set(re.findall(r"\d+", row["group"]))
    return "" if told else row["parameter"]


def peaks(rows: list[dict]) -> str:
    """The median peak speeds, measured with the largest number of threads."""
    most = max(row["extra"].get("threads", 1) for row in rows)
    speeds = defaultdict(list)
    for row in rows:
        if row["extra"].get("threads") == most:
            for name, speed in row["extra"].get("peak_gflops", {}).items():
                speeds[name].append(speed)
    return ", ".join(f"{name} {median(found):.0f} GFLOP/s" for name, found in sorted(speeds.items(), reverse=True))


def heading(rows: list[dict], device: str) -> str:
    """The text above the table."""
    threads = max(row["extra"].get("threads", 1) for row in rows)
    return (
        f"Measured on {device}, {threads} threads; medians.  Speed of square products: {peaks(rows)}.\n"
        "A share of peak is relative to the square products measured right after the benchmark.  Flops and\n"
        "bytes are counted by hand (bench/measuring.py): flops of the algorithm as it runs, least traffic.\n"
        "Errors are relative to float64.  The numbers of a row are those of one candidate; `of` is the number\n"
        "of candidates per call.\n\n"
    )


def write_csv(rows: list[dict], path: Path) -> None:
    """The rows with unrounded numbers of the whole call. Other extra information stays in the JSON."""
    columns = [name for name in rows[0] if name != "extra"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot_routes(rows: list[dict], path: Path) -> None:
    """Seconds per candidate of every method on a logarithmic axis, one panel per d."""
    groups = {m.group(1): row["group"] for row in rows if (m := SCORE.match(row["group"]))}
    figure, panels = plt.subplots(1, len(groups), figsize=(6 * len(groups), 3.4), squeeze=False)
    for axis, (dim, group) in zip(panels[0], groups.items(), strict=True):
        members = sorted((r for r in rows if r["group"] == group), key=lambda r: -r["each"])
        colours = ["tab:orange" if r["name"].startswith(ENGINE) else "tab:gray" for r in members]
        bars = axis.barh([r["name"] for r in members], [r["each"] for r in members], color=colours)
        axis.bar_label(bars, [f" {r['each']:.2g} s" for r in members], fontsize=8)
        axis.set(xscale="log", xlabel="seconds per candidate", title=f"one swap of 50 in 5,000, d = {dim}")
        axis.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def plot_growth(rows: list[dict], path: Path) -> None:
    """Seconds of a call against B and against N."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    against_b = sorted((r["candidates"], r["seconds"]) for r in rows if r["group"].startswith("seconds against B"))
    against_n = sorted((r["extra"]["N"], r["seconds"]) for r in rows if "N" in r["extra"])
    left.loglog(*zip(*against_b, strict=True), "o-")
    left.set(xlabel="B, candidates", ylabel="seconds", title="d = 512, N = 5,000")
    right.semilogx(*zip(*against_n, strict=True), "o-")
    counts = [n for n, _ in against_n]
    right.set_xticks(counts, [f"{n:,}" for n in counts])
    right.minorticks_off()
    right.set(xlabel="N, reference samples", title="d = 512, B = 64")
    right.set_ylim(0, 1.4 * max(seconds for _, seconds in against_n))
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def merged(runs: list[dict]) -> dict:
    """Saved runs of one machine in one: each benchmark from the last run that has it, in order of first appearance."""
    benchmarks = {b["fullname"]: b for run in runs for b in run["benchmarks"]}
    return runs[0] | {"benchmarks": list(benchmarks.values())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "json",
        type=Path,
        nargs="+",
        help="written by --benchmark-json; of several runs of a benchmark, the last counts",
    )
    parser.add_argument("--device", help="name of the machine; default: the GPU's or processor's name in the file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder; default: bench/results")
    arguments = parser.parse_args()
    saved = merged([json.loads(path.read_text()) for path in arguments.json])
    machine = saved["machine_info"]
    device = arguments.device or machine.get("gpu") or machine["cpu"].get("brand_raw", "cpu")
    prefix = str(arguments.out / re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = rows_of(saved)
    text = heading(rows, device) + table(rows)
    Path(f"{prefix}-benchmarks.md").write_text(text)
    write_csv(rows, Path(f"{prefix}-benchmarks.csv"))
    if any(SCORE.match(row["group"]) for row in rows):
        plot_routes(rows, Path(f"{prefix}-routes.png"))
    if any("N" in row["extra"] for row in rows):
        plot_growth(rows, Path(f"{prefix}-growth.png"))
    print(text)


if __name__ == "__main__":
    main()
