"""The frame of sit_rl's commands: expected errors in one sentence, exit statuses, a process group.

Sentences and statuses are those of `fastfid.cli.command_line`.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from typing import Any, Protocol, TypeVar, cast

import torch

from fastfid.cli import command_line
from fastfid.cli.command_line import CommandError
from fastfid.runtime.errors import one_line
from sit_rl.ranks.process_group import process_group


class HasThreads(Protocol):
    """Arguments of a command that runs on several ranks."""

    @property
    def threads(self) -> int:
        """CPU threads of a rank; 0 divides the cores among the ranks."""


Arguments = TypeVar("Arguments", bound=HasThreads)
Form = TypeVar("Form")

ALL = "--help-all"  # the flag that lists every flag, where --help lists those that matter
COLUMNS = 118  # of the text of --help
FLAG_COLUMNS = 35


def run_command(work: Callable[[], object], interrupted: str = "interrupted") -> None:
    """Call `work`.  SystemExit with the status of `fastfid.cli.command_line` if it fails in an expected way.

    interrupted  what to print after Ctrl-C
    """
    status = command_line.run("error", work, interrupted=interrupted)
    if status != command_line.DONE:
        raise SystemExit(status)


def run_on_ranks(parse: Callable[[], Arguments], work: Callable[[Arguments, torch.device], None]) -> None:
    """Parse, then call `work` with the arguments and this rank's device, inside a process group."""

    def run() -> None:
        arguments = parse()
        with process_group(arguments.threads) as device:
            try:
                work(arguments, device)
            except torch.OutOfMemoryError as error:
                reason = one_line(error)
                raise CommandError(f"out of GPU memory: lower --batch, with another --out ({reason})") from None

    run_command(run, "interrupted; the same command goes on from the images already written")


def value_of(argv: list[str], *flags: str) -> str | None:
    """The last value of a flag on a command line that is not parsed yet; None if it is not there."""
    value = None
    for i, word in enumerate(argv):
        flag, equals, after = word.partition("=")
        if flag in flags:
            value = after if equals else (argv[i + 1] if i + 1 < len(argv) else "")
    return value


# --- help --------------------------------------------------------------------------------------------------------


def parse_briefly(
    form: Callable[..., Form], argv: list[str] | None, description: str | None, main: Iterable[str], usage: str
) -> Form:
    """`fastfid.cli.command_line.parse` of a dataclass, whose --help lists the fields `main` and --help-all lists all.

    description  text of --help-all; its first paragraph is also that of --help
    usage        the command without its flags
    """
    words = sys.argv[1:] if argv is None else argv
    help_if_asked(words, lambda: _help_of(form, description or "", main, usage))
    return command_line.parse(form, all_of_help(words), description=description)


def _help_of(form: object, description: str, main: Iterable[str], usage: str) -> str:
    about, known = attribute_docs(form), {f.name: f for f in fields(cast(Any, form))}
    defaults = {name: "" if known[name].default in (MISSING, None) else known[name].default for name in main}
    rows = [(name, default, about.get(name, "")) for name, default in defaults.items()]
    return brief_help(usage, description, rows, len(known))


def help_if_asked(words: list[str], text: Callable[[], str]) -> None:
    """Print the text and exit where the words ask for --help."""
    if {"-h", "--help"}.intersection(words) and ALL not in words:
        print(text())
        raise SystemExit(command_line.DONE)


def all_of_help(words: list[str]) -> list[str]:
    """The words with the parser's own --help in place of --help-all."""
    return ["--help"] if ALL in words else words


def brief_help(usage: str, description: str, rows: list[tuple[str, object, str]], count: int, more: str = "") -> str:
    """The help of the flags that matter: a line each, with its default and the first clause of its meaning.

    rows   (field, default, meaning)
    count  how many flags there are
    more   paragraphs between the usage and the flags
    """
    lines = [f"usage: {usage} [flags]", "", description.strip().split("\n\n")[0], "", *([more, ""] if more else [])]
    for name, default, meaning in rows:
        flag = f"  --{name.replace('_', '-')} {_short(default)}".rstrip()
        text = textwrap.shorten(meaning.split("; ")[0], COLUMNS - FLAG_COLUMNS - 1, placeholder=" …")
        lines.append(f"{flag:<{FLAG_COLUMNS}} {text}".rstrip())
    return "\n".join([*lines, "", f"{ALL} lists all {count} flags"])


def _short(default: object) -> str:
    """A default beside its flag; of several values the first."""
    if isinstance(default, bool):
        return ""
    if not isinstance(default, tuple):
        return str(default)
    return " ".join([*map(str, default[:1]), *(["…"] if len(default) > 1 else [])])


def attribute_docs(form: object) -> dict[str, str]:
    """Field → the string below it in the source of a dataclass and of its bases."""
    found: dict[str, str] = {}
    for kind in reversed(inspect.getmro(cast(type, form))[:-1]):
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[cast(ast.Name, field.target).id] = str(text.value.value)
    return found
