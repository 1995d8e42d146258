"""Turns saved benchmarks into a table and two plots.

    pytest bench/bench_swap.py --benchmark-only --benchmark-json=swap.json
    python -m bench.report swap.json --device "2 cores of a Xeon at 2.5 GHz"

Writes bench/results/<device>-swap.csv and .md, with a row a benchmark and its ratio to the engine, and two figures:
seconds a candidate by route, and growth with the number of candidates B and of reference samples N.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SCORE = re.compile(r"score \d+ swaps of 50, d=(\d+)")
ENGINE = "bench_engine"


def rows_of(saved: dict) -> list[dict]:
    """One record a benchmark: group, name, median seconds and, where there are candidates, seconds for each."""
    rows = []
    for b in saved["benchmarks"]:
        extra = b["extra_info"]
        rows.append(
            {
                "group": b["group"] or "",
                "name": b["name"].split("[")[0],
                "parameter": (re.findall(r"\[(.*)\]", b["name"]) or [""])[0],
                "seconds": b["stats"]["median"],
                "rounds": b["stats"]["rounds"],
                "each": extra.get("seconds_per_candidate"),
                "gflops": extra.get("gflop_per_s"),
                "error": extra.get("error_over_spread"),
                "extra": extra,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """Markdown, group by group: median seconds a candidate and its ratio to the engine of the group."""
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        engine = next((r["each"] for r in members if r["name"] == ENGINE), None)
        lines += [f"\n**{group}**\n", "| | seconds each | rounds | × engine | GFLOP/s | error / spread |"]
        lines.append("|---|---:|---:|---:|---:|---:|")
        for row in sorted(members, key=lambda r: r["each"] or r["seconds"]):
            each = row["each"] or row["seconds"]
            name = f"{row['name'].removeprefix('bench_').replace('_', ' ')} {row['parameter']}".strip()
            ratio = f"{each / engine:,.2f}" if engine else ""
            gflops = f"{row['gflops']:.0f}" if row["gflops"] else ""
            error = f"{row['error']:.1e}" if row["error"] is not None else ""
            lines.append(f"| {name} | {each:.3g} | {row['rounds']} | {ratio} | {gflops} | {error} |")
    return "\n".join(lines).strip() + "\n"


def write_csv(rows: list[dict], path: Path) -> None:
    """The rows with their numbers unrounded; the extra information is left to the JSON."""
    columns = [name for name in rows[0] if name != "extra"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def plot_routes(rows: list[dict], path: Path) -> None:
    """Seconds a candidate of every route, logarithmic, a panel for each d."""
    groups = {m.group(1): row["group"] for row in rows if (m := SCORE.match(row["group"]))}
    figure, panels = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3), squeeze=False)
    for axis, (dim, group) in zip(panels[0], groups.items(), strict=True):
        members = sorted((r for r in rows if r["group"] == group), key=lambda r: -r["each"])
        names = [r["name"].removeprefix("bench_").replace("_", " ") for r in members]
        colours = ["tab:orange" if r["name"].startswith(ENGINE) else "tab:gray" for r in members]
        bars = axis.barh(names, [r["each"] for r in members], color=colours)
        axis.bar_label(bars, [f" {r['each']:.2g} s" for r in members], fontsize=8)
        axis.set(xscale="log", xlabel="seconds a candidate", title=f"one swap of 50 in 5,000, d = {dim}")
        axis.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def plot_growth(rows: list[dict], path: Path) -> None:
    """Seconds of a call against B, and against N."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    against_b = sorted(
        (r["extra"]["candidates"], r["seconds"]) for r in rows if r["group"].startswith("seconds against B")
    )
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="written by --benchmark-json")
    parser.add_argument("--device", help="what it ran on; default: the GPU's or processor's name in the file")
    arguments = parser.parse_args()
    saved = json.loads(arguments.json.read_text())
    machine = saved["machine_info"]
    device = arguments.device or machine.get("gpu") or machine["cpu"].get("brand_raw", "cpu")
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    rows, out = rows_of(saved), RESULTS / f"{name}-swap"
    threads = max(row["extra"].get("threads", 1) for row in rows)
    heading = f"Measured on {device}, {threads} threads; medians.\n\n"
    out.with_suffix(".md").write_text(heading + table(rows))
    write_csv(rows, out.with_suffix(".csv"))
    plot_routes(rows, RESULTS / f"{name}-routes.png")
    plot_growth(rows, RESULTS / f"{name}-growth.png")
    print(heading + table(rows))


if __name__ == "__main__":
    main()
