"""Each guard stops a run for the one thing it watches, and says what, where, and what to do."""

import copy
import json
import random
import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_rl import rollout
from sit_rl import train as train_command
from sit_rl.config import resolve
from sit_rl.learner import checkpoint, guards
from sit_rl.models import convert
from sit_rl.models.loading import load_model, save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.runs.html_report import write_run_report
from sit_rl.train import main
from sit_rl.training import loop as training_loop

SHAPE = SiTConfig(image_size=4, patch_size=2, channels=1, width=16, depth=1, heads=2, num_classes=2, learn_sigma=False)
CONFIG = resolve(PRESETS["smoke"][1].changed(lr=1e-4))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SiT(SHAPE).requires_grad_(False)
    for p in model.parameters():
        p.normal_(std=0.3)
    return model


class WithLabelDropout(torch.nn.Module):
    """A model that forgets one label in ten, as SiT's official code does in training mode."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.sample_shape = model, model.config, model.sample_shape

    def forward(self, x, t, y):
        dropped = torch.rand(len(y)) < 0.1
        return self.model(x, t, torch.where(dropped, self.config.num_classes, y))


def test_label_dropout_is_noticed(model):
    guards.require_deterministic(model, torch.device("cpu"))
    torch.manual_seed(1)
    for _ in range(20):  # it misses with probability 1e-6 a time
        with pytest.raises(ValueError, match="dropout, of labels or another, is on"):
            guards.require_deterministic(WithLabelDropout(model), torch.device("cpu"))


def test_a_model_of_nan_is_not_taken_for_dropout(model):
    broken = copy.deepcopy(model)
    next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="the model gives NaN or infinity for samples of zeros"):
        guards.require_deterministic(broken, torch.device("cpu"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_named_with_their_step(bad):
    x = torch.zeros(5, 2, 3)
    guards.require_finite("samples", x, 7)
    guards.require_finite("labels", torch.zeros(5, dtype=torch.long), 7)
    x[3, 1, 2] = bad
    with pytest.raises(FloatingPointError, match="samples of step 7 .* in 1 of 5 rows, the first is row 3"):
        guards.require_finite("samples", x, 7)


def test_a_weight_that_is_no_number_is_named_with_its_step(model):
    guards.require_finite_weights(model.named_parameters(), 3, 1e-4)
    broken = SiT(SHAPE).requires_grad_(False)
    broken.blocks[0].mlp.fc1.weight[2, 1] = float("inf")
    with pytest.raises(
        FloatingPointError, match=r"weight blocks\.0\.mlp\.fc1\.weight is NaN .* of step 3: start again with a lower"
    ):
        guards.require_finite_weights(broken.named_parameters(), 3, 1e-4)


def test_a_checkpoint_with_a_weight_that_is_no_number_is_named(tmp_path, capsys, command):
    arguments = command(tmp_path / "run")
    model = load_model(Path(arguments[arguments.index("--checkpoint") + 1]))
    with torch.no_grad():
        model.blocks[0].attn.proj.bias[3] = float("nan")
    save_model(model, tmp_path / "broken.safetensors")
    error = error_of(capsys, [*arguments, "--checkpoint", str(tmp_path / "broken.safetensors")])
    assert re.search(r"weight blocks\.0\.attn\.proj\.bias of --checkpoint .*broken.* is NaN or infinite", error), error
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / "broken.safetensors"), str(tmp_path / "broken.pt")])
    assert "attn.proj.bias of" in capsys.readouterr().err and not (tmp_path / "broken.pt").exists()


@pytest.mark.parametrize(
    "where, complaint", [(1, "samples of 'evaluate ode before'"), (3, "reference samples of step 0")]
)
def test_generated_images_that_are_no_numbers_never_become_pixels(
    tmp_path, monkeypatch, capsys, command, where, complaint
):
    """In the evaluations, the first and second sets that are generated, and in the reference, the third."""
    original, seen = rollout._join, []

    def poisoned(parts):
        seen.append(parts)
        if len(seen) == where:
            parts[-1].samples[-1] = float("nan")
        return original(parts)

    monkeypatch.setattr(rollout, "_join", poisoned)
    error = error_of(capsys, command(tmp_path / "run"))
    assert f"{complaint} have NaN or infinite values in 1 of" in error, error


@pytest.mark.parametrize(
    "record, flag, complaint",
    [
        ({"reference_fd": 10.1}, "stop_fd", "reference_fd is 10.1 in step 4, above its limit 10 .--stop-fd 5"),
        ({"drift": 1.01}, "stop_drift", "drift is 1.01 in step 4, above its limit 1 .--stop-drift 1"),
        ({"kl": float("nan")}, "stop_kl", "kl is nan in step 4, above its limit 100 .--stop-kl 100"),
    ],
)
def test_a_run_that_runs_away_is_stopped_unless_told_not_to(record, flag, complaint):
    record = {"step": 4, **record}
    with pytest.raises(FloatingPointError, match=complaint):
        guards.require_sane(CONFIG.run, CONFIG.update.lr, record, first_fd=2.0)
    guards.require_sane(CONFIG.changed(**{flag: 0.0}).run, CONFIG.update.lr, record, first_fd=2.0)
    fine = {"step": 4, "reference_fd": 9.9, "drift": 0.9, "kl": 99.0}
    guards.require_sane(CONFIG.run, CONFIG.update.lr, fine, first_fd=2.0)


def test_a_nearly_full_disk_stops_a_save_before_it_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 9 * 10**8, 70 * 2**20))
    writer = checkpoint.Writer(tmp_path / "checkpoints", keep=2)
    with pytest.raises(OSError, match="has 73 MB free and step-000001 takes 8 MB, beside 67 MB for.*: make room"):
        writer.save(1, {"x": torch.zeros(2 * 2**20)}, {})
    assert not (tmp_path / "checkpoints").exists()
    writer.save(1, {"x": torch.zeros(2**20)}, {})
    writer.wait()
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-000001"


def test_a_replaced_run_makes_room_for_the_next_and_stays_where_that_is_too_little(
    tmp_path, monkeypatch, capsys, command
):
    asked = []

    def full(folder, size, path=None):
        asked.append(size)
        raise OSError("full")

    monkeypatch.setattr(checkpoint, "require_space", full)
    place = tmp_path / "run"
    assert error_of(capsys, command(place)) == "error: full" and not place.exists()
    old = place / "checkpoints" / "step-000001" / "shard"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(1000))
    CONFIG.save(place / "config.yaml")
    assert error_of(capsys, command(place, "--no-resume")) == "error: full" and old.is_file()
    assert asked[0] - asked[1] == 1000


def error_of(capsys, argv):
    """The sentence that a training ends with."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    printed = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in printed
    return printed[printed.index("error: ") :].strip()


@pytest.mark.parametrize(
    "phase, function, remedy",
    [
        ("rollout", "generate", r"--rollout-batch \(now 5\)"),
        ("update", "update", r"--micro-batch \(now 0: .* 10 images"),
    ],
)
def test_a_full_gpu_is_told_which_argument_to_lower(tmp_path, monkeypatch, capsys, command, phase, function, remedy):
    original, calls = getattr(training_loop, function), []

    def full(*arguments, **options):
        calls.append(function)
        if len(calls) == 2 or function == "update":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(*arguments, **options)

    monkeypatch.setattr(training_loop, function, full)
    error = error_of(capsys, command(tmp_path / "run"))
    assert re.search(f"out of GPU memory in phase {phase}: lower {remedy}.* it resumes", error), error


def test_a_constant_reward_is_explained(tmp_path, monkeypatch, capsys, command):
    original = training_loop.SwapReward.score

    def constant(self, removed, features):
        scores = original(self, removed, features)
        (credits,) = scores.credits
        return replace(scores, credits=(replace(credits, image=torch.full_like(credits.image, 0.5)),))

    monkeypatch.setattr(training_loop.SwapReward, "score", constant)
    error = error_of(capsys, command(tmp_path / "run"))
    assert "all 20 rewards equal 0.5: nothing distinguishes the samples" in error


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "evaluate_both", interrupted)
    with pytest.raises(SystemExit) as end:
        main(command(tmp_path / "run"))
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command goes on from the last checkpoint\n")


def test_training_draws_no_hidden_random_numbers(tmp_path, monkeypatch, command):
    """What the checkpoints rely on: every draw is addressed, so no generator's state needs saving."""
    original, states = training_loop.train_step, []

    def watched(*arguments):
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        record = original(*arguments)
        states.append((before, (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())))
        return record

    monkeypatch.setattr(training_loop, "train_step", watched)
    main(command(tmp_path / "run"))
    assert len(states) == 5
    for (torch_a, numpy_a, random_a), (torch_b, numpy_b, random_b) in states:
        assert torch.equal(torch_a, torch_b) and (numpy_a == numpy_b).all() and random_a == random_b


def test_the_report_escapes_the_name_of_the_run_and_of_everything_in_it(tmp_path):
    bad = "<script>alert(1)"
    folder = tmp_path / bad
    folder.mkdir()
    metrics = {"ode": {"fd": 1.0}, "sde": {"fd": 2.0}}
    summary = {
        "config": {"steps": 1, "evaluate_images": 5, "evaluate_every_images": 5, bad: bad},
        "before": metrics, "after": metrics, "floor": {"fd": 0.1, "fd_b": None},
        "seconds": {phase: 1.0 for phase in ("rollout", "reward", "update", "refresh", "evaluate", "save", "total")},
        "images_generated": 5,
        "protocol": {
            "networks": {"fd": {"name": f"{bad} $\\frac"}}, "generated_images": 5, "heldout_images": 5,
            "samplers": {"ode": bad, "sde": bad},
        },
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("")
    page = write_run_report(folder).read_text()
    assert "<script>" not in page and page.count("&lt;script&gt;alert(1)") >= 6
