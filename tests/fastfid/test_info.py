"""`fastfid info` without a file: what this installation can do."""

import json
from pathlib import Path

from fastfid.cli import info
from tests.support.image_sets import run


def test_info_tells_what_the_installation_can_do(capsys, monkeypatch):
    found = json.loads(run(capsys, "info", "--json")[1])
    assert {"fashion-a", "inception", "torchscript:PATH"} <= set(found["networks"])
    assert {"adm", "pytorch-fid"} <= set(found["protocols"]) and found["threads"]["decoding"] >= 1
    monkeypatch.setitem(info.EXTRAS, "clip", ("the CLIP networks", ("no_such_module",)))
    text = run(capsys, "info")[1]
    assert "the CLIP networks: pip install 'fastfid[clip]'" in text
    installed = info.facts()["extras"]["inception"]["installed"]
    assert ("the Inception network: installed" in text) == installed
    assert info.facts()["extras"]["clip"]["installed"] is False


def test_every_extra_that_info_names_is_one():
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f"\n{name} = [" in declared for name in info.EXTRAS)
