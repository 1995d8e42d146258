"""The report escapes what it shows, survives missing parts, and its table says what the summary says."""

import json
import os
import re

import numpy as np
import pytest
import torch

from sit_rl import compare, report
from sit_rl.files.lock import held
from sit_rl.runs.figure_files import save_samples
from sit_rl.runs.html_report import write_run_report
from sit_rl.runs.log import Clock, RunLog, read_metrics
from sit_rl.runs.results import network_tables
from sit_rl.runs.summary import percent, summary_table, table_rows
from tests.support.run_summaries import METRICS, metrics_lines, networks, summary, summary_with_everything


def test_table_has_changes_and_leaves_out_what_is_missing():
    rows = table_rows(summary())
    assert rows[0] == ["FD ↓", "2.0000", "1.0000", "-50.0%", "2.0000", "2.0000", "+0.0%"]
    assert not any(row[0].startswith("FD, second") for row in rows)
    text = summary_table(summary())
    assert "real images against real images: FD 0.0300;" in text and "ODE heun, 8 steps" in text
    assert "reward 10.0% of the training steps" in text and "against 600 held-out;" in text
    text = summary_table(summary() | {"floor": {"fd": None, "fd_b": None}})
    assert "against real images" not in text and "against the reward's own real statistics of 600;" in text


def test_report_is_self_contained_and_escaped(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    lines = [{"step": i, "reference_fd": 2.0 - 0.1 * i, "subset_rewards": [-2.0, -1.9]} for i in range(10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"step": 10, "refer')
    (tmp_path / "figures").mkdir()
    for name in ("before_ode", "before_sde", "after_ode", "after_sde"):
        np.save(tmp_path / "figures" / f"{name}.npy", np.zeros((20, 3, 8, 8), np.uint8))
    page = write_run_report(tmp_path).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "net &lt;a&gt;" in page
    assert page.count("data:image/png;base64,") == 4 and "http" not in page  # before and after of two samplers
    assert {p.name for p in (tmp_path / "figures").glob("*.png")} == {"curve.png", "samples.png"}


def test_report_without_samples_or_rewards(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    page = write_run_report(tmp_path).read_text()
    assert "data:image" not in page and "Rewards of the candidate subsets" not in page and "http-equiv" not in page


@pytest.mark.parametrize("kind", ["cut", "objects", "channels", "nothing", "pipe"])
def test_damaged_samples_cost_the_report_its_pictures_alone(tmp_path, capsys, kind):
    """A run that was killed while it saved them would otherwise fail at its very end."""
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    for when in ("before", "after"):
        for sampler in ("ode", "sde"):
            save_samples(tmp_path, f"{when}_{sampler}", torch.zeros(4, 1, 5, 5, dtype=torch.uint8))
    assert write_run_report(tmp_path).read_text().count("data:image") == 4
    path = tmp_path / "figures" / "after_ode.npy"
    whole = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "cut":
        path.write_bytes(whole[:-3])
    else:
        shape = {"channels": (4, 5, 5, 5), "nothing": (0, 1, 5, 5), "objects": (4, 1, 5, 5)}[kind]
        np.save(path, np.zeros(shape, object if kind == "objects" else np.uint8))
    page = write_run_report(tmp_path).read_text()
    assert page.count("data:image") == 2
    assert capsys.readouterr().out.count(f"note: {path} ") == 1


def test_report_shows_everything_that_a_run_tells(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary_with_everything()))
    (tmp_path / "metrics.jsonl").write_text(metrics_lines(40))
    page = write_run_report(tmp_path).read_text()
    for title in (
        "Fréchet distance over training", "Recall", "Loss", "Drift from the base model", "Norm of the gradient",
        "KL from the policy", "Fréchet distance against the number of images", "Rewards of the candidate subsets",
    ):  # fmt: skip
        assert f"<h3>{title}" in page, title
    assert "<title>ODE, 100 images: 1.497 at 8</title>" in page  # a point that is hovered
    assert "fell by 50.0% with the ODE sampler, from 2 to 1" in page and "1.9 to 2.1" in page
    assert "went on to 40 after step 20" in page and "1e-07 to 5e-05" in page
    assert "torchrun sit_rl/train.py --note &#39;&lt;b&gt;&#39;" in page
    assert "<b>--lr</b>" in page and "<b>--steps</b>" in page and "<b>--preset" not in page  # what was changed
    assert page.count("<span>net-a, rewarded<") == 2 and page.count("<span>net-&lt;c&gt;, never seen<") == 2
    worst = page[page.index("<h2>Classes") :]
    assert worst.index('data-label="class"><span>0<') < worst.index('data-label="class"><span>9<')


def test_networks_are_shown_where_the_summary_has_them():
    assert network_tables(summary()) == []
    ode, sde = network_tables(summary_with_everything())
    assert ode["title"] == "ODE sampler" and sde["title"] == "SDE sampler"
    assert ode["head"][1:] == ["FD ↓", "FDr ↓", "precision ↑", "recall ↑", "density ↑", "coverage ↑", "sliced W₂ ↓"]
    assert ode["rows"][0][:2] == ["net-a, rewarded", "2 → 1"] and sde["rows"][1][0] == "net-b, never seen"


def test_report_of_a_run_under_way_and_of_one_that_was_killed(tmp_path, capsys):
    under_way = summary_with_everything() | {"status": "running", "step": 16}
    under_way["after"], under_way["before"] = {}, {"ode": under_way["before"]["ode"]}  # the first evaluation alone
    (tmp_path / "progress.json").write_text(json.dumps(under_way))
    (tmp_path / "metrics.jsonl").write_text(metrics_lines(16))
    with held(tmp_path / "run.lock", "--out", tmp_path):
        report.main([str(tmp_path)])
        page = (tmp_path / "report.html").read_text()
    assert 'http-equiv="refresh"' in page and "running: step 16 of 40" in page and "step 16, 100 images" in page
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    report.main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "http-equiv" not in page and "ended at step 16 of 40: its process has ended without a word" in page
    with pytest.raises(SystemExit, match="2"):
        compare.main([str(tmp_path)])
    assert "it is under way" in capsys.readouterr().err


def test_log_drops_the_steps_that_a_resume_repeats(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(4):
        log.step({"step": step, "loss": 1.0 / (step + 1), "evaluation": {"ode": {"fd": 1.0}}})
    log.close()
    RunLog(tmp_path, 2).close()
    assert [r["step"] for r in read_metrics(tmp_path)] == [0, 1]


BAD_LINES = [b"{", b"\xff\xfe", b'{"step": 1, "note": "caf\xe9"}', b"7", b"[]", b'{"loss": 1.0}', b'{"step": "1"}',
             b'{"step": true}', b"[" * 100_000, b"1" * 5_000, b"\0" * 4_096]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_damaged_line_of_the_log_loses_itself_alone(tmp_path, capsys, bad):
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": %d}' % step for step in range(4)]
    path.write_bytes(b"\n".join([good[0], bad, *good[1:], b'{"step": 4, "los']))
    RunLog(tmp_path, 3).close()  # a resume at step 3
    assert capsys.readouterr().out == f"note: in {path}, line 2 is damaged or not of a training step; left out\n"
    assert path.read_bytes() == b"".join(line + b"\n" for line in good[:3])
    assert [r["step"] for r in read_metrics(tmp_path)] == [0, 1, 2] and not capsys.readouterr().out


def test_many_damaged_lines_are_counted_and_other_ends_of_lines_are_read(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'\xef\xbb\xbf{"step": 0}\r\n\r\n{"step": 1}\n' + b"?\n" * 5 + b'{"step": 2}'
    )
    assert [r["step"] for r in read_metrics(tmp_path)] == [0, 1, 2]
    assert "lines 4, 5, 6 and 2 more are damaged" in capsys.readouterr().out


def test_clock_carries_time_over_a_resume():
    clock = Clock()
    with clock.phase("rollout"):
        pass
    state = clock.state_dict() | {"rollout": 7.0, "total": 9.0}
    again = Clock(state)
    assert again.state_dict()["rollout"] == 7.0 and again.state_dict()["total"] >= 9.0
    with again.phase("update"):
        pass
    lap = again.lap()
    assert lap["rollout"] == 0.0 and lap["update"] > 0 and lap["total"] < 5


def test_runs_are_compared_with_the_spread_of_their_seeds(tmp_path, monkeypatch, capsys):
    paths = []
    for name, seed, factor in (("a", 0, 0.5), ("b", 1, 0.7), ("c", 0, 1.0)):
        one = summary()
        one["config"] |= {"estimator": "x" if name != "c" else "y", "reference": "rolling", "credit": "image"}
        one["config"] |= {"seed": seed, "out": name}
        one["commit"] = name if name != "c" else None
        one["after"]["ode"] = METRICS | {"fd": METRICS["fd"] * factor}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(one))
    monkeypatch.setattr("sys.argv", ["compare", *map(str, paths)])
    compare.main()
    table, notes = capsys.readouterr().out.split("\n\n")
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == ["a.json", "b.json", "", "c.json"]
    assert [row[1] for row in rows[2:]] == [
        "x, rolling, image, seed 0", "x, rolling, image, seed 1", "mean ± sd of 2 seeds", "y, rolling, image, seed 0"
    ]  # fmt: skip
    # −50% and −30%: mean −40%, standard deviation 0.2/√2
    assert rows[2][5] == "2.000 → 1.000" and rows[2][7] == "-50.0%" and rows[4][7] == "-40.0% ± 14.1%"
    assert rows[0][:5] == ["folder", "run", "data", "network", "images"]
    assert rows[0][5:9] == ["ODE FD", "SDE FD", "Δ FD, ODE", "Δ FD, SDE"]
    assert rows[2][2:4] == ["embedded Fashion-MNIST (600)", "net <a>"]
    assert rows[4][10] == "–"  # the second network is missing under the SDE
    assert "not in one mean: a.json and c.json differ in estimator" in notes
    assert "a.json and b.json were made by different versions: a and b" in notes
    monkeypatch.setattr("sys.argv", ["compare", str(paths[0]), str(paths[0])])
    compare.main()
    assert "| mean ± sd of 2 runs |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert "holds no summary.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, named",
    [
        ({"networks": {"fd": {"name": "net <a>", "weights_sha256": "other"}}}, "networks"),
        ({"heldout_images": 10}, "heldout images"),
        ({"samplers": {"ode": "ODE heun, 9 steps", "sde": "SDE heun, 16 steps"}}, "samplers"),
    ],
)
def test_runs_that_were_measured_otherwise_are_in_no_common_mean(change, named):
    first, second = summary(), summary()
    for one in (first, second):
        one["config"] |= {"estimator": "x", "reference": "rolling", "credit": "image", "seed": 0}
    assert "mean ± sd" in compare.compare([first, second], ["a", "b"])
    second["protocol"] |= change
    text = compare.compare([first, second], ["a", "b"])
    assert "mean ± sd" not in text and f"a and b differ in {named}" in text


def seeds_with_networks(factors):
    """A run's summary for each factor of its FD after training, with three networks; seeds from 0."""
    found = []
    for seed, factor in enumerate(factors):
        one = summary()
        one["config"] |= {"estimator": "x", "reference": "fresh", "credit": "image", "seed": seed}
        one["before"] = {sampler: METRICS | {"networks": networks(1.0)} for sampler in ("ode", "sde")}
        one["after"] = {sampler: METRICS | {"networks": networks(factor)} for sampler in ("ode", "sde")}
        one["protocol"]["all_networks"] = [{"name": name, "weights_sha256": name} for name in networks(1.0)]
        found.append(one)
    return found


def test_every_network_has_a_mean_and_a_spread_over_the_seeds():
    runs = seeds_with_networks((0.5, 0.7))
    runs[1]["after"]["sde"]["networks"]["net-b"] |= {"recall": 0.44, "sliced_w2": None}
    _, title, table = compare.compare(runs, ["a", "b"]).split("\n\n")
    assert title == "every network, mean ± sd of 2 seeds, a and b:"
    head, _, *rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in table.splitlines()]
    assert [row[:3] for row in rows] == [
        [name, role, kind]
        for kind in ("ODE", "SDE")
        for name, role in (("net-a", "rewarded"), ("net-b", "never seen"), ("net-<c>", "never seen"))
    ]
    of = {(row[0], row[2]): dict(zip(head, row, strict=True)) for row in rows}
    # −50% and −30%: mean −40%, standard deviation 0.2/√2
    assert of["net-a", "ODE"]["FD"] == "2 → 1.2" and of["net-a", "ODE"]["FDr"] == "0.5 → 0.3"
    assert of["net-a", "ODE"]["Δ FD"] == of["net-<c>", "SDE"]["Δ sliced W₂"] == "-40.0% ± 14.1%"
    assert of["net-b", "SDE"]["Δ recall"] == "+5.0% ± 7.1%" and of["net-b", "SDE"]["Δ sliced W₂"] == "–"
    assert of["net-b", "ODE"]["Δ recall"] == "+0.0% ± 0.0%"


def test_one_run_shows_its_networks_without_a_spread():
    text = compare.compare(seeds_with_networks((0.5,)), ["a"])
    assert "\n\nevery network, a:\n\n" in text and "| net-b | never seen | ODE |" in text and "±" not in text


def test_runs_judged_by_other_networks_or_roles_are_in_no_common_mean():
    first, second, third = seeds_with_networks((0.5, 0.5, 0.5))
    second["protocol"]["all_networks"][2]["weights_sha256"] = "other"
    for when in ("before", "after"):
        third[when] = {sampler: METRICS | {"networks": networks(1.0, rewarded="net-b")} for sampler in ("ode", "sde")}
    text = compare.compare([first, second, third], ["a", "b", "c"])
    assert "mean ± sd" not in text and text.count("every network, ") == 3
    assert "a and b differ in every network\n" in text and "a and c differ in roles of networks" in text


def test_a_change_has_no_negative_zero():
    assert [percent(c) for c in (-0.0004, 0.0004, -0.0006, None)] == ["+0.0%", "+0.0%", "-0.1%", "–"]
    assert [percent(c) for c in (-1.0, -1.0004, -1.011)] == ["-100.0%", "-100.0%", "below 0"]


@pytest.mark.parametrize("main", [compare.main, report.main])
@pytest.mark.parametrize(
    "content, complaint", [(None, "holds no summary.json"), ("hello", "not the summary"), ("{}", "has no 'config'")]
)
def test_a_folder_without_a_runs_summary_is_one_sentence(tmp_path, monkeypatch, capsys, main, content, complaint):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.fullmatch(f"error: .*{complaint}.*\n", capsys.readouterr().err)
