"""--config: any subset of the fields, flags win, and every file that cannot be used."""

import json
from pathlib import Path

import pytest
import yaml

from sit_rl.config import Config, resolve
from sit_rl.presets import PRESETS
from sit_rl.pretrain import parse_command
from sit_rl.train import main, parse
from tests.support.tiny_runs import final, lines


def parsed(tmp_path, text, *flags):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return parse(["--config", str(path), *flags])


def test_any_subset_of_the_fields_counts_and_flags_win(tmp_path):
    text = "preset: smoke\nlr: 1e-4\nsteps: 3\nreward: [fd, 'kid=0.5']\nrollout: {steps: 7}\nkeep: all\nvae: null\n"
    config = parsed(tmp_path, text, "--steps", "9", "--seed=2")
    smoke = PRESETS["smoke"][1]
    sampler = smoke.rollout.sampler
    assert config == resolve(
        smoke.changed(lr=1e-4, steps=9, seed=2, reward=("fd", "kid=0.5"), keep="all",
                      rollout=type(sampler)(**(vars(sampler) | {"steps": 7})))
    )  # fmt: skip
    # a preset on the command line is the base of the file
    assert parsed(tmp_path, text, "--preset", "fashion").update.minibatch == resolve(Config()).update.minibatch
    assert parsed(tmp_path, "{}") == resolve(PRESETS["fashion"][1])
    # the estimator's own defaults follow a flag unless the file has them
    assert parsed(tmp_path, "seed: 1\n", "--estimator", "rejection").update.lr == 5e-5
    assert parsed(tmp_path, "lr: 3e-5\n", "--estimator", "rejection").update.lr == 3e-5


def test_a_saved_config_trains_the_same_model_elsewhere(command, tmp_path, capsys):
    main(command(tmp_path / "a", "--steps", 1, "--evaluate-every", 0))
    saved = tmp_path / "a" / "config.yaml"
    main(["--config", str(saved), "--out", str(tmp_path / "b")])
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    a, b = final(tmp_path / "a")[0], final(tmp_path / "b")[0]
    assert all(a[name].equal(b[name]) for name in a)
    configs = [json.loads((tmp_path / run / "summary.json").read_text())["config"] for run in "ab"]
    assert configs[0] | {"out": None} == configs[1] | {"out": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reference-size: 9\n", "unknown field 'reference-size'; did you mean reference_size?"),
        ("canditates: 9\n", "unknown field 'canditates'; did you mean candidates?"),
        ("colour: red\n", "unknown field 'colour'; --help lists the fields"),
        ("rollout: {step: 3}\n", "unknown field 'step'; did you mean steps?"),
        ("steps: many\n", "steps is 'many', which is not of its type int"),
        pytest.param("lr: " + "9" * 400, "9…, which is beyond the largest float", id="beyond float"),
        ("steps: 2.5\n", "steps is 2.5, which is not of its type int"),
        ("reward: 3\n", "reward is 3, which is not of its type a list of str"),
        ("estimator: magic\n", "estimator is 'magic', which is not of its type one of advantage_matching, "),
        ("keep: some\n", "keep is 'some', which is not of its type float or one of all or null"),
        ("out: 3\n", "out is 3, which is not of its type a path or null"),
        ("just words\n", "str in place of a table of fields"),
        ("", "NoneType in place of a table of fields"),
        ("a: [\n", "is not YAML"),
        ("preset: imagenet\n", "--preset 'imagenet' does not exist; choose one of fashion:"),
        ("steps: 0\n", "--steps is 0; it must be at least 1"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        parsed(tmp_path, text)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.yaml cannot be read .No such file or directory.; correct --config"):
        parse(["--config", str(tmp_path / "nothing.yaml")])


def test_the_file_is_no_field_of_the_record(tmp_path):
    config = parsed(tmp_path, "steps: 3\n")
    config.save(tmp_path / "saved.yaml")
    assert "config" not in yaml.safe_load((tmp_path / "saved.yaml").read_text())


def pretraining(tmp_path, text, *flags, name="base"):
    path = tmp_path / "pretrain.yaml"
    path.write_text(text)
    return parse_command([name, "--config", str(path), *flags])


def test_a_file_gives_the_flags_of_a_pretraining_and_flags_win(tmp_path):
    text = "images: pictures\nheldout_fraction: 0.2\ncrop: pad\nmirror: true\nlr: 1e-3\nbatch: 32\n"
    found = pretraining(tmp_path, text, "--batch", "8", "--out", "model")
    expected = {"images": Path("pictures"), "heldout_fraction": 0.2, "crop": "pad", "mirror": True, "lr": 1e-3}
    plain = parse_command(["base"])
    assert vars(found) == vars(plain) | expected | {"batch": 8, "out": Path("model"), "config": found.config}
    assert not pretraining(tmp_path, text, "--no-mirror").mirror
    networks = pretraining(tmp_path, "networks: [fashion-c]\npasses: 10\n", name="features")
    assert (networks.networks, networks.passes, networks.lr) == (("fashion-c",), 10, 2e-3)
    assert pretraining(tmp_path, "source: official\n", name="images").source == Path("official")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iteration: 9\n", "unknown field 'iteration'; did you mean iterations?"),
        ("config: other.yaml\n", "unknown field 'config'; --help lists the fields"),
        ("batch: many\n", "batch is 'many', which is not of its type int"),
        ("crop: corner\n", "crop is 'corner', which is not of its type one of centre, pad, squeeze"),
        ("- images\n", "list in place of a table of fields"),
    ],
)
def test_files_of_a_pretraining_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(ValueError, match="--config .*pretrain.yaml: ") as error:
        pretraining(tmp_path, text)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
