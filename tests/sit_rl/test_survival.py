"""Runs that survive: killed anywhere, preempted, resumed on another number of ranks, they end where they would have."""

import errno
import io
import json
import os
import random
import signal
import sys

import pytest
import torch

from sit_rl.components import networks
from sit_rl.learner import checkpoint
from sit_rl.train import main
from tests.support.tiny_runs import STEPS, completed, final, lines


@pytest.fixture(scope="module")
def whole(forked, command, tmp_path_factory):
    """The uninterrupted run, and its seconds."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = completed(forked, command(folder))
    return folder, result["seconds"]


def assert_same(folder, other):
    """Bit for bit: weights, moments, averages, reference, counters, evaluations and the log."""
    (a, values_a), (b, values_b) = final(folder), final(other)
    assert a.keys() == b.keys() and {name.split(".")[0] for name in a} == {"model", "ema", "optimizer", "reference"}
    for name in a:
        assert torch.equal(a[name], b[name]), name
    for values in (values_a, values_b):
        del values["seconds"], values["config"]
    assert values_a == values_b and values_a["step"] == STEPS
    assert lines(folder) == lines(other)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, other)]
    for key in ("before", "after", "floor", "images_generated"):
        assert summaries[0][key] == summaries[1][key]


def test_killed_at_ten_random_moments_it_ends_bit_for_bit_the_same(forked, command, whole, tmp_path):
    """From the start to half the time of a whole run: a resumed one has less left, so its end is hit as well."""
    folder, seconds = whole
    moments, kills, runs = random.Random(0), 0, 0
    while kills < 10:
        killed = tmp_path / f"killed-{runs}"
        (result,) = forked.run({"argv": command(killed), "after": moments.uniform(0, seconds / 2)})
        if result["code"] == -9:
            kills += 1
        else:
            assert result["code"] == 0, result["out"]
            assert_same(killed, folder)
            runs += 1
    result = completed(forked, command(killed))
    assert_same(killed, folder)


# Inside a save: as a tensor file is flushed, as the values are, as the finished folder takes its name, as the oldest
# checkpoint loses its, and as its files are deleted. Numbers choose a save in the middle of the run.
DEATHS = [("fsync", 7), ("fsync", 10), ("rename", 2), ("rename", 4), ("rmdir", 2)]


def test_killed_inside_a_save_it_ends_bit_for_bit_the_same(forked, command, whole, tmp_path):
    killed = tmp_path / "killed"
    seen = []
    for death in DEATHS:
        (result,) = forked.run({"argv": command(killed), "die": death})
        assert result["code"] == -9, (death, result["out"])
        seen.append(sorted(p.name for p in (killed / "checkpoints").iterdir()))
    assert any(name.endswith(".tmp") for names in seen for name in names)
    result = completed(forked, command(killed))
    assert_same(killed, whole[0])
    assert not list((killed / "checkpoints").glob(".*"))


def test_a_damaged_checkpoint_is_refused_and_without_it_the_end_is_the_same(forked, command, whole, tmp_path):
    """One byte of a tensor, and an older checkpoint's tensors: files that every reader accepts."""
    folder = tmp_path / "run"
    forked.run({"argv": command(folder), "when": str(folder / "checkpoints" / "step-000003")})
    before, newest = checkpoint.checkpoints(folder / "checkpoints")[-2:]
    (shard,), (older,) = newest.glob("shard-*"), before.glob("shard-*")
    good, log = shard.read_bytes(), (folder / "metrics.jsonl").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (bytes(flipped), older.read_bytes()):
        shard.write_bytes(bad)
        (result,) = forked.run({"argv": command(folder)})
        assert result["code"] == 2, result["out"]
        sentence = f"checkpoint {newest} cannot be read ({shard.name} is damaged: its SHA-256"
        assert sentence in result["out"] and f"the one before, {before.name}\n" in result["out"]
        assert (folder / "metrics.jsonl").read_bytes() == log and checkpoint.latest(folder / "checkpoints") == newest
    results = forked.ranks(2, command(folder))  # every rank ends, one of them says why
    assert [r["code"] for r in results] == [2, 2] and sentence in results[0]["out"] + results[1]["out"]
    assert sum(r["out"].count("error") for r in results) == 1
    checkpoint.discard(newest)
    result = completed(forked, command(folder))
    assert_same(folder, whole[0])


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_preempted_it_saves_exits_0_in_time_and_goes_on(forked, command, whole, tmp_path, name):
    """TERM ends after the step under way; USR1 has no grace here, so the step is dropped at the end of a batch."""
    folder = tmp_path / "run"
    more = ("--grace", 0) if name == "USR1" else ()
    first = str(folder / "checkpoints" / "step-000001")
    result = completed(forked, command(folder, *more), when=first, signal=name)
    assert f"SIG{name}: saving" in result["out"] and "the same command resumes" in result["out"]
    # one step of this run, or the 20 s that the message states for a longer one
    assert result["seconds"] - result["signalled"] < 20
    assert not (folder / "summary.json").exists() and checkpoint.latest(folder / "checkpoints") is not None
    (result,) = forked.run({"argv": command(folder)})
    assert result["code"] == 0 and "resuming" in result["out"], result["out"]
    assert_same(folder, whole[0])


def test_told_while_it_looks_at_the_real_images_it_ends_at_once(monkeypatch, tmp_path, capsys, command):
    """Features of a large set take long, and nothing of them is kept; the run folder can begin again."""
    network = networks.load_network

    def told(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return network(*arguments)

    monkeypatch.setattr(networks, "load_network", told)
    main([*command(tmp_path / "run"), "--grace", "1000"])  # returns: exit code 0
    assert "stopped on request before the first step" in capsys.readouterr().out
    assert not any((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("stdout", ["ascii", "full"])
def test_what_cannot_be_printed_does_not_end_a_run(monkeypatch, command, whole, tmp_path, stdout):
    """Its messages have arrows, and so has its folder's name, which files in it must bear as well."""
    folder = tmp_path / "café → run"
    made = {
        "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
        "full": lambda: open("/dev/full", "w"),  # noqa: SIM115
    }[stdout]
    monkeypatch.setattr(sys, "stdout", made())
    monkeypatch.setattr(sys, "stderr", made() if stdout == "ascii" else None)  # None: a closed descriptor
    main(command(folder))
    main(command(folder))  # resumes: what it has written can be read
    assert_same(folder, whole[0])
    assert "café → run" in (folder / "report.html").read_text(encoding="utf-8")
    if stdout == "ascii":
        assert b"resuming" in sys.stdout.buffer.getvalue() and b"caf\\xe9 \\u2192 run" in sys.stdout.buffer.getvalue()


def test_a_folder_that_safetensors_could_not_read_again_is_refused(capsys, command, tmp_path):
    with pytest.raises(SystemExit):
        main(command(tmp_path / os.fsdecode(b"caf\xe9")))
    assert "caf\\udce9 is not UTF-8, as safetensors needs" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("call", "number"), [("fsync", 5), ("fsync", 9), ("rename", 2)])
def test_a_full_disk_ends_a_run_in_one_sentence_and_loses_no_step(
    monkeypatch, capsys, command, whole, tmp_path, call, number
):
    """A disk that is full at a random write of a save: the checkpoint before it stays, and the run goes on from it."""
    real, calls = getattr(os, call), 0

    def full(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(os, call, full)
        main(command(folder))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "No space left on device" in told and "Traceback" not in told
    main(command(folder))
    assert_same(folder, whole[0])
