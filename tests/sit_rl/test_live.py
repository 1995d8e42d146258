"""A run is seen while it trains, goes on to more steps, and tells both in its report."""

import json
import re
import shutil

import pytest

from sit_rl import report
from sit_rl.train import main
from tests.support.tiny_runs import STEPS, completed, final, lines


@pytest.fixture(scope="module")
def whole(forked, command, tmp_path_factory):
    """A finished run and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, completed(forked, command(folder))["out"]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_evaluations_on_the_way_print_one_line_each(whole):
    printed = [line for line in whole[1].splitlines() if re.match(r"step \d+ of", line)]
    assert [line.split(":")[0] for line in printed] == [f"step {n} of {STEPS}, 20 images" for n in (2, 4)]
    assert all("ODE fd " in line and "; SDE fd " in line for line in printed)


def test_a_finished_run_leaves_its_summary_with_its_origin(whole):
    folder, found = whole[0], summary_of(whole[0])
    assert found["schema"] == "sit_rl.summary/1" and found["status"] == "finished" and found["extensions"] == []
    assert all(found[name] for name in ("version", "command", "date", "torch", "device")) and "commit" in found
    assert not (folder / "progress.json").exists() and not list((folder / "figures").glob("now_*.npy"))
    classes = found["after"]["ode"]["classes"]
    assert len(found["after"]["ode"]["fd_interval"]) == 2 and all(0 <= each["recall"] <= 1 for each in classes)
    assert "finished: 5 steps" in (folder / "report.html").read_text()


def test_the_report_is_there_from_the_first_evaluation_on(forked, command, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    (killed,) = forked.run({"argv": command(folder, "--steps", 400), "when": str(folder / "report.html")})
    assert killed["code"] == -9, killed["out"]
    page = (folder / "report.html").read_text()
    assert 'http-equiv="refresh"' in page and "running: step 0 of 400" in page and "ODE sampler" in page
    report.main([str(folder)])
    page = (folder / "report.html").read_text()
    assert "http-equiv" not in page and "ended without a word" in page and not (folder / "summary.json").exists()


def test_a_stopped_run_says_so_in_its_report(forked, command, tmp_path):
    folder = tmp_path / "run"
    result = completed(
        forked, command(folder, "--steps", 400), when=str(folder / "checkpoints" / "step-000003"), signal="TERM"
    )
    assert "stopped on request" in result["out"]
    page = (folder / "report.html").read_text()
    assert "stopped on request; the same command resumes it" in page and "http-equiv" not in page


def test_a_run_that_ends_by_its_guard_says_why_in_its_report(forked, command, tmp_path):
    folder = tmp_path / "run"
    (result,) = forked.run({"argv": command(folder, "--stop-drift", 1e-12)})
    assert result["code"] == 2
    assert "above its limit 1e-12" in (folder / "report.html").read_text()


def test_a_finished_run_goes_on_to_more_steps(forked, command, whole, tmp_path, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    first, log = summary_of(folder), lines(folder)
    out = completed(forked, command(folder, "--steps", 7))["out"]
    sentence = f"begun with {STEPS} steps and went on to 7 after step {STEPS}"
    assert sentence in out and "cosine of its learning rate was stretched to 7 steps" in out
    found = summary_of(folder)
    assert found["config"]["steps"] == 7 and found["before"] == first["before"] and found["after"] != first["after"]
    (extension,) = found["extensions"]
    assert extension["after"] == first["after"] and extension["lr_before"] < extension["lr_after"]
    assert lines(folder)[:STEPS] == log and len(lines(folder)) == 7
    assert sentence in (folder / "report.html").read_text()
    completed(forked, command(folder, "--steps", 7))
    assert len(summary_of(folder)["extensions"]) == 1
    with pytest.raises(SystemExit, match="2"):
        main(command(folder, "--steps", 6))
    assert "holds a run with another --steps" in capsys.readouterr().err


def test_with_a_constant_rate_the_longer_run_is_that_of_more_steps(forked, command, tmp_path):
    constant = ("--lr-schedule", "constant", "--evaluate-every", 0)
    extended, straight = tmp_path / "extended", tmp_path / "straight"
    completed(forked, command(extended, *constant, "--steps", 2))
    assert "its learning rate is constant" in completed(forked, command(extended, *constant, "--steps", 3))["out"]
    completed(forked, command(straight, *constant, "--steps", 3))
    tensors, _ = final(extended)
    expected, _ = final(straight)
    assert all(tensors[name].equal(value) for name, value in expected.items())
    assert summary_of(extended)["after"] == summary_of(straight)["after"]
