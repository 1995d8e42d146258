"""The documents name things that exist: links, paths, functions, tests, flags, samplers."""

import ast
import contextlib
import importlib
import io
import re
import shlex
from functools import cache

import pytest
from torch.distributed.run import get_args_parser

from fastfid.__main__ import main as fastfid_main
from sit_rl import evaluate, sample, train
from sit_rl.generation.recipe import OFFICIAL, SAMPLERS
from tests.support.documents import DOCS, PAGES, ROOT

README_LINES = 180  # a newcomer reads it in five minutes
# Paths below them are checked.
FOLDERS = ("csrc/", "fastfid/", "sit_rl/", "bench/", "tests/", "docs/", "examples/", ".ci/")

FASTFID_COMMANDS = ("eval", "diff", "stats", "convert", "info")
PYTEST_FLAGS = {"--dist", "--benchmark-only", "--full"}
# What the documents call besides this project's programs; their flags are theirs.
EXTERNAL = {
    "pip", "python3", "sha256sum", "compute-sanitizer", "fidelity", "git", "ruff", "mypy", "pre-commit", "cp", "tee",
    "REF=VIRTUAL_imagenet256_labeled.npz", "pytorch_fid", "dgm_eval", "evaluator.py", "crop.py", "from", "OUT=runs/xl",
    "cmake", "srun", ".",
}  # fmt: skip
# Shorthands that a page defines for a program.
SHORTHANDS = {"$RUN": "sit_rl/train.py", "…": "sit_rl/train.py", "measure": "sit_rl.evaluate"}
# Flags that prose names of programs whose help is not read here: other tools', and scripts' of Slurm and torchrun.
FOREIGN_FLAGS = {"--isc", "--fid", "--kid", "--prc", "--input1", "--input2", "--model"}
FOREIGN_FLAGS |= {
    "--signal",
    "--requeue",
    "--kill-on-bad-exit",
    "--shutdown-timeout",
    "--no-deps",
    "--all-files",
    "--strict",
}


def name_of(path):
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# --- commands and flags ----------------------------------------------------------------------------------------------


def flags_of_help(command, *argv, flag="--help"):
    """Every --flag that the help of a command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        command([*argv, flag])
    return flags_in(text.getvalue())


def flags_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


@cache
def known_flags(program):
    """The flags of one of this project's programs, or of torchrun."""
    if program == "sit_rl/train.py":
        return flags_of_help(train.parse, "--preset", "sit-xl-imagenet256", flag="--help-all") | {"--help-all"}
    if program in ("sit_rl.sample", "sit_rl.evaluate"):
        return flags_of_help({"sit_rl.sample": sample, "sit_rl.evaluate": evaluate}[program].main, flag="--help-all")
    if program == "torchrun":
        return flags_in(get_args_parser().format_help())
    if program == "pytest":
        return PYTEST_FLAGS
    if program.split()[0] == "fastfid":
        return flags_of_help(fastfid_main, *program.split()[1:])
    path = ROOT / (program if program.endswith(".py") else program.replace(".", "/") + ".py")
    path = path if path.is_file() else path.with_suffix("") / "__main__.py"
    source = path.read_text()  # of a command whose parser is made inside it
    names = set(re.findall(r"[a-z][a-z0-9_]+", source))
    return {"--" + name.replace("_", "-") for name in names} | flags_in(source)


def commands_of(text):
    """Commands of the bash blocks and of inline code, each a list of words."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    starts = ("torchrun ", "python ", "pytest ", "fastfid ", "sit-rl ", "measure ", "sit_rl/slurm/")
    lines += [code for code in inline if code.startswith(starts)]
    for line in lines:
        line = re.sub(r"(^|\s\s+|\s)#\s.*", "", line).replace('RUN="', "").replace('"', "")
        for command in re.split(r"&&|\|", line):
            words = shlex.split(command.replace("'", ""))
            if words:
                yield words


def programs_of(words):
    """The programs whose flags a command may use; empty for other tools'."""
    words = [SHORTHANDS.get(word, word) for word in words]
    launcher = ["torchrun"] if words[0] == "torchrun" or words[0].startswith("sit_rl/slurm/") else []
    if words[0] == "sit-rl":  # its --nproc-per-node is torchrun's
        name = words[1] if len(words) > 1 and not words[1].startswith("--") else "COMMAND"
        return [
            "torchrun",
            *([] if name == "COMMAND" else ["sit_rl/train.py" if name == "train" else f"sit_rl.{name}"]),
        ]
    if words[0].startswith("sit_rl/slurm/") or "sbatch" in words:
        return [*launcher, "sit_rl/train.py"]
    if words == ["torchrun"] or (launcher and len(words) == 2 and words[1].startswith("--")):
        return launcher
    named = words[words.index("-m") + 1 :] if "-m" in words and words[0] in ("python", "torchrun") else words
    starts = ("sit_rl", "fastfid", "bench", "docs.", "tests.fuzz", "pytest", "examples/")
    first = next((word for word in named if word in EXTERNAL or word.startswith(starts)), None)
    assert first is not None, f"an unknown program: {' '.join(words)}"
    if first == "fastfid":
        after = named[named.index("fastfid") + 1 :]
        return [*launcher, " ".join(["fastfid", *(word for word in after[:1] if word in FASTFID_COMMANDS)])]
    return [] if first in EXTERNAL else [*launcher, first]


@every_page
def test_flags_of_commands_exist(page):
    for words in commands_of(page.read_text()):
        programs = programs_of(words)
        if not programs:
            continue
        known = set().union(*map(known_flags, programs))
        used = {re.match(r"--[a-z0-9-]*", word)[0] for word in words if word.startswith("--")}
        assert used <= known, (" ".join(words), used - known)


@every_page
def test_flags_in_the_docs_exist(page):
    programs = ["sit_rl/train.py", "sit_rl.sample", "sit_rl.evaluate", "sit_rl.models.convert", "torchrun", "pytest"]
    programs += ["sit_rl.pretrain", "sit_rl.ema", "bench.swap_ratios", "bench.compile_facts", "tests.fuzz"]
    programs += ["fastfid", *(f"fastfid {command}" for command in FASTFID_COMMANDS)]
    known = set().union(*map(known_flags, programs)) | FOREIGN_FLAGS
    outside = re.sub(r"```(?!bash).*?```", "", page.read_text(), flags=re.DOTALL)
    assert flags_in(outside) <= known, flags_in(outside) - known


def test_samplers_in_the_docs_exist():
    text = "".join(page.read_text() for page in PAGES)
    found = re.findall(r"--samplers? ((?:[a-z][\w,=.-]*[ `\n\\]*)+)", text)
    assert len(found) > 5
    for words in found:
        for name in re.findall(r"[a-z][\w,=.-]*", words.split("`")[0]):
            sample.parse_sampler(name)


def test_official_samplers_guide_as_the_docs_say():
    """Three channels: those that the page on samplers names, and the command of the page on ImageNet."""
    text = " ".join((ROOT / "docs" / "samplers.md").read_text().split())
    (named,) = re.findall(r"((?:`[\w-]+`(?:,| and)? )+)guide three of a latent's four channels", text)
    guides_three = {name for name, sampler in SAMPLERS.items() if sampler.guidance_channels == 3}
    assert set(re.findall(r"`([\w-]+)`", named)) == guides_three == OFFICIAL.keys()
    (all_of_them,) = re.findall(r"`([\w=,-]+)` guides all", text)
    assert sample.parse_sampler(all_of_them, guidance=4.0).guidance_channels == 0
    assert "With guidance, `sit-ode` agrees with the official loop within the solver's tolerance" in text

    page = (ROOT / "docs" / "imagenet.md").read_text()
    (words,) = [words for words in commands_of(page) if "--guidance" in words]
    name, scale = (words[words.index(flag) + 1] for flag in ("--sampler", "--guidance"))
    sampler = sample.parse_sampler(name, guidance=float(scale))
    assert (sampler.guidance, sampler.guidance_channels) == (4.0, 3)
    assert "Three of the four latent channels are guided, as in the official code." in page


# --- links, paths, functions, tests ----------------------------------------------------------------------------------


def anchors(path):
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_in_the_docs_lead_somewhere(page):
    for target, _, anchor in re.findall(r"\]\((?!http)([^)#]*)(#([^)]*))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@every_page
def test_paths_in_the_docs_exist(page):
    for path in re.findall(r"`([\w./*-]+)(?:::[\w.]+)?`", page.read_text()):
        if path.startswith(FOLDERS) and "NAME" not in path:
            assert list(ROOT.glob(path.rstrip("/"))), path


@cache
def names_defined_in(path):
    """Functions, classes and Class.method of a Python file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@every_page
def test_functions_in_the_docs_exist(page):
    for path, name in re.findall(r"`((?:fastfid|sit_rl|bench)/[\w/]+\.py)::([\w.]+)`", page.read_text()):
        assert name in names_defined_in(ROOT / path), f"{path}::{name}"


@pytest.mark.parametrize("page", ["verified.md", "reliability.md"])
def test_tests_in_the_docs_exist(page):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / page).read_text())
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in next((ROOT / "tests").rglob(file)).read_text(), f"{file}::{test}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in DOCS:
        place = page.relative_to(ROOT / "docs")
        assert page.name == "index.md" or f"({place})" in index, place


# --- README ----------------------------------------------------------------------------------------------------------


def test_readme_is_short_and_has_both_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES
    install = "python3 -m venv .venv && . .venv/bin/activate && pip install -e "
    assert f"{install}. && torchrun sit_rl/train.py" in lines
    assert f"{install}'.[test]' && pytest -n 2 --dist loadfile" in lines


def test_modules_that_the_docs_start_exist():
    text = "".join(page.read_text() for page in PAGES)
    for module in set(re.findall(r"-m ((?:sit_rl|bench|fastfid|docs)[\w.]*)", text)):
        assert importlib.util.find_spec(module), module
