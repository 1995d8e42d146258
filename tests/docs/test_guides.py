"""Every block of Python in the guides is run, page by page, and every example file is named by a guide."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from sit_rl.train import parse

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
# What may stand above a block that does not always run → the module that it needs.
MARKS = {"<!-- run with Lightning only -->": "lightning"}


def blocks(text, language):
    """(mark above it or "", code) of each block."""
    return re.findall(rf"^(<!--[^\n]*-->)?\n?```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_python_of_a_guide_runs(page):
    torch.manual_seed(0)
    names, found = {}, blocks(page.read_text(), "python")
    assert found
    for mark, code in found:
        assert not mark or mark in MARKS, mark
        if not mark or find_spec(MARKS[mark]):
            exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_configuration_files_of_a_guide_are_read(page, tmp_path):
    for _, text in blocks(page.read_text(), "yaml"):
        (tmp_path / "run.yaml").write_text(text)
        assert yaml.safe_load(text) and parse(["--config", str(tmp_path / "run.yaml")])


def test_examples_are_short_and_named():
    text = "".join(page.read_text() for page in GUIDES)
    for path in (ROOT / "examples" / "trainers").glob("*.py"):
        assert f"`examples/trainers/{path.name}`" in text, path.name
    for path in (ROOT / "examples" / "rewards").glob("*.py"):
        assert len([line for line in path.read_text().splitlines() if line.strip()]) < 30, path.name


def test_the_class_of_the_guide_is_that_of_the_example():
    (block,) = [
        code for _, code in blocks((ROOT / "docs/guides/own-reward.md").read_text(), "python") if "Balance:" in code
    ]
    example = (ROOT / "examples" / "rewards" / "class_balance.py").read_text().split('"""\n\n')[-1]
    assert block.strip() == re.sub(r"  # .*", "", example).strip()
