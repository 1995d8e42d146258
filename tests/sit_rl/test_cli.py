"""sit-rl: its commands, its help, and errors of several processes in one sentence."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sit_rl import cli, evaluate, sample, train
from sit_rl.config import places
from sit_rl.presets import PRESETS

ROOT = Path(__file__).parents[2]
LINES = 45  # of --help: what fits on a screen


def printed(capsys, call, *words):
    with pytest.raises(SystemExit) as end:
        call(list(words))
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_help_lists_the_commands_that_there_are(capsys):
    status, out, _ = printed(capsys, cli.main, "--help")
    listed = re.findall(r"^  (\w+)", out, re.MULTILINE)
    assert status == 0 and listed == [name for name in cli.COMMANDS if find_spec(f"sit_rl.{name}")]
    assert set(cli.COMMANDS) - set(listed) <= {"study"}
    status, _, err = printed(capsys, cli.main, "trian")
    assert (
        status == 2
        and err.startswith("sit-rl: 'trian' is no command; choose one of pretrain, train, ")
        and err.count("\n") == 1
    )


@pytest.mark.parametrize("name", ["report", "compare", "ema"])
def test_a_command_gets_its_words(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setattr("sys.argv", ["sit-rl", name])
    more = ["--sigma-rel", "0.1", "--out", str(tmp_path / "x.safetensors")] if name == "ema" else []
    status, _, err = printed(capsys, cli.main, name, str(tmp_path / "none"), *more)
    assert status == 2 and f"{tmp_path / 'none'} does not exist" in err


@pytest.mark.parametrize("module", [train, sample, evaluate], ids=lambda module: module.__name__)
def test_help_is_a_screen_and_help_all_is_everything(capsys, module):
    status, brief, _ = printed(capsys, module.main, "--help")
    assert status == 0 and len(brief.splitlines()) <= LINES and max(map(len, brief.splitlines())) <= 120
    flags = re.findall(r"^  --([a-z-]+)", brief, re.MULTILINE)
    assert flags == [name.replace("_", "-") for name in module.MAIN_FLAGS]
    status, whole, _ = printed(capsys, module.main, "--help-all")
    assert status == 0 and all(f"--{flag}" in whole for flag in flags) and len(whole) > 2 * len(brief)


def test_help_of_train_has_the_presets_and_their_defaults(capsys):
    _, brief, _ = printed(capsys, train.main, "--help")
    assert all(f"  {name} " in brief and text in brief for name, (text, _) in PRESETS.items())
    assert f"lists all {len(places())} flags" in brief and "--steps 24" in brief
    _, other, _ = printed(capsys, train.main, "--preset", "sit-xl-imagenet256", "--help")
    assert "--steps 450" in other
    _, whole, _ = printed(capsys, train.main, "--help-all")
    assert all(f"--{name.replace('_', '-')}" in whole for name in places())


def test_wrong_numbers_of_processes_are_refused(capsys):
    for words in (["train", "--nproc-per-node", "0"], ["train", "--nproc-per-node"], ["report", "--nproc-per-node=2"]):
        status, _, err = printed(capsys, cli.main, *words)
        assert status == 2 and "--nproc-per-node" in err and err.count("\n") == 1


def test_the_status_of_a_process_comes_back_without_a_traceback(monkeypatch, capsys):
    started = []

    def run(arguments):
        started.append(arguments)
        raise ChildFailedError("train", {1: ProcessFailure(1, 7, 3, "<N/A>")})

    monkeypatch.setattr("torch.distributed.run.run", run)
    assert printed(capsys, cli.main, "train", "--nproc-per-node", "2", "--steps", "5") == (3, "", "")
    assert started[0].nproc_per_node == "2" and started[0].training_script_args == ["--steps", "5"]
    assert started[0].training_script == train.__file__
    printed(capsys, cli.main, "sample", "--nproc-per-node=4", "--images", "5")
    assert started[1].module and started[1].training_script == "sit_rl.sample"


@pytest.mark.slow
def test_an_expected_error_on_several_processes_is_its_sentence(tmp_path):
    words = ["train", "--nproc-per-node", "2", "--preset", "smoke", "--real", str(tmp_path / "none.npz")]
    done = subprocess.run(
        [sys.executable, "-m", "sit_rl.cli", *words, "--out", str(tmp_path / "run")],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told == [f"error: --real {tmp_path / 'none.npz'} does not exist; correct the path"], done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3, done.stderr
