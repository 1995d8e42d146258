"""The check of a first GPU, dry: every step that needs none runs, what it found is kept, and it ends in time."""

import csv
import time

import pytest

from bench import gpu_check, gpu_parts, roofline, scale_plan
from bench.gpu_check import Check, Row


def rows_in(folder):
    (path,) = folder.glob("*-check.csv")
    return list(csv.DictReader(path.open()))


def test_a_dry_run_measures_what_needs_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts.medians, "__defaults__", (1,))
    gpu_check.main(
        120, tmp_path, small=True, steps="environment,build,trial,values,score,parts,prepare,metrics,memcheck"
    )
    rows = rows_in(tmp_path)
    assert not [row for row in rows if row["what"] == "error"], rows
    found = {(row["step"], row["what"]): row["value"] for row in rows}
    assert any(row["step"] == "build" and row["what"] != "step" for row in rows)
    assert found["trial", "left out"] == "no CUDA device" and ("memcheck", "left out") in found
    assert found["values", "same bits twice"] == "True"
    assert float(found["values", "error / spread (promise 1e-4)"]) < 1e-4
    assert float(found["values", "float64 against eigenvalues / spread"]) < 1e-6
    for step, what in (("score", "score"), ("parts", "gram and mix"), ("prepare", "prepare"), ("metrics", "kid")):
        assert float(found[step, what]) > 0
    (text,) = tmp_path.glob("*-check.md")
    assert "## parts" in text.read_text() and "| gram and mix |" in text.read_text()


def test_no_step_starts_late_and_what_was_found_is_kept(tmp_path):
    check = Check(tmp_path, seconds=gpu_check.RESERVE + gpu_check.LEAST + 0.2, small=True)

    def slow(check):
        yield Row("slow", "first", 1.0, "ms", 0.5)
        time.sleep(1.3)
        yield Row("slow", "second", 2.0)
        yield Row("slow", "third", 3.0)

    check.run("slow", slow)
    check.run("never", slow)
    told = [(row["step"], row["what"]) for row in rows_in(tmp_path)]
    assert told == [("slow", "first"), ("slow", "second"), ("slow", "stopped"), ("never", "left out")]
    assert "| first | 1 | ms | 0.5 | 2.0 |" in next(tmp_path.glob("*.md")).read_text()


def test_an_error_is_a_row_and_the_next_step_runs(tmp_path):
    check = Check(tmp_path, 60, small=True)

    def failing(check):
        yield Row("a", "before", "kept")
        raise RuntimeError("CUDA error:\n  no kernel image")

    check.run("a", failing)
    check.run("b", lambda check: iter([Row("b", "after", "kept")]))
    told = {(row["step"], row["what"]): row["value"] for row in rows_in(tmp_path)}
    assert told["a", "error"] == "RuntimeError: CUDA error: no kernel image"
    assert told["a", "before"] == told["b", "after"] == "kept"


def test_another_process_is_ended_in_time_and_its_counts_are_read(tmp_path, monkeypatch):
    started = time.perf_counter()
    said = gpu_check.run(["sh", "-c", "echo begun; sleep 30"], 1.0)
    assert "begun" in said and "ended after 1 s" in said and time.perf_counter() - started < 10
    text = "FAILED tests/test_gpu.py::test_x - AssertionError\n1 failed, 12 passed, 3 skipped in 4.0s\n"
    monkeypatch.setattr(gpu_check, "run", lambda *_: text)
    rows = list(gpu_check.pytest_rows(Check(tmp_path, 60, True), "kernels", "kernel"))
    assert [(row.what, row.value) for row in rows[:3]] == [("failed", 1), ("passed", 12), ("skipped", 3)]
    assert rows[3].value == "FAILED tests/test_gpu.py::test_x - AssertionError"


@pytest.mark.parametrize("flags, message", [({"steps": "speed"}, "the steps are"), ({}, "--small makes a dry run")])
def test_wrong_flags_are_told_before_any_work(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        gpu_check.main(10, tmp_path, **flags)
    assert not list(tmp_path.iterdir())


def test_the_bounds_are_those_of_the_device(monkeypatch):
    assert gpu_parts.bounds() == {}
    monkeypatch.setattr(gpu_parts, "DEVICE", type(gpu_parts.DEVICE)("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    found = gpu_parts.bounds()
    device = next(device for device in roofline.DEVICES if device.name == "H200")
    assert found["score"] == roofline.score_bound(device) > found["gram"] > 0


# --- the plan for many GPUs -------------------------------------------------------------------------------------------


def test_the_part_of_the_reward_grows_with_the_gpus():
    steps = [scale_plan.step_on(gpus) for gpus in scale_plan.COUNTS]
    assert steps[0].features == steps[0].weights == 0
    assert len({step.swaps for step in steps}) == 1  # every GPU computes all scores
    assert steps[1].divided == pytest.approx(steps[0].divided / 8)
    parts = [step.reward_part for step in steps]
    assert parts == sorted(parts)
    limit = scale_plan.gpus_at(scale_plan.PART)
    assert scale_plan.step_on(limit).reward_part >= scale_plan.PART > scale_plan.step_on(limit // 2).reward_part


def test_the_document_shows_the_plan_as_computed():
    text = (gpu_check.ROOT / "docs" / "performance.md").read_text()
    assert scale_plan.table().split("\n\n")[0] in text
    assert scale_plan.table().split("\n\n")[1] in text.replace("\n", " ")
