"""The report escapes what it shows, survives missing parts, and its table says what the summary says."""

import json
import re

import numpy as np
import pytest

from sit_rl import compare, report
from sit_rl.runs.html_report import write_run_report
from sit_rl.runs.log import Clock, RunLog, read_metrics
from sit_rl.runs.summary import percent, summary_table, table_rows

METRICS = dict(fd=2.0, kid=0.1, mmd=0.01, fd_b=3.0, precision=0.8, recall=0.4, density=0.7, coverage=0.6)


def summary():
    after = {k: v / 2 for k, v in METRICS.items()}
    return {
        "config": {
            "steps": 10,
            "evaluate_images": 500,
            "evaluate_every_images": 100,
            "note": "<script>alert(1)</script>",
        },
        "before": {"ode": METRICS, "sde": METRICS},
        "after": {"ode": after, "sde": METRICS | {"fd_b": None}},
        "floor": {"fd": 0.03, "fd_b": None},
        "seconds": {
            "rollout": 5.0,
            "reward": 1.0,
            "update": 3.0,
            "refresh": 1.0,
            "evaluate": 4.0,
            "save": 0.1,
            "total": 15.0,
        },
        "images_generated": 1000,
        "protocol": {
            "networks": {"fd": {"name": "net <a>"}},
            "generated_images": 500,
            "heldout_images": 600,
            "samplers": {"ode": "ODE heun, 8 steps", "sde": "SDE heun, 16 steps"},
        },
    }


def test_table_has_changes_and_leaves_out_what_is_missing():
    rows = table_rows(summary())
    assert rows[0] == ["FD ↓", "2.0000", "1.0000", "-50.0%", "2.0000", "2.0000", "+0.0%"]
    assert not any(row[0].startswith("FD, second") for row in rows)
    text = summary_table(summary())
    assert "real against real: fd 0.0300" in text and "ODE heun, 8 steps" in text
    assert "reward 10.0% of the training steps" in text and "against 600 held-out;" in text
    text = summary_table(summary() | {"floor": {"fd": None, "fd_b": None}})
    assert "real against real" not in text and "against the reward's own real statistics of 600;" in text


def test_report_is_self_contained_and_escaped(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    lines = [{"step": i, "reference_fd": 2.0 - 0.1 * i, "subset_rewards": [-2.0, -1.9]} for i in range(10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"step": 10, "refer')
    (tmp_path / "figures").mkdir()
    for name in ("before_ode", "before_sde", "after_ode", "after_sde"):
        np.save(tmp_path / "figures" / f"{name}.npy", np.zeros((20, 3, 8, 8), np.uint8))
    page = write_run_report(tmp_path).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "net &lt;a&gt;" in page
    assert page.count("data:image/png;base64,") == 4
    assert {p.name for p in (tmp_path / "figures").glob("*.png")} == {
        "curve.png",
        "samples.png",
        "rewards.png",
        "time.png",
    }


def test_report_without_samples_or_rewards(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    assert write_run_report(tmp_path).read_text().count("data:image/png;base64,") == 2


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
        one["after"]["ode"] = METRICS | {"fd": METRICS["fd"] * factor}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(one))
    monkeypatch.setattr("sys.argv", ["compare", *map(str, paths)])
    compare.main()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == [
        "x, rolling, image, seed 0", "x, rolling, image, seed 1", "mean ± sd of 2 seeds", "y, rolling, image, seed 0"
    ]  # fmt: skip
    # −50% and −30%: mean −40%, standard deviation 0.2/√2
    assert rows[2][2] == "2.000 → 1.000" and rows[2][4] == "-50.0%" and rows[4][4] == "-40.0% ± 14.1%"
    assert rows[0][2:6] == ["ODE FD", "SDE FD", "Δ FD, ODE", "Δ FD, SDE"]
    assert rows[4][7] == "–"  # the second network is missing under the SDE
    monkeypatch.setattr("sys.argv", ["compare", str(paths[0]), str(paths[0])])
    compare.main()
    assert "| mean ± sd of 2 runs |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert "holds no summary.json" in capsys.readouterr().err


def test_a_change_has_no_negative_zero():
    assert [percent(c) for c in (-0.0004, 0.0004, -0.0006, None)] == ["+0.0%", "+0.0%", "-0.1%", "–"]


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
