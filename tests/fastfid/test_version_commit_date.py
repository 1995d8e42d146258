"""Every JSON tells what it is of: schema, version, commit, command, date, torch, device."""

import json
import subprocess
from datetime import datetime

import pytest
import torch

import fastfid
from fastfid.runtime import version_commit_date as module
from fastfid.runtime.version_commit_date import command, commit, origin
from tests.support.image_sets import run

pytestmark = pytest.mark.usefixtures("own_cache")
KEYS = {"version", "commit", "command", "date", "torch", "device"}


def test_it_tells_where_a_result_comes_from():
    told = origin("cpu")
    assert set(told) == KEYS and told["torch"] == torch.__version__ and told["device"].startswith("cpu (")
    assert told["version"] == f"fastfid {fastfid.__version__}"
    assert datetime.fromisoformat(told["date"]).utcoffset().total_seconds() == 0


def test_the_commit_is_that_of_the_checkout_and_marks_changes(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], capture_output=True, text=True, check=True
        ).stdout

    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert commit.__wrapped__() is None
    git("init")
    assert commit.__wrapped__() is None  # nothing is committed
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    assert commit.__wrapped__() == head
    (tmp_path / "file").write_text("2")
    assert commit.__wrapped__() == f"{head}+changes"


@pytest.mark.parametrize(
    "argv, env, expected",
    [
        (["/usr/bin/fastfid", "eval", "a b"], {}, "fastfid eval 'a b'"),
        (["sit-rl train", "--steps", "48"], {}, "sit-rl train --steps 48"),
        (["sit_rl/train.py", "--seed", "1"], {}, "python sit_rl/train.py --seed 1"),
        (["sit_rl/train.py"], {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"},
         "torchrun --nproc-per-node 2 sit_rl/train.py"),
    ],
)  # fmt: skip
def test_the_command_can_be_typed_again(monkeypatch, argv, env, expected):
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr("sys.modules", {"__main__": type("main", (), {"__spec__": None})})
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert command() == expected


def test_every_json_carries_it(sets, capsys):
    a, b = sets / "a", sets / "b.npz"
    for words, schema in (
        ((a, b), "fastfid.distance/1"),
        (("eval", a, b, "--metrics", "fd"), "fastfid.evaluation/2"),
        (("diff", a, b, b), "fastfid.difference/2"),
        (("info",), "fastfid.info/1"),
        (("info", b), "fastfid.info/1"),
    ):
        found = json.loads(run(capsys, *words, "--json")[1])
        assert found["schema"] == schema and all(found[name] for name in KEYS - {"commit"}) and "commit" in found
