"""What users of the commands rely on: each runs as a module, and samples begun by version 0.1.0 go on."""

import json
import runpy
import sys

import pytest

from sit_rl import sample

COMMANDS = ("sample", "evaluate", "compare", "report", "ema", "pretrain", "train", "study", "models.convert")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_as_a_module(name, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, f"sit_rl.{name}", raising=False)  # runpy warns of a module that is loaded
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"sit_rl.{name}", run_name="__main__", alter_sys=True)
    assert not ended.value.code and "usage:" in capsys.readouterr().out


def test_samples_begun_by_version_0_1_0_go_on(tmp_path, capsys):
    """The record names the noise by the words of that version; other words would be another recipe."""
    arguments = ["--images", "2", "--steps", "1", "--sampler", "ode-euler", "--threads", "1", "--out", str(tmp_path)]
    sample.main(arguments)
    path = tmp_path / "sampling.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"noise": "Philox of (seed, image, stream, step 0), sit_rl/noise.py"}))
    sample.main(arguments)
    assert "all of them there already" in capsys.readouterr().out
