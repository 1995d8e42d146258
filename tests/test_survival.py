"""Runs that survive: killed anywhere, preempted, resumed on another number of ranks, they end where they would have."""

import json
import os
import random
import signal

import pytest
import torch

from sit_rl import checkpoint, setting
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.train import main

TINY = SiTConfig(
    image_size=28, patch_size=14, channels=1, width=32, depth=1, heads=2, num_classes=10, learn_sigma=False
)
STEPS = 5


def tiny_command(folder):
    """A training of five short steps of a model of 40,000 parameters, as a function of its folder and more flags."""
    torch.manual_seed(0)
    model = SiT(TINY)
    for p in model.final_layer.parameters():
        torch.nn.init.normal_(p, std=0.1)
    path = folder / "tiny.safetensors"
    save_model(model, path)
    flags = (
        f"--preset smoke --threads 1 --checkpoint {path} --steps {STEPS} --embedded-images 200 --reference-size 60 "
        "--replace 5 --candidates 4 --minibatch 10 --rollout-batch 5 --evaluate-images 20 --evaluate-every 2 "
        "--evaluate-every-images 20 --judge-features none"
    ).split()
    return lambda out, *more: [*flags, "--out", str(out), *map(str, more)]


@pytest.fixture(scope="module")
def whole(forked, command, tmp_path_factory):
    """The uninterrupted run, and its seconds."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    (result,) = forked.run({"argv": command(folder)})
    assert result["code"] == 0, result["out"]
    return folder, result["seconds"]


def final(folder):
    """Every tensor of the last checkpoint."""
    path = checkpoint.latest(folder / "checkpoints")
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in checkpoint.names(path).items()}
    checkpoint.load_tensors(path, tensors)
    return tensors, checkpoint.load_values(path)


def lines(folder):
    """metrics.jsonl without what a clock says."""
    timed = ("seconds", "share", "predicted_seconds")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


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
    (result,) = forked.run({"argv": command(killed)})
    assert result["code"] == 0, result["out"]
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
    (result,) = forked.run({"argv": command(killed)})
    assert result["code"] == 0, result["out"]
    assert_same(killed, whole[0])
    assert not list((killed / "checkpoints").glob(".*"))


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_preempted_it_saves_exits_0_in_time_and_goes_on(forked, command, whole, tmp_path, name):
    """TERM ends after the step under way; USR1 has no grace here, so the step is dropped at the end of a batch."""
    folder = tmp_path / "run"
    more = ("--grace", 0) if name == "USR1" else ()
    first = str(folder / "checkpoints" / "step-000001")
    (result,) = forked.run({"argv": command(folder, *more), "when": first, "signal": name})
    assert result["code"] == 0, result["out"]
    assert f"SIG{name}: saving" in result["out"] and "the same command resumes" in result["out"]
    # one step of this run, or the 20 s that the message states for a longer one
    assert result["seconds"] - result["signalled"] < 20
    assert not (folder / "summary.json").exists() and checkpoint.latest(folder / "checkpoints") is not None
    (result,) = forked.run({"argv": command(folder)})
    assert result["code"] == 0 and "resuming" in result["out"], result["out"]
    assert_same(folder, whole[0])


def test_told_while_it_looks_at_the_real_images_it_ends_at_once(monkeypatch, tmp_path, capsys, command):
    """Features of a large set take long, and nothing of them is kept; the run folder can begin again."""
    network = setting.load_network

    def told(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return network(*arguments)

    monkeypatch.setattr(setting, "load_network", told)
    main([*command(tmp_path / "run"), "--grace", "1000"])  # returns: exit code 0
    assert "stopped as told before the first step" in capsys.readouterr().out
    assert not any((tmp_path / "run").glob("checkpoints/*"))
