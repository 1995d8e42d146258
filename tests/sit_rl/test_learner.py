"""Averages, LoRA, precision and compilation of the trained model; loggers; and the Slurm script, with Slurm played."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sit_rl.config import resolve
from sit_rl.learner import learner as learning
from sit_rl.learner.learner import Learner, choose_parallel, prepare
from sit_rl.models.loading import load_model, save_model
from sit_rl.models.lora import merge_lora
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.runs.log import RunLog, start_wandb
from sit_rl.train import main
from tests.support.tiny_runs import tiny_command

ROOT = Path(__file__).parents[2]
SHAPE = SiTConfig(image_size=4, patch_size=2, channels=1, width=16, depth=2, heads=2, num_classes=2, learn_sigma=False)
CONFIG = resolve(PRESETS["smoke"][1].changed(lr=1e-2))
CPU = torch.device("cpu")


@pytest.fixture
def base():
    torch.manual_seed(0)
    model = SiT(SHAPE).requires_grad_(False)
    for p in model.parameters():
        p.normal_(std=0.3)
    return model


def question(n=6):
    torch.manual_seed(1)
    return torch.randn(n, *SHAPE.image_shape), torch.rand(n), torch.arange(n) % 2


def step(learner, updates=1):
    x, t, y = question()
    learner.optimizer.zero_grad()
    with learner.backward(last=True):
        learner(x, t, y).square().mean().backward()
    learner.clip()
    learner.step(updates)


def test_a_copy_with_another_forward_is_its_own(base):
    """What makes deep copies safe: a prepared model's forward belongs to the copy, not to the original."""
    prepare(base, CONFIG.changed(precision="bf16", activation_checkpointing=True).run, CPU)
    learner = Learner(base, CONFIG.changed(precision="bf16", activation_checkpointing=True))
    for module in (learner.module, learner.averages[0].module):
        assert module.forward.__self__ is module and module.blocks[1].forward.__self__ is module.blocks[1]
    before = base(*question())
    step(learner)
    assert torch.equal(base(*question()), before)
    assert not torch.equal(learner.sampler()(*question()), before)


def test_a_model_without_anything_to_train_is_one_sentence(base):
    base.frozen = frozenset(name for name, _ in base.named_parameters())
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        Learner(base, CONFIG)


def test_recomputed_activations_give_the_same_gradients_bit_for_bit(base):
    gradients, calls = [], []
    for recompute in (False, True):
        learner = Learner(base, CONFIG.changed(activation_checkpointing=recompute))
        learner.module.blocks[1].mlp.register_forward_hook(lambda *_: calls.append(recompute))  # noqa: B023
        learner(*question()).square().mean().backward()
        gradients.append([p.grad for p in learner.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert calls == [False, True, True]  # once more in the backward pass


def test_bf16_answers_in_float32_near_float32s_answer(base):
    """A bfloat16 product rounds to 2⁻⁹ of its size; a dozen in a row, of values that cancel, to some percent."""
    whole = base(*question())
    half = prepare(base, CONFIG.changed(precision="bf16").run, CPU)(*question())
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    assert float((half - whole).norm() / whole.norm()) < 0.05


def test_lora_trains_its_own_terms_and_merges_into_official_names(base, tmp_path):
    pytest.importorskip("peft")
    learner = Learner(base, CONFIG.changed(lora=2))
    assert torch.equal(learner.sampler()(*question()), base(*question()))  # B starts at 0
    names = [name for name, p in learner.module.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 4 and all("lora" in name for name in names)
    again = Learner(base, CONFIG.changed(lora=2))
    for a, b in zip(learner.parameters, again.parameters, strict=True):
        assert torch.equal(a, b)  # A's start belongs to the seed, so that a resume and every rank have the same
    for i in range(3):
        step(learner, i + 1)
    for name, p in learner.module.named_parameters():
        if not p.requires_grad:
            assert torch.equal(p, dict(base.named_parameters())[name.replace("base_layer.", "")]), name
    moved = learner.sampler()(*question())
    assert not torch.equal(moved, base(*question()))
    save_model(merge_lora(learner.sampler()), tmp_path / "merged.safetensors")
    merged = load_model(tmp_path / "merged.safetensors")
    # W + BA in one product or two: float32 rounding
    torch.testing.assert_close(merged(*question()), moved, rtol=1e-4, atol=1e-5)


def test_several_averages_are_kept_and_named(base):
    learner = Learner(base, CONFIG.changed(ema=0.5, ema_extra=(0.9, 0.99), ema_power=(0.1,)))
    for i in range(3):
        step(learner, i + 1)
    parts = {name.split(".final")[0] for name in learner.tensors() if name.endswith("final_layer.linear.bias")}
    assert parts == {"model", "ema", "ema-0.9", "ema-0.99", "ema-power-0.1"}
    biases = [average.module.final_layer.linear.bias for average in learner.averages]
    start, now = base.final_layer.linear.bias, learner.module.final_layer.linear.bias
    distances = [float((b - start).norm()) for b in biases[:3]]
    assert distances == sorted(distances, reverse=True) and float((now.detach() - start).norm()) > distances[0]


def test_compiled_blocks_answer_as_the_others(base, monkeypatch):
    """With the back end that only traces: the other one needs a compiler and a minute."""
    whole = base(*question())
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, options: self.__dict__.update(_compiled=True))
    prepare(base, CONFIG.changed(compile="auto").run, CPU)
    assert not any(hasattr(block, "_compiled") for block in base.blocks)
    prepare(base, CONFIG.changed(compile="on").run, CPU)
    assert all(block._compiled for block in base.blocks)
    monkeypatch.undo()
    for block in base.blocks:
        block.compile(backend="aot_eager")
    torch.testing.assert_close(base(*question()), whole, rtol=1e-5, atol=1e-6)


def test_large_models_are_sharded_and_small_ones_are_not(monkeypatch):
    assert choose_parallel("fsdp", 10**9) == "none"  # one rank
    monkeypatch.setattr(learning, "world_size", lambda: 8)
    assert choose_parallel("auto", 131_000_000) == "ddp" and choose_parallel("auto", 458_000_000) == "fsdp"
    assert choose_parallel("ddp", 10**9) == "ddp" and choose_parallel("fsdp", 10) == "fsdp"


def test_wandb_gets_the_numbers_of_every_step(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: calls.append((step, numbers)), finish=lambda: calls.append("finish")
    )
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        log = RunLog(tmp_path, 0, start_wandb(CONFIG.changed(wandb="project", out=tmp_path)))
        log.step({"step": 3, "loss": 0.5, "note": "text", "seconds": {"total": 2.0}})
        log.close()
    options, logged, finished = calls[:3]
    assert options["project"] == "project" and options["resume"] == "allow" and options["config"]["seed"] == 0
    assert calls[3]["id"] == options["id"]  # a resume goes on in the same run
    assert logged == (3, {"loss": 0.5, "seconds/total": 2.0}) and finished == "finish"


@pytest.mark.parametrize("flags, package", [(("--wandb", "x"), "wandb"), (("--lora", "2"), "peft")])
def test_a_missing_extra_names_the_command(tmp_path, monkeypatch, capsys, flags, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit):
        main([*tiny_command(tmp_path)(tmp_path / "run"), *flags])
    extra = {"peft": "lora"}.get(package, package)
    assert f"pip install 'fastfid[{extra}]'" in capsys.readouterr().err
    assert extra in (ROOT / "pyproject.toml").read_text()


FAKE_SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
for i in 0 1 2 3; do SLURM_PROCID=$i SLURM_LOCALID=$((i % 2)) "$@" || exit 1; done
"""
FAKE_PYTHON = """#!/bin/bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $@" >> "$LOG"
"""
FAKE_SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> "$LOG"; fi
"""


def test_slurm_script_starts_every_rank_and_queues_an_unfinished_run_again(tmp_path):
    for name, text in (("srun", FAKE_SRUN), ("python", FAKE_PYTHON), ("scontrol", FAKE_SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "OUT": str(tmp_path / "run"),
        "SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "4", "SLURM_NNODES": "2",
    }  # fmt: skip
    script = ["bash", str(ROOT / "sit_rl" / "slurm" / "train.sbatch"), "--seed", "3", "--real", "a b.npz"]
    subprocess.run(script, env=env, check=True)
    *ranks, requeue = log.read_text().splitlines()
    assert requeue == "requeue 123"
    for i, line in enumerate(ranks):
        words = line.split(" ", 6)
        assert words[:6] == [str(i), str(i % 2), "4", "2", "node7", "20123"]
        assert words[6] == (
            f"sit_rl/train.py --preset sit-xl-imagenet256 --out {tmp_path / 'run'} --grace 60 --seed 3 --real a b.npz"
        )
    assert len(ranks) == 4
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    subprocess.run(script, env=env, check=True)
    assert log.read_text().count("requeue") == 1
