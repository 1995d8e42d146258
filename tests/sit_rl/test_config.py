"""The config: its flags, its file, what a resume may change, and the files of earlier versions."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from sit_rl.config import MACHINE_FIELDS, Config, differences, places, resolve
from sit_rl.config_files import load_config
from sit_rl.presets import PRESETS
from sit_rl.train import parse

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "fashion"


def test_command_line_is_the_config():
    config = parse(["--preset=smoke", "--keep", "all", "--rollout.steps", "7", "--credit", "subset"])
    assert (config.preset, config.reward.keep, config.reward.credit) == ("smoke", "all", "subset")
    assert config.rollout.sampler.steps == 7
    default = parse([])
    assert (default.preset, default.reward.reference_size, default.reward.replace) == ("fashion", 5000, 50)
    paper = PRESETS["sit-xl-imagenet256"][1]
    reward, update = paper.reward, paper.update
    assert (reward.reference_size, reward.replace, reward.refresh_every, reward.kept_fraction) == (5000, 50, 10, 0.25)
    assert (paper.rollout.sde_sampler.steps, paper.evaluation.sde.steps) == (50, 250)
    assert (update.lr, update.clip_range) == (1e-5, 1e-4)


def test_a_flag_with_its_group_is_an_alias():
    flat = parse("--preset smoke --lr 1e-3 --no-fade --reward-device cpu --rollout-batch 7".split())
    grouped = "--preset smoke --update.lr 1e-3 --reward.no-fade --reward.device cpu --rollout.batch 7"
    assert flat == parse(grouped.split()) and flat.update.lr == 1e-3 and not flat.reward.fade


def test_every_flat_name_has_one_place():
    config = Config()
    groups = [getattr(config, f.name) for f in fields(config) if "flag" not in f.metadata]
    options = [f for owner in (config, *groups) for f in fields(owner) if "flag" in f.metadata]
    assert list(config.to_dict()) == list(places()) and len(places()) == len(options)
    for name, place in places().items():
        assert config[name] == getattr(getattr(config, place.group) if place.group else config, place.field.name)
    with pytest.raises(TypeError, match="'colour' is no field"):
        config.changed(colour="red")


def test_a_resume_may_change_how_to_run_but_not_the_result():
    config = resolve(Config())
    assert differences(config, config.changed(threads=3, save_every=2, reward_device="cpu")) == []
    assert differences(config, config.changed(lr=1.0, seed=1, threads=3)) == ["seed", "lr"]
    assert {"threads", "out", "reward_device", "stop_kl"} <= set(MACHINE_FIELDS) and "lr" not in MACHINE_FIELDS


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-[0-9].json")), ids=lambda path: path.stem)
def test_configs_of_earlier_runs_are_read(path, tmp_path):
    """The committed summaries hold the flat tables that the runs of earlier versions have as config.yaml."""
    earlier = json.loads(path.read_text())["config"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(earlier, sort_keys=False))
    read, default = load_config(tmp_path / "config.yaml").to_dict(), Config().to_dict()
    if isinstance(earlier["judge_features"], str):  # one name then, several since
        earlier["judge_features"] = [earlier["judge_features"]]
    for name, value in earlier.items():
        assert read[name] == (default[name] | value if isinstance(value, dict) else value), name
    assert all(read[name] == default[name] for name in default.keys() - earlier.keys())


def test_the_file_names_the_groups(tmp_path):
    Config().save(tmp_path / "config.yaml")
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    groups = [line[2:] for line in lines if line.startswith("# ")]
    assert groups == ["reward", "update", "rollout", "evaluation", "files", "generator", "run"]
    assert lines.index("# update") < lines.index("estimator: advantage_matching") < lines.index("# rollout")


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"steps": "many"}, "steps is 'many', which is not of its type"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"estimator": "magic"}, "estimator is 'magic'"),
        ({"rollout": {"kind": "ode", "method": "heun", "speed": 3}}, "unknown field 'speed'"),
        ({"rollout": "fast"}, "rollout is 'fast'"),
        ({"ema_power": ["wide"]}, "ema_power is 'wide'"),
        ({"resume": "yes"}, "resume is 'yes'"),
        ({"lr": -1.0}, "--lr is -1.0"),
    ],
)
def test_saved_config_that_does_not_fit_is_refused(tmp_path, change, complaint):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(Config().to_dict() | change))
    with pytest.raises(ValueError, match=complaint):
        load_config(tmp_path / "config.yaml")


def test_saved_config_never_runs_code(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: !!python/object/apply:os.system ['touch hacked']\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("just words")
    with pytest.raises(ValueError, match="in place of a table"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_bytes(b"seed: \xff\x8b")
    with pytest.raises(ValueError, match="config.yaml is not YAML .*choose another --out"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match="config.yaml cannot be read .No such file.*choose another --out"):
        load_config(tmp_path / "config.yaml")


def test_saved_config_comes_back_as_it_was(tmp_path):
    for name, (_, config) in PRESETS.items():
        saved = resolve(config.changed(ema_power=(0.05, 0.1), out=tmp_path / name))
        saved.save(tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml") == saved
