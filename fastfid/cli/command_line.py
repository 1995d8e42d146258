"""The frame that all commands of fastfid and sit_rl share: parsing, errors in one sentence, exit statuses.

    0    done
    1    a check does not hold
    2    bad input: one sentence on stderr
    130  interrupted by Ctrl-C (128 + SIGINT, as shells report it)

A command's main function parses with `parse` and works within `run`:

    def main(argv: list[str] | None = None) -> int:
        return run("error", lambda: work(parse(Config, argv)), interrupted="interrupted; run it again to go on")

Nothing here loads torch: help and wrong arguments are answered at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NoReturn, TypeVar, cast

import tyro

from fastfid.cli.output import unbreakable_output
from fastfid.cli.parser_errors import WIDE, sentence_of
from fastfid.cli.torchrun_ending import leave_sentence
from fastfid.runtime.errors import OtherRankFailed
from fastfid.runtime.terminal import printable

Form = TypeVar("Form")

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# Errors that the input causes.  Every rank raises the same one, so only the first rank of each machine prints it.
SAME_ON_EVERY_RANK = (ValueError, ImportError, FileNotFoundError)


class CommandError(Exception):
    """Ends a command with one sentence and an exit status; every rank that raises it prints the sentence.

    status  BAD_INPUT, or CHECK_FAILED where a check does not hold
    """

    def __init__(self, sentence: str, status: int = BAD_INPUT) -> None:
        super().__init__(sentence)
        self.status = status


def run(program: str, work: Callable[[], object], *, interrupted: str) -> int:
    """Call `work` and return the exit status; an expected error is one sentence on stderr, never a traceback.

    program      word before the sentence, such as "fastfid"
    interrupted  what to print after Ctrl-C: one sentence that says how to go on

    Expected errors are ValueError, ImportError, OSError, FloatingPointError and `CommandError`.  Others are raised.
    What is printed never ends the work (`unbreakable_output`).
    """
    with unbreakable_output():
        return _status(program, work, interrupted)


def _status(program: str, work: Callable[[], object], interrupted: str) -> int:
    """`run` with the output as it is."""
    try:
        work()
    except OtherRankFailed:
        return BAD_INPUT  # rank 0 prints the sentence
    except CommandError as error:
        report(program, f"{error}")
        return error.status
    except SAME_ON_EVERY_RANK as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            report(program, f"{error}")
        return BAD_INPUT
    except (OSError, FloatingPointError) as error:
        report(program, f"{error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        if _rank() == 0:  # Ctrl-C reaches every process of a torchrun
            print(interrupted, file=sys.stderr, flush=True)
        return INTERRUPTED
    return DONE


def report(program: str, sentence: str) -> None:
    """Print one sentence to stderr, with the number of the rank above 0; nothing in it commands the terminal."""
    speaker = f"{program} on rank {_rank()}" if _rank() else program
    print(printable(f"{speaker}: {sentence}"), file=sys.stderr, flush=True)
    leave_sentence(printable(sentence, kept=""))


def _rank() -> int:
    """Number of this process by torchrun's environment; 0 without it."""
    return int(os.environ.get("RANK", "0"))


# --- parsing -----------------------------------------------------------------------------------------------------


def parse(
    form: Callable[..., Form],
    argv: list[str] | None = None,
    *,
    program: str | None = None,
    description: str | None = None,
    flags: tuple[str, ...] = (),
    remedy: Callable[[list[str]], str] | None = None,
) -> Form:
    """An instance of `form` (a dataclass, a union of subcommands, or a function to call) from the command line.

    argv         words; those of the process unless given
    program      name in the usage line; the script's name unless given
    description  text above the options; the form's docstring unless given
    flags        long flags, such as --batch-size, of which unambiguous beginnings are accepted, too
    remedy       unknown words → what to add to the one sentence that refuses them; near names unless given

    SystemExit with status 0 after --help and 2 after wrong arguments, as parsers do.
    """
    words = abbreviations_completed(sys.argv[1:] if argv is None else argv, flags)
    options: dict[str, Any] = {"prog": program, "description": description, "args": words}
    speaker = (program or "error").split()[0]
    with _printed_once():
        if remedy is None:
            return cast(Form, _parsed(speaker, form, options))
        parsed, unknown = _parsed(speaker, form, options | {"return_unknown_args": True})
        if unknown:
            refuse(speaker, f"unrecognized arguments: {' '.join(unknown)}{remedy(unknown)}")
        return cast(Form, parsed)


def _parsed(speaker: str, form: Callable[..., Any], options: dict[str, Any]) -> Any:
    """What the parser makes of the words; its message about wrong ones as one sentence."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(form, **options)
    except SystemExit as ended:
        if ended.code in (None, DONE):  # after --help
            raise
    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), WIDE
    try:
        with redirect_stderr(box := io.StringIO()):
            tyro.cli(form, **options)
    except SystemExit:
        refuse(speaker, sentence_of(box.getvalue(), options["args"]))
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if width is None else {"COLUMNS": width})


@contextmanager
def _printed_once() -> Iterator[None]:
    """Inside the block, only the first rank of a machine prints: all parse the same words."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def refuse(program: str, sentence: str) -> NoReturn:
    """Print why the arguments cannot be used and exit with status 2, as a parser does."""
    report(program, sentence)
    raise SystemExit(BAD_INPUT)


def abbreviations_completed(words: list[str], flags: tuple[str, ...]) -> list[str]:
    """The words with each unambiguous beginning of a flag (--batch for --batch-size) written out, as argparse does."""
    completed = []
    for word in words:
        name, equals, value = word.partition("=")
        begun = [flag for flag in flags if flag.startswith(name)] if name.startswith("--") and name != "--" else []
        completed.append(f"{begun[0]}{equals}{value}" if name not in flags and len(begun) == 1 else word)
    return completed
