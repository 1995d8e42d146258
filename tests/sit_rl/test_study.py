"""Studies: the file's errors, matched budgets, verdicts, resuming, and a tiny one from end to end."""

import csv
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from sit_rl.config import Config, resolve
from sit_rl.files.lock import held
from sit_rl.study import __main__ as study_command
from sit_rl.study import jobs as study_jobs
from sit_rl.study import one_run
from sit_rl.study.budget import matched_steps, spent
from sit_rl.study.jobs import Pool
from sit_rl.study.plan import BASE, Row, read_study, study_of
from sit_rl.study.results import Found, lines_of, networks_of

ROOT = Path(__file__).parents[2]

# --- the file --------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_with_the_controls_budget():
    study = study_of(
        "s",
        {
            "settings": {"steps": 24},
            "seeds": [0, 1],
            "match": ["images", "compute"],
            "rows": {"rolling": {"reference": "rolling"}, "fresh": {"updates": 8}},
            "grid": {"lr": ["1e-4", 2e-4]},  # YAML takes 1e-4 for text
            "control": "rolling lr=1e-4",
        },
    )
    names = [(row.name, row.config.steps, row.matched) for row in study.rows]
    # 5,000 + 24 × 1,600 images are 27 steps without a reference set; 8 updates of 400 cost more than 4
    assert names[:2] == [(f"rolling lr={lr}", 24, ("images", "compute")) for lr in ("1e-4", "0.0002")]
    assert names[2][:2] == ("fresh lr=1e-4", 27) and names[2][2] == ("images",)
    assert names[3][0] == "fresh lr=1e-4" and names[3][1] < 24 and names[3][2] == ("compute",)
    assert [row.config.update.lr for row in study.rows[:2]] == [1e-4, 2e-4]


def test_guidance_is_swept_over_rows_scales_and_intervals():
    sweep = {"of": ["base", "a"], "scales": [1.1, 2], "intervals": [[0, 1], [0.2, 0.8]]}
    study = study_of("s", {"rows": {"a": {}}, "guidance": sweep})
    rows = {row.name: row for row in study.rows}
    assert len(rows) == 1 + 1 + 8 and rows[BASE].config.evaluation.ode.guidance == 1
    row = rows["a + guidance 2 in 0.2–0.8"]
    for sampler in (row.config.evaluation.ode, row.config.evaluation.sde):
        assert (sampler.guidance, sampler.guidance_from, sampler.guidance_until) == (2.0, 0.2, 0.8)
    assert row.of == "a" and rows["base + guidance 1.1"].of is None
    assert row.config.evaluation.sde.steps == Config().evaluation.sde.steps  # only the given fields change


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "the study is [], not a table"),
        ({"row": {}}, "the study has the unknown key 'row'; it may have preset, seeds"),
        ({"rows": {"a": {"lrr": 1}}}, "row a: unknown field 'lrr'"),
        ({"rows": {"a": {"lr": "fast"}}}, "row a: lr is 'fast', which is not of its type"),
        ({"rows": {"a": {"lr": -1.0}}}, "row a: --lr is -1.0; it must be positive"),
        ({"rows": {"a": {"steps": 5}}}, "row a: steps is the study's to choose"),
        ({"rows": {"a": {"evaluate_ode": {"guidence": 2}}}}, "row a: unknown field 'guidence'"),
        ({"rows": {"a": None}, "seeds": [0, 0]}, "seeds is [0, 0], which names one twice"),
        ({"rows": {"a": None}, "seeds": 3}, "seeds is 3; write a list of numbers"),
        ({"rows": {"a": None}, "match": "time"}, "match has 'time'; choose images, compute"),
        ({"rows": {"a": None}, "control": "b"}, "control is 'b', which is no row; choose one of a"),
        ({"rows": {"a": {"candidates": 1000, "reference_size": 50_000, "reference": "rolling"}, "b": None},
          "control": "b"},
         "row a, matched by images: its first step takes 100,000 of 38,400 images; raise the budget"),
        ({"rows": {"base": {}}}, "a row is named base, which stands for the untrained model"),
        ({"grid": {"lr": 1e-4}}, "grid has lr: 0.0001; write a list of values"),
        ({"guidance": {"scales": 2}}, "guidance has scales 2; write a list of numbers"),
        ({"evaluate": {"a": {"of": "b"}}}, "row a: of is 'b', which is no row; choose base"),
        ({"evaluate": {"a": {"lr": 1.0}}}, "row a: lr has no effect without training"),
        ({"rows": {"a b": {}, "a  b": {}}}, "two rows would have the folder a-b-24-steps"),
        ({"preset": "big"}, "preset is 'big'; choose one of fashion"),
        ({"rows": {}, "seeds": [0]}, "there is nothing to run"),
        ({"preset": ["fashion"]}, "preset is ['fashion']; choose one of fashion"),
        ({"match": [["images"]]}, "match has ['images']; choose images"),
        ({"match": ["images", "images"]}, "match is ['images', 'images']; choose images, compute, or both, each once"),
        ({"seeds": [2**63]}, "seeds is [9223372036854775808]; write a list of numbers"),
        ({"settings": {1: 2}}, "settings has the key 1, which is no name of a setting"),
        ({"evaluate": {"a": {1: 2}}}, "row a has the key 1, which is no name of a setting"),
        ({"settings": {"steps": 10**12}}, "steps is 1,000,000,000,000; a study's runs have at most 100,000"),
        ({"settings": {"evaluate_images": 10**30}}, "must be at most 9223372036854775807"),
        ({"guidance": {"scales": [10**400]}}, "guidance has scales [1000"),
        ({"guidance": {"scales": [float("inf")]}}, "guidance has scales [inf]; write a list of numbers"),
        ({"guidance": {"scales": [1.5], "intervals": [[[0], 1]]}}, "guidance has intervals [[[0], 1]]; write pairs"),
        ({"guidance": {"scales": [1.5], "intervals": [["a", 1]]}}, "guidance has intervals [['a', 1]]; write pairs"),
        ({"grid": {name: list(range(1, 40)) for name in ("steps", "candidates", "replace")}},
         "grid makes 59,319 rows; a study has at most 10,000"),
        ({"grid": {"lr": [1e-4, 1e-4]}}, "grid has lr: [0.0001, 0.0001], which names one twice"),
        ({"guidance": {"scales": [1.5, 1.50000001]}}, "guidance names base + guidance 1.5 twice"),
        ({"settings": {"rollout": {"steps": 10**11}}}, "sampler steps is 100000000000; it must be at most 100,000"),
        ({"rows": {"x" * 300: {}}}, "has a name of 300 characters; give it a shorter one"),
        ({"rows": {"a\x1b[2J": {}}}, "has a control character in its name; remove it"),
        ({"rows": {"A": {}, "a": {}}}, "two rows would have the folder A-24-steps"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say_is_one_sentence(tmp_path, capsys, values, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(SystemExit) as ended:
        study_command.main([str(path), "--out", str(tmp_path / "out"), "--dry-run"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"error: {path}: ") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"a: [", b"a: &x 1\nb: *x\n", b"\xff", b"rows: {a: {}, a: {lr: 1.0}}"])
def test_a_file_that_is_not_yaml_is_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        study_command.main([str(path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "correct the file" in line


def test_steps_are_those_nearest_to_the_budget():
    config = resolve(Config.of(reference="fresh", candidates=10, replace=10))  # 100 images a step
    assert [matched_steps(config, "images", budget) for budget in (100, 149, 151, 1000)] == [1, 1, 2, 10]
    assert spent(config.changed(steps=7), "images") == 700
    compute = spent(config.changed(steps=9), "compute")
    assert matched_steps(config, "compute", compute) == 9
    renewed = resolve(Config.of(reference="refresh", refresh_every=10, reference_size=5_000, steps=21))
    assert spent(renewed, "images") == 3 * 5_000 + 21 * 1_600
    assert matched_steps(renewed, "images", 3 * 5_000 + 21 * 1_600) == 21
    rolling = resolve(Config.of(reference="rolling", reference_size=5_000, steps=21))
    assert spent(rolling, "images") == 5_000 + 21 * 1_600


# --- verdicts --------------------------------------------------------------------------------------------------------


def found(row, seed, unseen, recall=0.0):
    both = {"ode": unseen, "sde": unseen}
    return Found(row, seed, 1.0, 1.0, both, both, {q: {"ode": recall, "sde": recall} for q in ("recall", "coverage")})


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ((-0.6, -0.5), "better"),  # mean −0.55 against −0.3, spreads 0.07 + 0.14
        ((-0.5, -0.3), "within the spread"),
        ((0.0, 0.05), "worse"),
        ((-0.9,), "–"),  # one seed has no spread
    ],
)
def test_a_verdict_needs_more_than_the_spread_of_the_seeds(changes, verdict):
    config = Config()
    control, other = Row("control", config, True), Row("other", config, True)
    study = study_of("s", {"rows": {"control": None, "other": None}})
    study = type(study)("s", (control, other), (0, 1), "control")
    runs = [found(control, seed, change) for seed, change in enumerate((-0.2, -0.4))]
    runs += [found(other, seed, change) for seed, change in enumerate(changes)]
    lines = lines_of(study, runs)
    assert [line.verdict for line in lines] == ["control", verdict]


def test_both_kinds_of_evaluations_are_read():
    config = {"reward_features": "a", "judge_features": "b"}
    flat = {"fd": 1.0, "recall": 0.5, "fd_b": 2.0}
    assert networks_of(flat, config)["a"]["rewarded"] and networks_of(flat, config)["b"] == {
        "rewarded": False,
        "fd": 2.0,
    }
    by_name = {"networks": {"c": {"rewarded": False, "fd": 3.0}}}
    assert networks_of(flat | by_name, config) == by_name["networks"]
    assert list(networks_of({"fd": 1.0, "fd_b": None}, config)) == ["a"]


# --- running ---------------------------------------------------------------------------------------------------------

# Stands for a run: fails, is broken off, or writes a summary; notes that it was started.
PRETENDED = """
import json, os, pathlib, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
folder = pathlib.Path(sys.argv[1]).parent
with open(folder / "started", "a") as file:
    file.write("x")
if config["lr"] == 0.5:
    sys.exit("error: no such thing")
if config["lr"] == 0.25 and (folder / "started").read_text() == "x":
    os.kill(os.getpid(), 9)
sampler = dict.fromkeys(("fd", "fd_b", "recall", "coverage", "kid", "mmd", "precision", "density"), 1.0)
after = sampler | {"fd": 0.5, "fd_b": 0.7}
names = {"fd": {"name": "a"}, "fd_b": {"name": "b"}}
summary = dict(config=config, before=dict(ode=sampler, sde=sampler), after=dict(ode=after, sde=after), floor={},
    seconds=dict.fromkeys(("rollout", "reward", "update", "refresh", "total"), 1.0), images_generated=1,
    protocol=dict(networks=names, generated_images=1, heldout_images=1, samplers=dict(ode="ODE x", sde="SDE x")))
(folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    script = tmp_path / "pretended.py"
    script.write_text(PRETENDED)
    monkeypatch.setattr(study_jobs, "PROCESS", (sys.executable, str(script)))


def write_study(folder, **values):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return [str(path), "--out", str(folder / "out"), "--jobs", "2"]


def started(folder):
    return {path.parent.name: len(path.read_text()) for path in sorted((folder / "out").glob("*/started"))}


def test_finished_runs_are_kept_killed_ones_go_on_and_failures_are_told(tmp_path, capsys, pretended):
    argv = write_study(tmp_path, rows={"good": {"lr": 0.1}, "killed": {"lr": 0.25}, "bad": {"lr": 0.5}})
    with pytest.raises(SystemExit) as ended:
        study_command.main(argv)
    told = capsys.readouterr()
    assert ended.value.code == 1 and "killed by signal 9" in told.out
    assert "bad, 24 steps, seed 0: failed with status 1: error: no such thing" in told.out
    assert "2 runs have no result yet" in (tmp_path / "out" / "study.md").read_text()
    with pytest.raises(SystemExit):
        study_command.main(argv)
    assert "3 runs of 3 rows, 2 of them left" in capsys.readouterr().out
    counts = started(tmp_path)
    assert counts["good-24-steps-seed-0"] == 1
    assert counts["killed-24-steps-seed-0"] == counts["bad-24-steps-seed-0"] == 2
    assert (tmp_path / "out" / "killed-24-steps-seed-0" / "summary.json").is_file()


def test_a_folder_of_another_study_is_refused(tmp_path, capsys, pretended):
    study_command.main(write_study(tmp_path, rows={"a": {"lr": 0.1}}))
    with pytest.raises(SystemExit):
        study_command.main(write_study(tmp_path, rows={"a": {"lr": 0.2}}))
    assert (
        "a-24-steps-seed-0 holds a run with another --lr; choose another --out, or delete it" in capsys.readouterr().err
    )


def test_two_studies_in_one_folder_are_one(tmp_path, capsys, pretended):
    """The second command changes nothing, and names the first."""
    words = write_study(tmp_path, rows={"a": {"lr": 0.1}})
    out = tmp_path / "out"
    out.mkdir()
    with held(out / study_command.LOCK, "--out", out), pytest.raises(SystemExit) as ended:
        study_command.main([words[0], "--out", str(out)])
    assert ended.value.code == 2 and f"is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_a_tiny_study_from_end_to_end(tmp_path, capsys, command, monkeypatch):
    """Two trainings and an evaluation of one of them, in this process; then nothing is left to do."""

    def here(self, jobs):
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            job.config.save(job.folder / study_jobs.CONFIG)
            one_run.main([str(job.folder / study_jobs.CONFIG), *([] if job.row.trained else ["--evaluate-only"])])
        return {}

    monkeypatch.setattr(Pool, "run", here)
    flags = command(tmp_path / "unused")
    values = {flags[i][2:].replace("-", "_"): flags[i + 1] for i in range(0, len(flags), 2) if flags[i] != "--out"}
    settings = {name: int(v) if v.isdigit() else v for name, v in values.items() if name not in ("preset", "threads")}
    argv = write_study(
        tmp_path, preset="smoke", settings=settings | {"steps": 2, "evaluate_every": 0},
        rows={"rolling": {}, "fresh": {"reference": "fresh", "candidates": 10}},
        evaluate={"fresh, SDE of 5": {"of": "fresh", "evaluate_sde": {"steps": 5}}},
    )  # fmt: skip
    study_command.main(argv)
    out = capsys.readouterr().out
    assert "rolling: 2 steps, matched by images" in out and "fresh: 2 steps" in out  # 60 + 2 × 20 images, and 2 × 50
    folder = tmp_path / "out"
    assert {"study.md", "study.csv", "study.png", "study.html"} <= {path.name for path in folder.iterdir()}
    rows = list(csv.DictReader(open(folder / "study.csv")))
    assert [(row["row"], row["images"]) for row in rows] == [
        ("rolling", "100"),
        ("fresh", "100"),
        ("fresh, SDE of 5", "0"),
    ]
    summary = json.loads((folder / "rolling-2-steps-seed-0" / "summary.json").read_text())
    change = summary["after"]["ode"]["fd"] / summary["before"]["ode"]["fd"] - 1
    assert float(rows[0]["rewarded_fd_ode"]) == pytest.approx(change, abs=1e-6)
    # the evaluation of the trained weights is that of the training, under the sampler that is the same
    evaluation = json.loads((folder / "fresh-SDE-of-5-seed-0" / "evaluation.json").read_text())
    trained = json.loads((folder / "fresh-2-steps-seed-0" / "summary.json").read_text())
    assert evaluation["ode"]["fd"] == trained["after"]["ode"]["fd"] and evaluation["sde"] != trained["after"]["sde"]
    page = (folder / "study.html").read_text()
    assert "data:image/png;base64," in page and "mean ± standard deviation" in page
    study_command.main(argv)
    assert "0 of them left" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository_fit_into_an_hour_on_two_cores(path):
    """By the count of their evaluations, which their first lines state."""
    study = read_study(path)
    jobs = study_jobs.jobs_of(study, path.parent / "out", 1)
    text = study_command.plan(jobs, jobs, 2)
    hours = float(re.search(r"([\d.]+) core-hours", text)[1])
    assert hours <= 2
    head = path.read_text().split("\nsettings")[0]
    assert f"{len(jobs)} runs, {hours} core-hours" in head
