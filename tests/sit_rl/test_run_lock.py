"""One run at a time in a folder, whatever ends it, and several ranks are one run."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from sit_rl.config_files import load_config
from sit_rl.files.lock import held
from sit_rl.learner import checkpoint
from tests.support.tiny_runs import STEPS, lines


def test_two_runs_in_one_folder_are_one_run(forked, command, tmp_path):
    """Another seed, so that their numbers differ; the second one changes nothing and names the first."""
    folder = tmp_path / "run"
    results = forked.run({"argv": command(folder)}, {"argv": command(folder, "--seed", 5)})
    assert sorted(r["code"] for r in results) == [0, 2], results
    refused = next(r["out"] for r in results if r["code"])
    assert f"error: --out {folder} is in use by process " in refused and "choose another --out" in refused
    seed = json.loads((folder / "summary.json").read_text())["config"]["seed"]
    assert load_config(folder / "config.yaml").seed == seed == (0 if results[0]["code"] == 0 else 5)
    assert [record["step"] for record in lines(folder)] == list(range(STEPS))
    assert not (folder / "run.lock").exists()


def test_a_killed_run_leaves_a_lock_that_the_next_one_takes_and_a_stopped_one_keeps_it(forked, command, tmp_path):
    """A process that stands still may go on; one that was killed cannot. Two ranks hold one lock."""
    folder = tmp_path / "run"
    first = str(folder / "checkpoints" / "step-000001")
    forked.run({"argv": command(folder), "when": first})
    left = json.loads((folder / "run.lock").read_text())
    with held(folder / "run.lock", "--out", folder) as note:
        assert (
            note == f"run.lock was left by process {left['process']} on {left['host']} since {left['start']}, "
            "which has ended"
        )
        before = checkpoint.latest(folder / "checkpoints")
        for results in (forked.run({"argv": command(folder, "--no-resume")}), forked.ranks(2, command(folder))):
            assert {r["code"] for r in results} == {2}, results
            assert sum(r["out"].count(f"is in use by process {os.getpid()} on ") for r in results) == 1
        assert checkpoint.latest(folder / "checkpoints") == before
    results = forked.ranks(2, command(folder))
    assert [r["code"] for r in results] == [0, 0], results


def test_a_refused_run_leaves_no_folder(forked, command, tmp_path):
    (result,) = forked.run({"argv": command(tmp_path / "a" / "b", "--stop-fd", "nan")})
    assert result["code"] == 2 and not (tmp_path / "a").exists()
    (tmp_path / "real").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "real" / name).write_bytes(b"damaged")  # seen after the lock is taken
    (result,) = forked.run({"argv": command(tmp_path / "a" / "b", "--real", tmp_path / "real")})
    assert result["code"] == 2 and "0.png" in result["out"] and not (tmp_path / "a").exists(), result["out"]


HOLD = """
import sys, time
from pathlib import Path
from sit_rl.files.lock import held
with held(Path(sys.argv[1]), "--out", Path("x")):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process(tmp_path, end):
    path = tmp_path / "run.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            for _ in range(2):  # refusing changes nothing
                with pytest.raises(ValueError, match=f"--out x is in use by process {process.pid} on .* since 20"):
                    held(path, "--out", "x").__enter__()
        finally:
            process.send_signal(end)
    with held(path, "--out", "x") as note:
        assert f"left by process {process.pid} " in note
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"[1]", b"{}", b"\xff" * 5000])
def test_a_file_without_a_lock_is_stale_whatever_it_holds(tmp_path, content):
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    with held(path, "--out", "x") as note:
        assert note is None and json.loads(path.read_text())["process"] == os.getpid()
        path.write_bytes(content)  # the holder's name may be lost, the lock is not
        with pytest.raises(ValueError, match="is in use by another process;"):
            held(path, "--out", "x").__enter__()
    assert not path.exists()


def test_a_file_that_its_holder_removes_meanwhile_is_not_held(tmp_path, monkeypatch):
    """The lock of a removed file keeps nobody out: the next run would make a new file."""
    path, lock, removed = tmp_path / "run.lock", fcntl.flock, []

    def late(handle, how):
        if not removed:
            removed.append(path.unlink())
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with held(path, "--out", "x"), pytest.raises(ValueError, match="in use"):
        assert removed == [None] and path.exists()
        held(path, "--out", "x").__enter__()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with held(tmp_path / "run.lock", "--out", "x") as note:
        assert "has no locks: a second run there would not be noticed" in note
