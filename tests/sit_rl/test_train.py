"""The whole job through its own command: outputs, resume, ranks, and every bad input a user can think of."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sit_rl.config import resolve
from sit_rl.config_files import load_config
from sit_rl.learner import checkpoint
from sit_rl.presets import PRESETS
from sit_rl.train import main
from sit_rl.training.network_judge import SCORES
from sit_rl.training.state import VALUE_KINDS, read_values
from tests.support.tiny_runs import completed

ROOT = Path(__file__).parents[2]
METRICS = ["fd", "kid", "mmd", "fd_b", "precision", "recall", "density", "coverage"]
NETWORKS = {"fashion-a": True, "fashion-b": False, "fashion-e": False}  # of the smoke run: whether it is rewarded


SMOKE = ("--preset", "smoke", "--threads", "1")


def launch(*arguments, wait=True, **popen):
    """torchrun sit_rl/train.py --preset smoke …, on one rank: (exit code, output), or the running process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
    command += ["sit_rl/train.py", *SMOKE, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **popen
    )
    if not wait:
        return process
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def final_state(folder):
    """Every tensor of the last checkpoint."""
    path = checkpoint.latest(Path(folder) / "checkpoints")
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in checkpoint.names(path).items()}
    checkpoint.load_tensors(path, tensors)
    return tensors


def records(folder):
    """metrics.jsonl without the times, which no run repeats."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "share", "predicted_seconds")} for r in lines]


def check_networks(metrics):
    """Every network has every score; the flat ones are those of the first network and the first judge."""
    networks = metrics["networks"]
    assert {name: scores["rewarded"] for name, scores in networks.items()} == NETWORKS
    for scores in networks.values():
        assert set(scores) == {"rewarded", *SCORES} and all(np.isfinite(scores[name]) for name in SCORES)
    assert metrics["fd_b"] == networks["fashion-b"]["fd"]
    assert all(metrics[name] == networks["fashion-a"][name] for name in METRICS if name in SCORES)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One uninterrupted run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    code, out = launch("--out", folder, "--steps", 4)
    assert code == 0, out
    return folder, out


def test_run_writes_everything_it_promises(smoke):
    folder, out = smoke
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= {"config", "before", "after", "floor", "seconds", "images_generated"}
    for when in ("before", "after"):
        assert list(summary[when]) == ["ode", "sde"]
        for metrics in summary[when].values():
            assert list(metrics)[: len(METRICS)] == METRICS and {"networks", "first_images"} <= set(metrics)
            assert all(np.isfinite(metrics[name]) for name in METRICS)
            check_networks(metrics)
    assert {name: row["fdr"] for name, row in summary["real_against_real"].items()} == dict.fromkeys(NETWORKS, 1)
    # 1,000 real images on each side: 0.25, of which most is the bias of so few
    assert set(summary["floor"]) == {"fd", "fd_b"} and 0 < summary["floor"]["fd"] < 0.5
    assert {"rollout", "reward", "update", "refresh", "evaluate", "total"} <= set(summary["seconds"])
    phases = sum(v for k, v in summary["seconds"].items() if k != "total")
    assert phases <= summary["seconds"]["total"]
    # the reference of 200, and 4 steps of 4 × 10; evaluations are not training's
    assert summary["images_generated"] == 200 + 4 * 40
    asked = PRESETS["smoke"][1].changed(out=folder, steps=4, threads=1)
    assert load_config(folder / "config.yaml") == resolve(asked)
    steps = records(folder)
    assert [r["step"] for r in steps] == [0, 1, 2, 3]
    for name in ("reference_fd", "subset_rewards", "image_reward_std", "kept_fraction", "loss", "gradient_norm", "lr"):
        assert all(name in r for r in steps)
    for record in steps:
        for evaluation in record.get("evaluation", {}).values():
            check_networks(evaluation)
    assert list(folder.glob("tensorboard/events*")) and len(list((folder / "checkpoints").iterdir())) == 2
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4 and "http" not in report.replace("https://www.w3.org", "")
    for text in (
        "outputs",
        "predicted",
        "FD, second network",
        "real images against real images",
        "report.html",
        "never seen",
        "the gap is",
    ):
        assert text in out


def test_finished_run_is_reported_again_without_training(forked, smoke):
    folder, _ = smoke
    before = records(folder)
    result = completed(forked, [*SMOKE, "--out", str(folder), "--steps", "4"])
    assert "resuming" in result["out"] and records(folder) == before


@pytest.mark.slow  # tests/test_survival.py kills at many more moments, without torchrun
def test_killed_run_resumes_bit_for_bit(smoke, tmp_path):
    """SIGKILL after the first checkpoint of a step, then the same command again."""
    folder = tmp_path / "killed"
    process = launch("--out", folder, "--steps", 4, wait=False)
    deadline = time.time() + 120
    while not (folder / "checkpoints" / "step-000002").exists() and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()
    code, out = launch("--out", folder, "--steps", 4)
    assert code == 0, out
    whole, resumed = final_state(smoke[0]), final_state(folder)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert records(folder) == records(smoke[0])
    a, b = (json.loads((f / "summary.json").read_text()) for f in (folder, smoke[0]))
    assert a["after"] == b["after"] and a["before"] == b["before"]


def test_two_ranks_equal_one(forked, smoke, tmp_path):
    """The same images and rewards bit for bit; weights to the rounding of one sum in another order."""
    results = forked.ranks(2, [*SMOKE, "--out", str(tmp_path / "two"), "--steps", "4"])
    assert [result["code"] for result in results] == [0, 0], results[0]["out"]
    one, two = records(smoke[0]), records(tmp_path / "two")
    assert one[0]["subset_rewards"] == two[0]["subset_rewards"]
    assert one[0]["reference_fd"] == two[0]["reference_fd"]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a["subset_rewards"], b["subset_rewards"], rtol=1e-3)
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-2, atol=1e-4)
    first, second = final_state(smoke[0]), final_state(tmp_path / "two")
    for name, value in first.items():
        if name.startswith("model."):
            # Adam turns a rounding difference of a near-zero gradient into one of a learning rate: 8 updates of 2e-4
            torch.testing.assert_close(value, second[name], rtol=0, atol=2e-3)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["ranks"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--estimator", "sde_policy_gradient", "--credit", "subset", "--normalise", "batch", "--reference", "refresh"),
        ("--estimator", "rejection", "--credit", "influence"),
        ("--estimator", "pretraining"),
        ("--rollout.method", "dopri5", "--evaluate-every", "0", "--judge-features", "none", "--reference-size", "60"),
    ],
    ids=" ".join,
)
def test_other_ways_to_train_run_through(arguments, tmp_path, capsys):
    small = "--steps 1 --embedded-images 200 --evaluate-images 40 --evaluate-every-images 20".split()
    main([*SMOKE, *small, "--out", str(tmp_path / "run"), *arguments])
    assert (tmp_path / "run" / "report.html").is_file()
    assert "report" in capsys.readouterr().out


def error_of(capsys, *arguments):
    """The single line that a refused command prints."""
    with pytest.raises(SystemExit) as caught:
        main(["--preset", "smoke", "--threads", "1", *map(str, arguments)])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    error = printed[printed.index("error: ") :].strip()  # progress bars come before it
    assert "\n" not in error and "Traceback" not in printed
    return error


def image_folder(path, sizes, mode="L"):
    path.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(np.full((size, size), 9 * i, np.uint8)).convert(mode).save(path / f"{i}.png")
    return path


def test_bad_numbers_are_refused(capsys, tmp_path):
    assert "--replace 199 leaves fewer than 2 of the --reference-size 200" in error_of(capsys, "--replace", 199)
    assert "exceed the rolling reference" in error_of(capsys, "--candidates", 50)
    assert "--steps is 0" in error_of(capsys, "--steps", 0)
    assert "--keep is 1.5" in error_of(capsys, "--keep", 1.5)
    for name in ("--lr", "--grad-clip", "--advantage-clip", "--clip-range"):
        assert f"{name} is -1" in error_of(capsys, name, -1)
        assert f"{name} is nan; it must be a finite number" in error_of(capsys, name, "nan")
    assert "--grad-clip is 0.0; it must be positive" in error_of(capsys, "--grad-clip", 0)
    assert "--stop-fd is nan; it must be a finite number" in error_of(capsys, "--stop-fd", "nan")
    assert "--threads is -2" in error_of(capsys, "--threads", -2, "--out", tmp_path / "run")
    assert "an image of each of the model's 10 classes" in error_of(
        capsys, "--reference-size", 8, "--replace", 2, "--candidates", 1, "--out", tmp_path / "run"
    )
    assert "do not have the density" in error_of(capsys, "--rollout-sde.method", "adams")


def test_bad_paths_are_refused(capsys, tmp_path):
    out = ("--out", tmp_path / "run")
    assert "--checkpoint" in error_of(capsys, "--checkpoint", tmp_path / "none.pt", *out)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    assert "not of an architecture" in error_of(capsys, "--checkpoint", tmp_path / "other.pt", *out)
    (tmp_path / "empty").mkdir()
    assert "empty" in error_of(capsys, "--real", tmp_path / "empty", *out)
    assert "1.png" in error_of(capsys, "--real", image_folder(tmp_path / "mixed", [28, 30]), *out)
    broken = image_folder(tmp_path / "broken", [28, 28])
    (broken / "1.png").write_bytes((broken / "1.png").read_bytes()[:40])
    assert "1.png" in error_of(capsys, "--real", broken, *out)
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(7), sigma=np.eye(7))
    assert "7" in error_of(capsys, "--heldout", tmp_path / "narrow.npz", *out)
    (tmp_path / "file").write_text("not a folder")
    assert "cannot be written" in error_of(capsys, "--out", tmp_path / "file" / "run")


def test_imagenet_preset_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["--preset", "sit-xl-imagenet256"])
    error = capsys.readouterr().err
    assert "needs --checkpoint (" in error and "--vae (" in error and "--real (" in error and error.count("\n") == 1


def test_unknown_preset_names_the_known(capsys):
    with pytest.raises(SystemExit):
        main(["--preset", "nope"])
    assert "fashion: " in capsys.readouterr().err


def test_another_config_does_not_overwrite_a_run(smoke, capsys):
    assert "another --lr" in error_of(capsys, "--out", smoke[0], "--steps", 4, "--lr", 1e-3)


def test_nan_features_stop_the_step_and_keep_the_checkpoint(tmp_path, monkeypatch, capsys):
    from fastfid import FeatureExtractor

    calls, original = [], FeatureExtractor.__call__

    def poisoned(self, images):
        features = original(self, images).clone()
        calls.append(len(images))
        if len(images) == 20 and calls.count(20) > 26:
            features[3] = float("nan")
        return features

    monkeypatch.setattr(FeatureExtractor, "__call__", poisoned)
    small = "--steps 9 --embedded-images 200 --evaluate-images 40 --evaluate-every 0".split()
    error = error_of(capsys, "--out", tmp_path / "run", *small)
    assert "NaN" in error
    assert final_state(tmp_path / "run") is not None


def write(folder, step, value, keep=2):
    writer = checkpoint.Writer(folder, keep)
    writer.save(step, {"x": torch.full((3,), float(value))}, {"step": step})
    writer.wait()


def read(path):
    tensors = {"x": torch.empty(3)}
    checkpoint.load_tensors(path, tensors)
    return tensors["x"], checkpoint.load_values(path)


def test_full_disk_names_the_file_and_the_remedy(tmp_path, monkeypatch):
    write(tmp_path, 1, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="step-000002.*No space left.*make room and run the same command"):
        write(tmp_path, 2, 0)
    monkeypatch.undo()
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-000001"]
    x, values = read(checkpoint.latest(tmp_path))
    assert torch.equal(x, torch.ones(3)) and values == {"step": 1}
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_save_that_a_dead_rank_ended_does_not_ask_for_room(tmp_path, monkeypatch):
    def lost(*_):
        raise RuntimeError(
            "[pair.cc:545] Read error [127.0.0.1]:14762: Connection reset by peer. " + "Check logs. " * 30
        )

    monkeypatch.setattr(os, "fsync", lost)
    with pytest.raises(
        OSError, match="step-000001: lost contact with another rank.*reset by peer.*same comm"
    ) as caught:
        write(tmp_path, 1, 1)
    assert "make room" not in str(caught.value)


def test_checkpoints_are_kept_to_a_number_and_damage_is_named(tmp_path):
    """Of a step saved twice, as after an evaluation, the newer one takes the place of the older."""
    for step in (0, 1, 2, 2, 10):
        write(tmp_path, step, step, keep=3)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-000001", "step-000002-1", "step-000010"]
    checkpoint.discard_old(tmp_path, keep=2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-000002-1", "step-000010"]
    (shard,) = checkpoint.latest(tmp_path).glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ValueError, match="step-000010 cannot be read.*delete it"):
        read(checkpoint.latest(tmp_path))
    (checkpoint.latest(tmp_path) / "state.json").write_text("{")
    with pytest.raises(ValueError, match="step-000010 cannot be read.*delete it"):
        checkpoint.load_values(checkpoint.latest(tmp_path))


@pytest.mark.parametrize("change", [{"step": "two"}, {"seconds": None}, {"reference": [1]}, {"step": 2.5}])
def test_a_checkpoints_values_of_another_kind_are_refused(tmp_path, change):
    """One sentence that names checkpoint and value, for values as for tensors."""
    good = dict.fromkeys(VALUE_KINDS, None) | {"step": 2, "images_generated": 0}
    good |= {"seconds": {}, "evaluations": {}, "config": {}, "first_credit_std": {}}
    (tmp_path / "state.json").write_text(json.dumps(good))
    assert read_values(tmp_path) == good
    (tmp_path / "state.json").write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=f"checkpoint .* has {next(iter(change))} .*delete it to resume"):
        read_values(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({k: v for k, v in good.items() if k not in change}))
    with pytest.raises(ValueError, match=f"has no '{next(iter(change))}'"):
        read_values(tmp_path)
