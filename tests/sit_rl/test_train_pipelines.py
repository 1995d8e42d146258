"""Whole runs of pipelines: rollout, reward, update, save, resume bit for bit, sample."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="pip install 'fastfid[prompts]'")
pytest.importorskip("transformers", reason="pip install 'fastfid[prompts]'")
pytest.importorskip("peft", reason="pip install 'fastfid[prompts]'")

from sit_rl import sample
from sit_rl.files.tensor_files import read_safetensors
from sit_rl.train import main, parse
from tests.support import tiny_pipelines
from tests.support.forked import Forked
from tests.support.tiny_pipelines import PROMPTS, SIZE, save_pipeline, write_prompts
from tests.support.tiny_runs import all_ended, assert_same_training, completed, final, lines
from tests.support.tiny_samples import pixels

STEPS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pipelines, prompts and real images."""
    place = tmp_path_factory.mktemp("place")
    for kind in ("sd3", "sana"):
        save_pipeline(getattr(tiny_pipelines, kind), place / kind)
    write_prompts(place / "prompts.jsonl")
    images = np.random.default_rng(0).integers(0, 256, (60, SIZE, SIZE, 3), dtype=np.uint8)
    np.save(place / "real.npy", images)
    return place


def command(place, out, *more, kind="sd3", steps=STEPS, precision="float32"):
    """A run of the preset for prompts, cut to seconds."""
    return [
        *"--threads 1 --reference-size 24 --replace 3 --candidates 4 --minibatch 6 --micro-batch 3 --rollout-batch 4 "
        "--rollout.steps 2 --rollout-sde.steps 3 --evaluate-ode.steps 2 --evaluate-sde.steps 2 --lora 2 --updates 2 "
        "--evaluate-images 8 --evaluate-every 0 --reward-features fashion-a".split(),
        "--steps", str(steps), "--precision", precision, "--model", f"diffusers:{place / kind}",
        "--prompts", str(place / "prompts.jsonl"), "--real", str(place / "real.npy"), "--out", str(out),
        *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def forked():
    """Trainings in children of a process that has imported what a pipeline imports, which takes seconds."""
    libraries = ("clip.modeling_clip", "t5.modeling_t5", "t5.tokenization_t5", "clip.tokenization_clip")
    pipeline = "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3"
    server = Forked(pipeline, "peft", *(f"transformers.models.{name}" for name in libraries))
    yield server
    server.close()


@pytest.fixture(scope="module")
def env(place):
    return {"FASTFID_CACHE": str(place / "cache")}


@pytest.fixture(scope="module")
def run(forked, env, place, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, completed(forked, command(place, out), env=env)["out"]


def test_a_run_has_the_pipelines_samplers_and_trains_lora_by_default(place):
    config = parse(["--model", f"diffusers:{place / 'sd3'}", "--prompts", "p.jsonl", "--real", "r"])
    assert config.preset == "prompts" and config.update.lora > 0
    for sampler in (config.rollout.sampler, config.rollout.sde_sampler, config.evaluation.ode, config.evaluation.sde):
        assert (sampler.guidance, sampler.shift) == (7.0, 3.0)
    assert config.rollout.sampler.steps == 28


def test_a_run_ends_with_lora_terms_and_a_report(run):
    out, told = run
    state, metadata = read_safetensors(out / "ema.safetensors")
    assert all(name.startswith("transformer.transformer_blocks.") and ".lora_" in name for name in state)
    assert any(float(value.abs().max()) > 0 for name, value in state.items() if "lora_B" in name)
    assert metadata["generator"] == "SD3Transformer2DModel of sd3"
    assert (out / "report.html").is_file() and "SD3Transformer2DModel of sd3" in told
    kept, values = final(out)
    assert all(".lora_" in name for name in kept if not name.startswith("reference"))
    assert torch.bincount(kept["reference.labels"] // 2).tolist() == [12, 12]  # as many of each group as at the start
    assert values["step"] == STEPS


def test_a_killed_run_ends_bit_for_bit_as_a_whole_one(forked, env, run, place, tmp_path):
    killed = tmp_path / "killed"
    when = str(killed / "checkpoints" / "step-000001*")
    (result,) = forked.run({"argv": command(place, killed), "env": env, "when": when, "signal": "KILL"})
    assert result["code"] == -9, result["out"]
    completed(forked, command(place, killed), env=env)
    (whole, _), (resumed, _) = final(run[0]), final(killed)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lines(run[0]) == lines(killed)


@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_train_as_one(forked, env, run, place, tmp_path, how):
    all_ended(forked.ranks(2, command(place, tmp_path / "run", "--parallel", how), env=env))
    assert_same_training(tmp_path / "run", run[0])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 2


def test_other_prompts_do_not_resume(run, place, env, monkeypatch, capsys):
    """The file keeps its name; a run must not go on with other conditions under the same numbers."""
    monkeypatch.setenv("FASTFID_CACHE", env["FASTFID_CACHE"])
    content = (place / "prompts.jsonl").read_text()
    try:
        write_prompts(place / "prompts.jsonl", PROMPTS[::-1])
        with pytest.raises(SystemExit, match="2"):
            main(command(place, run[0]))
    finally:
        (place / "prompts.jsonl").write_text(content)
    assert "was made with other classes or prompts" in capsys.readouterr().err


def test_a_run_is_sampled_by_its_folder(run, env, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTFID_CACHE", env["FASTFID_CACHE"])
    out = tmp_path / "trained"
    sample.main(f"--checkpoint {run[0]} --images 4 --batch 2 --threads 1 --out {out}".split())
    record = json.loads((out / "sampling.json").read_text())
    assert record["sampler"]["name"] == "ODE euler, 2 steps, shift 3, guidance 7" and record["classes"] == len(PROMPTS)
    assert np.load(out / "labels.npy").tolist() == [0, 2, 1, 3]  # groups take turns, then their prompts
    assert record["model"]["generator"] == "SD3Transformer2DModel of sd3"
    assert pixels(out).shape == (4, SIZE, SIZE, 3)


def test_a_pipeline_is_sampled_without_a_run(place, env, tmp_path, monkeypatch):
    """With its own number of steps, and one prompt by its number."""
    monkeypatch.setenv("FASTFID_CACHE", env["FASTFID_CACHE"])
    flags = f"--prompts {place / 'prompts.jsonl'} --labels 3 --images 2 --threads 1 --out {tmp_path / 'images'}"
    sample.main(["--model", f"diffusers:{place / 'sd3'}", *flags.split()])
    record = json.loads((tmp_path / "images" / "sampling.json").read_text())
    assert record["sampler"]["name"] == "ODE euler, 28 steps, shift 3, guidance 7" and record["batch"] == 8
    assert np.load(tmp_path / "images" / "labels.npy").tolist() == [3, 3]


def test_the_policy_gradient_of_another_family(place, env, tmp_path, monkeypatch):
    """Sana by Flow-GRPO's sampler, with all weights in bfloat16 below LoRA, and one condition without a group."""
    monkeypatch.setenv("FASTFID_CACHE", env["FASTFID_CACHE"])
    more = ("--estimator", "sde_policy_gradient", "--image-size", SIZE)
    main(command(place, tmp_path / "run", *more, kind="sana", steps=1, precision="bf16"))
    (record,) = lines(tmp_path / "run")
    assert record["ratio_departure"] < 0.01 and record["kl"] >= 0 and np.isfinite(record["loss"])
    state, _ = read_safetensors(tmp_path / "run" / "ema.safetensors")
    assert any(float(value.abs().max()) > 0 for name, value in state.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "drop, told",
    [
        ("--prompts", "needs --prompts: a file with one prompt a line"),
        ("--real", "come without images; pass --real"),
    ],
)
def test_prompts_and_images_are_both_needed(place, tmp_path, capsys, drop, told):
    argv = command(place, tmp_path / "run")
    at = argv.index(drop)
    with pytest.raises(SystemExit, match="2"):
        main(argv[:at] + argv[at + 2 :])
    assert told in " ".join(capsys.readouterr().err.split())
