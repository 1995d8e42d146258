"""torchrun around a command that fails: one sentence where the failure was expected, everything where it was not."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from fastfid.cli import command_line, torchrun_ending

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "sit_rl/train.py")
HANDLERS = re.compile(r'\[project\.entry-points\."torchrun\.handlers"\]\n(\w+) = "([\w.:]+)"')


@pytest.fixture
def installed(tmp_path):
    """A folder for the path that says what pyproject.toml says of entry points, as an installed package does."""
    name, value = HANDLERS.search((ROOT / "pyproject.toml").read_text()).groups()
    folder = tmp_path / "path" / "fastfid-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fastfid\nVersion: 0\n")
    (folder / "entry_points.txt").write_text(f"[torchrun.handlers]\n{name} = {value}\n")
    return folder.parent


def launched(path, *words):
    """Exit status and stderr of torchrun with the words."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=240)
    return done.returncode, done.stderr


def test_an_expected_error_under_torchrun_is_its_sentence(installed, tmp_path):
    status, told = launched(installed, "sit_rl/train.py", "--checkpoint", tmp_path / "none.pt", "--out", tmp_path / "x")
    assert status != 0
    assert told == f"error: --checkpoint {tmp_path / 'none.pt'} does not exist; correct the path\n"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--steps", "nonsense"], ["--judge-features", "fashion-a"], ["--preset", "none"]])
def test_the_sentence_comes_once_from_two_ranks(installed, tmp_path, words):
    status, told = launched(installed, "--standalone", "--nproc-per-node", 2, SCRIPT, *words, "--out", tmp_path / "x")
    assert status != 0 and "Traceback" not in told and "FAILED" not in told and words[1] in told
    assert len(told.splitlines()) <= 9 and told.count(words[1]) == 1  # the parser frames its message


@pytest.mark.slow
def test_an_error_that_nobody_expected_is_torchruns(installed, tmp_path):
    (tmp_path / "crash.py").write_text("raise RuntimeError('of the user')")
    status, told = launched(installed, tmp_path / "crash.py")
    assert status != 0 and "RuntimeError: of the user" in told
    assert "ChildFailedError" in told and "failed (exitcode: 1)" in told


# --- without a torchrun ----------------------------------------------------------------------------------------------


@pytest.fixture
def failure(tmp_path, monkeypatch):
    """What torchrun makes of the error file of a command that was refused."""

    def made(terminal=None):
        path = tmp_path / "error.json"
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
        if terminal is not None:
            monkeypatch.setattr(torchrun_ending, "_terminal", lambda: terminal)
        command_line.report("error", "--x is 1; it must be 2")
        monkeypatch.undo()
        return ChildFailedError("train.py", {0: ProcessFailure(0, 7, 2, str(path))})

    return made


def end(error, capsys):
    """What the hook prints, and whether it left the error to Python's own."""
    others = []
    capsys.readouterr()
    torchrun_ending._end(lambda *all_of_it: others.append(all_of_it), type(error), error, None)
    return capsys.readouterr().err, bool(others)


def test_the_sentence_is_printed_again_only_where_it_was_not_seen(failure, capsys):
    assert end(failure(), capsys) == ("", False)
    assert end(failure(terminal=[1, 2]), capsys) == ("--x is 1; it must be 2\n", False)  # stderr went to a file


def test_other_failures_are_left_to_torchrun(tmp_path, capsys):
    (tmp_path / "error.json").write_text(json.dumps({"message": {"message": "x", "extraInfo": {"timestamp": "1"}}}))
    for path in ("none", tmp_path / "error.json"):
        error = ChildFailedError("x.py", {0: ProcessFailure(0, 7, 1, str(path))})
        assert end(error, capsys) == ("", True)
    assert end(ValueError("x"), capsys) == ("", True)


def test_a_signal_ends_our_commands_in_a_line_and_others_as_ever(monkeypatch, capsys):
    error = SignalException("Process 1 got signal: 15", signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["torchrun", "--nproc-per-node", "2", SCRIPT])
    assert end(error, capsys) == ("torchrun: stopped by SIGTERM\n", False)
    monkeypatch.setattr(sys, "argv", ["torchrun", "other.py", SCRIPT])
    assert end(error, capsys) == ("", True)


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("torchrun --nproc-per-node 2 {script} --steps 3", True), ("torchrun -m sit_rl.sample --images 4", True),
        ("torchrun -m fastfid eval A B", True), ("/x/bin/sit-rl train --nproc-per-node 2", True),
        ("torchrun train.py --data {script}", False), ("torchrun -m other.train", False), ("python", False),
    ],
)  # fmt: skip
def test_only_our_commands_are_ours(words, ours):
    assert torchrun_ending._runs_ours(words.format(script=SCRIPT).split()) is ours


def test_a_launcher_of_ours_keeps_torchs_lines_that_say_more(monkeypatch):
    before = sys.excepthook
    monkeypatch.setattr(sys, "argv", ["torchrun", SCRIPT])
    try:
        with pytest.raises(ValueError, match="no rendezvous back end"):
            torchrun_ending.quiet_ending()(None)
        logger = logging.getLogger(torchrun_ending.LOGGERS[0])
        said = [logger.filter(logging.makeLogRecord({"msg": text})) for text in (
            "failed (exitcode: 2) local_rank: 0", "Sending process 7 closing signal SIGTERM",
            "failed (exitcode: -11) local_rank: 0", "Unable to shutdown process 7",
        )]  # fmt: skip
        assert list(map(bool, said)) == [False, False, True, True]
    finally:
        sys.excepthook = before
        for name in torchrun_ending.LOGGERS:
            logging.getLogger(name).removeFilter(torchrun_ending._is_news)


def test_the_entry_point_can_be_loaded(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    (found,) = entry_points(group="torchrun.handlers", name="fastfid")
    assert found.load() is torchrun_ending.quiet_ending
