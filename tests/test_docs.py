"""What docs/ names exists: tests, files and flags."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from fastfid.__main__ import main as fastfid_main
from sit_rl import evaluate as evaluate_command
from sit_rl import sample, train
from sit_rl.models import convert

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
# Flags of programs that the docs call besides ours: torchrun, pytest, sbatch.
OTHER_FLAGS = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts"}
OTHER_FLAGS |= {"--master-port", "--benchmark-only", "--full"}


def flags_of_help(command, *argv):
    """Every --flag that a command's --help prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        command([*argv, "--help"])
    return set(re.findall(r"--[a-z][a-z0-9-]*", text.getvalue()))


@pytest.fixture(scope="module")
def flags():
    known = set(OTHER_FLAGS)
    for command in (sample.main, evaluate_command.main, convert.main):
        known |= flags_of_help(command)
    known |= flags_of_help(train.parse, "--preset", "sit-xl-imagenet256")
    for name in ("eval", "diff", "stats", "convert", "info"):
        known |= flags_of_help(fastfid_main, name)
    return known


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_flags_in_the_docs_exist(path, flags):
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", path.read_text()))
    assert used and used <= flags, used - flags


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_in_the_docs_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
        assert (path.parent / target).is_file(), target


def test_tests_in_verified_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "verified.md").read_text())
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in next((ROOT / "tests").rglob(file)).read_text(), f"{file}::{test}"


def test_samplers_in_the_docs_exist():
    text = "".join(path.read_text() for path in DOCS)
    for words in re.findall(r"--samplers? ((?:[a-z][\w,=.-]*[ `\n\\]*)+)", text):
        for name in re.findall(r"[a-z][\w,=.-]*", words):
            sample.parse_sampler(name)
