"""Hook of the site: the reference of the code, made from the code.

    reference/commands.md          what `--help` of every command prints, and `--help-all` where there is more
    reference/fastfid/ROOM.md      the public names of fastfid that a room defines, and those that a page imports
    reference/sit_rl/ROOM.md       the modules of a room of sit_rl

Names are read from the sources (fastfid/api.py, the files of sit_rl) and from the code blocks of the pages, so that a
new one has its place by itself.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

FASTFID_COMMANDS = ("eval", "diff", "stats", "convert", "info")
# Command → its module with a `main(argv)`, and the words before --help, one help text each.  Those of sit-rl are listed
# by sit_rl/cli.py, when the pages are made.
FASTFID = ("fastfid", "fastfid.__main__", ([], *([name] for name in FASTFID_COMMANDS)))
# Set while help is printed: lines that fit the page, no colours, and the reader's cache in place of the builder's.
HELP_ENVIRONMENT = {"COLUMNS": "100", "NO_COLOR": "1", "FASTFID_CACHE": "~/.cache/fastfid"}

FASTFID_ROOMS = {
    "distances": "Moments, distances and scores of features",
    "swap": "Exact changes of a distance by swapped samples",
    "rewards": "Rewards of a set and the credit of single images",
    "evaluation": "Evaluation of images",
    "metrics": "Metric classes for training loops",
    "features": "Feature networks",
    "images": "Reading images",
    "statistics": "Statistics files",
    "linalg": "Matrix roots",
    "runtime": "Processes and devices",
}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def public_names() -> dict[str, list[str]]:
    """The room of fastfid → full paths: names of fastfid/api.py, of the room itself, and imported by a page."""
    rooms: dict[str, list[str]] = {}
    files = (ROOT / "fastfid/api.py", *sorted((ROOT / "fastfid").glob("*/__init__.py")))
    for name in [*(name for path in files for name in imported_names(path.read_text())), *names_in_pages()]:
        room = rooms.setdefault(name.split(".")[1], [])
        room += [name] if name not in room else []
    return rooms


def names_in_pages() -> list[str]:
    """Full paths of what the Python blocks of the pages import from a file of fastfid, or of that file."""
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    blocks = [block for page in pages for block in BLOCK.findall(page.read_text())]
    found = [name for block in blocks for name in imported_names(block)]
    return [name for name in found if _file_of(name).is_file() or _file_of(name.rpartition(".")[0]).is_file()]


def _file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def imported_names(code: str) -> list[str]:
    """Full paths of the names that code imports from the rooms of fastfid."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if node.module and node.module.startswith("fastfid.")]
    return [f"{node.module}.{name.name}" for node in ours for name in node.names]


def modules_of_sit_rl() -> dict[str, list[str]]:
    """The room of sit_rl, a folder or "commands" → its modules."""
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "sit_rl").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name != "__init__.py":
            rooms.setdefault(parts[1] if len(parts) > 2 else "commands", []).append(".".join(parts))
    return dict(sorted(rooms.items()))


# --- pages -------------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Path of each page of the reference → its Markdown."""
    made = {"reference/index.md": _overview(), "reference/commands.md": _commands()}
    for room, names in public_names().items():
        title = FASTFID_ROOMS.get(room, room.capitalize())
        made[f"reference/fastfid/{room}.md"] = "\n".join([f"# {title}\n", *map(_public_name, names)])
    for room, modules in modules_of_sit_rl().items():
        made[f"reference/sit_rl/{room}.md"] = "\n".join([f"# sit_rl: {room}\n", *(f"::: {name}\n" for name in modules)])
    return made


def _public_name(path: str) -> str:
    room, short = path.split(".")[1], path.split(".")[-1]
    shown = {"fastfid": "api.py", f"fastfid.{room}": f"{room}/__init__.py"}
    place = next(
        (place for place, file in shown.items() if path in imported_names((ROOT / "fastfid" / file).read_text())),
        path.rpartition(".")[0],
    )
    return f'::: {path}\n    options:\n      heading: "{place}.{short}"\n      toc_label: "{short}"\n'


def _overview() -> str:
    """All public names with the first sentence of their docstrings."""
    lines = ["# Reference", "", "`from fastfid import NAME` imports a public name. The modules of sit_rl follow."]
    lines += ["[Commands](commands.md) has the help of every command.", ""]
    for room, names in public_names().items():
        lines += [f"## {FASTFID_ROOMS.get(room, room.capitalize())}", "", "| name | |", "|---|---|"]
        lines += [
            f"| [`{path.split('.')[-1]}`](fastfid/{room}.md#{path}) | {_first_sentence(path)} |" for path in names
        ]
        lines.append("")
    lines += ["## sit_rl", "", "| room | modules |", "|---|---|"]
    for room, modules in modules_of_sit_rl().items():
        links = ", ".join(f"[`{name.removeprefix('sit_rl.')}`](sit_rl/{room}.md#{name})" for name in modules)
        lines.append(f"| {room} | {links} |")
    return "\n".join(lines)


def _first_sentence(path: str) -> str:
    module, name = path.rsplit(".", 1)
    node: ast.AST | None
    if _file_of(path).is_file():
        node = ast.parse(_file_of(path).read_text())
    else:
        body = ast.parse(_file_of(module).read_text()).body
        node = next((n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name), None)
    text = (ast.get_docstring(node) or "") if node else ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def commands() -> dict[str, str]:
    """Title of every command → what its --help prints; where that names --help-all, what this prints as well."""
    cli = importlib.import_module("sit_rl.cli")
    of_pretrain = [["pretrain", name] for name in importlib.import_module("sit_rl.pretrain").COMMANDS]
    sit_rl = ("sit-rl", "sit_rl.cli", ([], *([name] for name in cli.commands()), *of_pretrain))
    everything = importlib.import_module("sit_rl.command_line").ALL
    found: dict[str, str] = {}
    for program, module, subcommands in (FASTFID, sit_rl):
        for words in subcommands:
            title = " ".join([program, *words])
            found[title] = help_of(module, [*words, "--help"])
            if f"{everything} lists all" in found[title]:
                found[f"{title} {everything}"] = help_of(module, [*words, everything])
    return found


def _commands() -> str:
    """The help of every command, as it is printed."""
    parts = [
        "# Commands",
        "",
        "What `--help` prints. `sit-rl COMMAND` is the same as `python -m sit_rl.COMMAND`, and `sit-rl train` as "
        "`torchrun sit_rl/train.py`. [Training](../training.md) explains the flags that matter most.",
        "",
    ]
    for title, text in commands().items():
        parts += [f"## `{title}`", "", "```text", text, "```", ""]
    return "\n".join(parts)


def help_of(module: str, words: list[str]) -> str:
    """What a command prints for words that end in --help or --help-all, without colours."""
    sys.path.insert(0, str(ROOT))
    kept, argv = {name: os.environ.get(name) for name in HELP_ENVIRONMENT}, sys.argv
    os.environ.update(HELP_ENVIRONMENT)
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            importlib.import_module(module).main(words)
    finally:
        sys.path.remove(str(ROOT))
        sys.argv = argv  # which sit-rl sets for its usage lines
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return text.getvalue().rstrip()


# --- hooks -------------------------------------------------------------------------------------------------------

_made: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Make the pages and put them into the navigation."""
    _made.update(pages())
    section = next(section["Reference"] for section in config["nav"] if "Reference" in section)
    section += [path for path in _made if path.count("/") == 1]
    for package in ("fastfid", "sit_rl"):
        section.append({package: [path for path in _made if path.startswith(f"reference/{package}/")]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to the site."""
    for path, text in _made.items():
        files.append(File.generated(config, path, content=text))
    return files
