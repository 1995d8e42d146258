"""A user's generator by --model: from a file of ten lines to a trained one, and one sentence for what is none."""

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sit_rl import sample
from sit_rl.config import Config
from sit_rl.files.importing import load_object
from sit_rl.files.prompts import read_prompts
from sit_rl.models.loading import read_state
from sit_rl.models.open_model import load_weights
from sit_rl.models.own_model import build_own_model
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.ode_and_sde_steps import sample as integrate
from sit_rl.sampling.sampler_config import SamplerConfig
from sit_rl.train import main
from tests.support.tiny_pipelines import write_prompts
from tests.support.tiny_runs import all_ended, assert_same_training, completed, final, lines
from tests.support.tiny_samples import pixels

ROOT = Path(__file__).parents[2]
MODEL = f"{ROOT}/tests/support/ten_line_model.py:build"
STEPS = 3


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """60 colour images in an array."""
    path = tmp_path_factory.mktemp("real") / "real.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8))
    return path


def command(real, out, *more, steps=STEPS):
    return [
        *"--preset smoke --threads 1 --reference-size 60 --replace 5 --candidates 4 --minibatch 10 --rollout-batch 5 "
        "--evaluate-images 20 --evaluate-every 0 --judge-features none".split(),
        "--steps", str(steps), "--model", MODEL, "--real", str(real), "--out", str(out), *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(forked, real, tmp_path_factory):
    """A finished run of the model of ten lines."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    completed(forked, command(real, out))
    return out


def test_a_killed_run_ends_bit_for_bit_as_a_whole_one(forked, run, real, tmp_path):
    killed = tmp_path / "killed"
    when = str(killed / "checkpoints" / "step-000001*")
    (result,) = forked.run({"argv": command(real, killed), "when": when, "signal": "KILL"})
    assert result["code"] == -9, result["out"]
    completed(forked, command(real, killed))
    (whole, values), (resumed, others) = final(run), final(killed)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lines(run) == lines(killed) and values["step"] == others["step"] == STEPS
    assert not torch.equal(whole["model.own.out.weight"], whole["ema.own.out.weight"])


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(forked, run, real, tmp_path, how):
    all_ended(forked.ranks(2, command(real, tmp_path / "run", "--parallel", how)))
    assert_same_training(tmp_path / "run", run)
    assert json.loads((tmp_path / "run/summary.json").read_text())["ranks"] == 2


def test_a_trained_model_is_the_users_own_state_dict(run):
    state, metadata = read_state(run / "ema.safetensors")
    model = load_object("--model", MODEL)()
    model.load_state_dict(state)
    assert metadata["generator"].startswith("Painter of") and metadata["step"] == str(STEPS)


def test_a_run_is_sampled_by_its_folder(run, tmp_path):
    """The folder knows the model; image i is that of condition i mod 2, with the run's own sampler."""
    sample.main(f"--checkpoint {run} --images 4 --batch 2 --threads 1 --out {tmp_path / 'images'}".split())
    images, record = pixels(tmp_path / "images"), json.loads((tmp_path / "images" / "sampling.json").read_text())
    assert images.shape == (4, 16, 16, 3) and record["sampler"]["name"].startswith("ODE adams, 3 steps")
    assert np.load(tmp_path / "images" / "labels.npy").tolist() == [0, 1, 0, 1]
    guided = tmp_path / "guided"
    sample.main(f"--checkpoint {run} --images 4 --batch 2 --threads 1 --guidance 3 --out {guided}".split())
    assert not np.array_equal(pixels(guided), images)


def test_its_weights_are_trained_further_from_a_file(run, real, tmp_path):
    """--checkpoint replaces the builder's weights; LoRA adapts every linear layer and is merged at the end."""
    pytest.importorskip("peft", reason="pip install 'fastfid[lora]'")
    before, _ = read_state(run / "ema.safetensors")
    main(command(real, tmp_path / "run", "--checkpoint", run / "ema.safetensors", "--lora", 2, steps=1))
    after, _ = read_state(tmp_path / "run" / "ema.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert before.keys() == after.keys() and changed == ["paint.2.weight"]
    kept, _ = final(tmp_path / "run")
    assert {name.split(".")[-3] for name in kept if name.startswith("model.")} == {"lora_A", "lora_B"}


def test_a_file_without_plain_floats_is_none_of_its_weights(tmp_path):
    """Integers of the right shapes, such as quantised weights, would be taken for the weights themselves."""
    model, path = build_own_model(MODEL), tmp_path / "x.pt"
    state = model.own.state_dict()
    weight = state["look.weight"]
    for odd, told in (
        (weight.to(torch.int8), "look.weight is of int8, not of a float type; pass the file of its weights"),
        (weight.to("meta"), "holds a tensor on the device meta, without values"),
    ):
        torch.save(state | {"look.weight": odd}, path)
        with pytest.raises(ValueError, match=rf"x.pt .*{told}"):
            load_weights(model, path)
    torch.save(state | {"look.weight": weight.bfloat16()}, path)
    load_weights(model, path)
    assert torch.equal(model.own.look.weight, weight.bfloat16().float())


class Noise(nn.Module):
    """Predicts the noise of DDPM's chain, as if all data were 0: ε = x/√(1 − ᾱ)."""

    sample_shape, conditions = (3, 4, 4), 3

    def noise(self, x, t, condition):
        from sit_rl.sampling.ddpm import signal_levels

        level = torch.from_numpy(signal_levels()).float()[t.long()]
        return x / (1 - level)[:, None, None, None].sqrt()


def built(tmp_path, text):
    path = tmp_path / "model.py"
    path.write_text(textwrap.dedent(text))
    return build_own_model(f"{path}:build")


def test_a_model_of_noise_is_sampled_by_ddpm_and_ddim(tmp_path, monkeypatch):
    monkeypatch.setattr("sit_rl.models.own_model.load_object", lambda *_: Noise)
    model = build_own_model("noise:Noise")
    assert model.predicts == "noise" and model.null_condition is None and len(model.conditions) == 3
    noise = torch.randn(2, 3, 4, 4)
    for method in ("ddpm", "ddim"):
        sampler = SamplerConfig("discrete", method, 20)
        x = integrate(bind(model, torch.tensor([0, 1]), sampler), noise, sampler, lambda i: torch.zeros_like(noise))
        assert float(x.abs().max()) < 1e-3  # the data of this model


def test_prompts_are_handed_to_the_builder(tmp_path, monkeypatch):
    class Told(Noise):
        def __init__(self, prompts):
            super().__init__()
            self.conditions = len(prompts)

    monkeypatch.setattr("sit_rl.models.own_model.load_object", lambda *_: Told)
    prompts = read_prompts(write_prompts(tmp_path / "prompts.jsonl"))
    conditions = build_own_model("told:Told", prompts).conditions
    assert conditions.names == prompts.texts and conditions.group_names == ("cube", "ball")
    monkeypatch.setattr("sit_rl.models.own_model.load_object", lambda *_: lambda: Noise())
    with pytest.raises(ValueError, match="cannot be called with the list of prompts"):
        build_own_model("noise:Noise", prompts)


# --- one sentence for what is no generator ---------------------------------------------------------------------------

GOOD = """
    import torch
    from torch import nn
    class Model(nn.Module):
        sample_shape, conditions = (3, 4, 4), 2
        def velocity(self, x, t, condition):
            return x
    build = Model
"""


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("build = Model", "build = lambda: 1 / 0", r"raised ZeroDivisionError \(division by zero\) when it was called"),
        ("build = Model", "build = 3", "is a int; name a function that returns the generator"),
        ("build = Model", "build = lambda shape: Model()", "cannot be called without arguments"),
        ("build = Model", "build = dict", "returned a dict, not a torch.nn.Module"),
        ("build = Model", "raise OSError('no disk')", r"raised OSError while it was imported \(no disk\)"),
        ("build = Model", "", "has no build; correct the name after the colon"),
        ("velocity", "speed", r"returned a Model without velocity\(x, t, condition\) or noise"),
        ("sample_shape, ", "shape, ", "returned a Model without sample_shape"),
        ("(3, 4, 4)", "(3, 4)", r"has sample_shape \(3, 4\); it must be three positive numbers"),
        ("(3, 4, 4)", "(3, 4, 0)", "it must be three positive numbers"),
        (", 2\n", ", 0\n", "has conditions 0; it must be a positive number, or a list of names"),
        (", 2\n", ", ['a', 'b', 'a']\n", "names the condition 'a' twice; give each its own name"),
        ("return x", "return x.double()", "velocity gives torch.float64 for torch.float32; return x.dtype"),
        ("return x", "return x[:, :2]", r"velocity gives \[2, 2, 4, 4\] for its sample_shape .3, 4, 4.; it must give"),
        ("return x", "return 'x'", "velocity gives a str"),
        ("return x", "return self.y", r"raised AttributeError .* when velocity was called on x \[2, 3, 4, 4\]"),
        ("build =", "Model.decode = lambda self, x: x\n    build =", "decode gives torch.float32 .* torch.uint8"),
        ("return x", "return x.detach()", "velocity gives no gradient; call it without torch.no_grad and"),
        (
            "return x",
            "return x + torch.zeros(2)[condition, None, None, None]\n        null_condition = 2",
            r"raised IndexError .* on x \[2, 3, 4, 4\], t \[2\] and condition 2, its null_condition; correct it",
        ),
        ("build =", "Model.null_condition = 'no'\n    build =", "has null_condition 'no'; it must be a number"),
    ],
)  # fmt: skip
def test_what_is_no_generator_is_one_sentence(tmp_path, old, new, told):
    assert old in GOOD and built(tmp_path, GOOD).sample_shape == (3, 4, 4)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=told) as raised:
        built(tmp_path / "other", GOOD.replace(old, new))
    assert "\n" not in str(raised.value) and str(raised.value).startswith("--model ")


@pytest.mark.parametrize(
    "text, told",
    [
        ("build", "names no object; write package.module:NAME or FILE.py:NAME"),
        ("nothing_of_this_name.models:build", "there is no module nothing_of_this_name; correct the name, install it"),
        ("gone.py:build", "gone.py does not exist"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(text, told):
    with pytest.raises((ValueError, OSError), match=told):
        build_own_model(text)


@pytest.mark.parametrize(
    "flags, told",
    [
        ([], "makes samples of shape .3, 16, 16. in 2 classes, the embedded images are 1×28×28 in 10"),
        (["--real", "gone"], "--real gone does not exist"),
        (["--architecture", "dit"], "--architecture dit is of SiT or DiT, and --model is"),
        (["--prompts", "p.jsonl"], "p.jsonl come without images; pass --real"),
        (["--image-size", "64"], "--image-size is of a pipeline"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, told, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--preset", "smoke", "--model", MODEL, "--out", str(tmp_path / "run"), *flags])
    assert re.search(told, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "run").exists()


def test_a_config_keeps_the_model_and_forgets_nothing():
    config = Config.of(model="a.b:c", prompts=Path("p.jsonl"), real=Path("r"))
    assert config.to_dict()["model"] == "a.b:c" and config.to_dict()["prompts"] == "p.jsonl"


def test_the_guide_shows_this_model():
    guide = (ROOT / "docs" / "guides" / "own-model.md").read_text()
    assert (ROOT / "tests" / "support" / "ten_line_model.py").read_text().split("\n\n", 1)[1].strip() in guide
