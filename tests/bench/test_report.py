"""The benchmarks' report: table, CSV and figures."""

import csv
import json
import sys

import pytest

from bench import report


def saved(name, median, file="bench/bench_swap.py", group="score 4 swaps of 50, d=128, N=5000", **extra):
    """One benchmark as pytest-benchmark saves it."""
    stats = {"median": median, "rounds": 3}
    return {"name": name, "fullname": f"{file}::{name}", "group": group, "stats": stats, "extra_info": extra}


@pytest.fixture
def everything():
    counted = dict(threads=2, candidates=4, flops=8e9, bytes=4e9, gflops=10.0, share_of_peak=0.5, peak="sgemm")
    counted["peak_gflops"] = {"sgemm": 20.0}
    growth = dict(candidates=64, seconds_per_candidate=0.01)
    moments = dict(file="bench/bench_metrics.py", group="moments 5000x512")
    return {
        "machine_info": {"cpu": {"brand_raw": "A Processor"}},
        "benchmarks": [
            saved("bench_engine[128]", 0.8, seconds_per_candidate=0.2, error=3e-5, error_unit="std", **counted),
            saved("bench_projection[128]", 0.4, seconds_per_candidate=0.1),
            saved("bench_eigvals[128]", 90.0, seconds_per_candidate=90.0, candidates=1, error=2e-9, error_unit="std"),
            saved("bench_growth_with_candidates[64]", 0.64, group="seconds against B, d=512, N=5000", **growth),
            saved("bench_growth_with_reference[5000]", 0.64, group="seconds against N, d=512, B=64", N=5000, **growth),
            saved("test_moments_fastfid[5000-512]", 0.5, **moments),
            saved("test_moments_numpy[5000-512]", 1.0, **moments),
        ],
    }


def test_table_tells_every_group_and_column(everything):
    """Numbers are worked out by hand from the fixture: 8 GFLOP in 0.8 s, 4 GB for 4 candidates, 90 s beside 0.2."""
    lines = report.table(report.rows_of(everything)).splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## bench/bench_swap.py", "## bench/bench_metrics.py"]
    groups = [line.strip("*") for line in lines if line.startswith("**")]
    assert groups == list(dict.fromkeys(b["group"] for b in everything["benchmarks"]))
    assert "|  | seconds each | of | rounds | × ours | GFLOP/s | share of peak | GB moved | error / std |" in lines
    assert "| engine | 0.2 | 4 | 3 | 1.00 | 10 | 50% sgemm | 1 | 3.0e-05 |" in lines
    assert "| projection | 0.1 |  | 3 | 0.50 |  |  |  |  |" in lines
    assert "| eigvals | 90 | 1 | 3 | 450 |  |  |  | 2.0e-09 |" in lines
    assert "| moments numpy | 1 |  | 3 | 2.00 |  |  |  |  |" in lines
    assert (
        "| growth with candidates 64 | 0.01 | 64 | 3 |  |  |  |  |  |" in lines
    )  # alone: a ratio to itself says nothing


def test_report_writes_table_csv_and_figures(everything, tmp_path, monkeypatch, capsys):
    path = tmp_path / "all.json"
    path.write_text(json.dumps(everything))
    monkeypatch.setattr(sys, "argv", ["report", str(path), "--out", str(tmp_path)])
    report.main()
    text = (tmp_path / "a-processor-benchmarks.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert text.startswith("Measured on A Processor, 2 threads") and "sgemm 20 GFLOP/s" in text
    with open(tmp_path / "a-processor-benchmarks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds"]) for row in rows] == [b["stats"]["median"] for b in everything["benchmarks"]]
    assert rows[0]["flops"] == "8000000000.0" and rows[0]["error_unit"] == "std"
    for figure in ("routes", "growth"):
        assert (tmp_path / f"a-processor-{figure}.png").stat().st_size > 1000


def test_report_without_swap_benches_makes_no_figures(everything, tmp_path, monkeypatch):
    everything["benchmarks"] = everything["benchmarks"][-2:]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(everything))
    monkeypatch.setattr(sys, "argv", ["report", str(path), "--out", str(tmp_path), "--device", "B"])
    report.main()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b-benchmarks.csv", "b-benchmarks.md", "some.json"]


def test_a_benchmark_of_several_runs_is_taken_from_the_last(everything):
    again = {"benchmarks": [everything["benchmarks"][1] | {"stats": {"median": 9.0}}]}
    found = report.merged([everything, again])
    assert [b["fullname"] for b in found["benchmarks"]] == [b["fullname"] for b in everything["benchmarks"]]
    assert found["benchmarks"][1]["stats"] == {"median": 9.0}
    assert found["benchmarks"][0] == everything["benchmarks"][0]
    assert found["machine_info"] == everything["machine_info"]
