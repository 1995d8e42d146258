"""The configurations of the guides are read, and a guide names every example file; test_blocks.py runs their code."""

import re
from pathlib import Path

import pytest
import yaml

from sit_rl.pretrain import parse_command
from sit_rl.train import parse

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


def blocks(text, language):
    """(mark above it or "", code) of each block."""
    return re.findall(rf"^(<!--[^\n]*-->)?\n?```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# The first line of a block of YAML → the words before --config of the command that reads it, and its parser.
READERS = {"# run.yaml": ([], parse), "# pretrain.yaml": (["base"], parse_command)}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_configuration_files_of_a_guide_are_read(page, tmp_path):
    for _, text in blocks(page.read_text(), "yaml"):
        (tmp_path / "run.yaml").write_text(text)
        words, read = READERS[text.splitlines()[0]]
        assert yaml.safe_load(text) and read([*words, "--config", str(tmp_path / "run.yaml")])


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
