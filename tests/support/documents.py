"""The pages of the documentation, their code blocks, and how the tests run them.

A block of Python or of shell commands is run, all blocks of a page in order in one folder.  A comment says why not:

    <!-- not run: REASON -->                              before a block
    <!-- run with MODULE only -->                         before a block: not run where the module is not installed
    <!-- blocks of this page are not run: REASON -->      anywhere on the page

Shell commands are those of this project, and run within the test's process.  Words in capitals stand for files.
"""

import importlib
import json
import re
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import yaml

from fastfid import FeatureMoments
from tests.support.small_network import pixels, write_images

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
BESIDE_DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "sit_rl/slurm/README.md", "examples/emoji/README.md")
PAGES = [*(ROOT / name for name in BESIDE_DOCS), *DOCS]

SHOWN = {"", "text", "math", "diff"}  # languages of blocks that hold no code
PARSED = {"json": json.loads, "yaml": yaml.safe_load}
RUN = {"bash", "python"}

BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?:not run: (?P<reason>[^\n]+?)|run with (?P<module>\w+) only) -->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>[\w-]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
WHOLE_PAGE = re.compile(r"<!-- blocks of this page are not run: (.+?) -->")

SETS = {"A": 1, "B": 2, "SAMPLES": 3, "REAL": 4, "IMAGES": 5}  # folders of images, with their seeds
FILES = {"FILE": "statistics.npz"}  # other words in capitals, and the files that stand for them
IMAGES_A_SET = 40


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, code, line on the page, and why it is not run (None: it is)."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks_of(text):
    """All fenced blocks of a page."""
    page = WHOLE_PAGE.search(text)
    found = []
    for match in BLOCK.finditer(text):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        absent = match["module"] and not find_spec(match["module"].lower())
        reason = match["reason"] or (f"without {match['module']}" if absent else page and page[1])
        found.append(Block(match["language"], code, text.count("\n", 0, match.start("code")), reason))
    return found


def shell_commands(code):
    """Commands of a bash block, each a list of words; comments are left out, continued lines joined."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", re.sub(r"(^|\s)#\s.*", "", line)):
            if words := shlex.split(command):
                yield words


def run_page(text, folder):
    """Run or parse the blocks of a page in `folder`, which is the current one; return the names that Python made."""
    names = example_names()
    for block in blocks_of(text):
        where = f"block of {block.language or 'text'} at line {block.line}"
        assert block.language in SHOWN | RUN | set(PARSED), f"{where}: a language that no test knows"
        if block.language == "python":
            compiled = compile(block.code, where, "exec")
            if block.reason is None:
                exec(compiled, names)
        elif block.language == "bash" and block.reason is None:
            for words in shell_commands(block.code):
                run_command(words, folder, where)
        elif block.language in PARSED:
            PARSED[block.language](block.code)
    return names


def run_command(words, folder, where):
    """Run one command of this project; AssertionError where it fails, or where it is another program."""
    words = [str(folder / FILES[word]) if word in FILES else word for word in words]
    main, arguments = program_of(words)
    assert main is not None, f"{where}: `{' '.join(words)}` is no command that tests run; say why it is not run"
    status = 0
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert not status, f"{where}: `{' '.join(words)}` ended with status {status}"


def program_of(words):
    """The main function of a command of this project and its arguments; (None, words) of others."""
    if words[0] == "fastfid":
        return importlib.import_module("fastfid.__main__").main, words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("sit_rl."):
        return importlib.import_module(words[2]).main, words[3:]
    if words[0] == "python" and words[1].startswith("sit_rl/"):
        return importlib.import_module(words[1].removesuffix(".py").replace("/", ".")).main, words[2:]
    return None, words


def example_files(folder):
    """What the words in capitals of a page stand for, in `folder`."""
    for name, seed in SETS.items():
        write_images(folder / name, pixels(IMAGES_A_SET, seed, 28))
    np.savez(folder / FILES["FILE"], mu=np.zeros(5), sigma=np.eye(5))


def example_names():
    """What the Python blocks of a page may take as given; d = 5 features."""
    torch.manual_seed(0)
    d, count, candidates, swapped = 5, 60, 3, 4
    real = torch.randn(80, d)
    return {
        "real_features": real,
        "real_moments": FeatureMoments.from_features(real),
        "fake_features": torch.randn(70, d) + 0.1,
        "features": torch.randn(count, d) + 0.1,
        "reference_features": torch.randn(count, d) + 0.1,
        "removed": torch.stack([torch.randperm(count)[:swapped] for _ in range(candidates)]),
        "added": torch.randn(candidates, swapped, d),
        "new_features": torch.randn(candidates, swapped, d),
    }
