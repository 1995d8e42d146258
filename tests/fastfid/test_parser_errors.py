"""Wrong arguments are one sentence that names the flag, its value and what it takes, in place of the parser's box."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from fastfid.cli.command_line import parse
from fastfid.cli.parser_errors import sentence_of


@dataclass
class Form:
    folder: Path
    size: int = 3
    """pixels of a side"""
    crop: Literal["centre", "pad"] = "centre"
    rates: tuple[float, ...] = ()
    share: float | None = None
    mirror: bool = False


@dataclass
class Two:
    samples: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SAMPLES")]
    real: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="REAL")]


HELP = "; see sit-rl x --help"
SIZE = f"it takes a whole number, pixels of a side (default: 3){HELP}"


@pytest.mark.parametrize(
    ("form", "words", "told"),
    [
        (
            Form,
            "--folder x --size many",
            "--size is 'many'; " + SIZE,
        ),
        (
            Form,
            "--folder x --size=1.5",
            "--size is '1.5'; " + SIZE,
        ),
        (Form, "--folder x --share all", "--share is 'all'; it takes a number (default: None)" + HELP),
        (Form, "--folder x --rates 1 fast --size 3", "--rates is '1 fast'; it takes [FLOAT [FLOAT ...]]"),
        (Form, "--folder x --crop corner", "--crop is 'corner'; choose one of centre, pad" + HELP),
        (Form, "--folder x --size", "--size needs a value" + HELP),
        (Form, "--folder x --sise 3", "unrecognized arguments: --sise 3; did you mean --size?"),
        (Form, "--folder x --mirror yes", "unrecognized arguments: yes" + HELP),
        (Form, "", "--folder is missing" + HELP),
        (Two, "", "SAMPLES and REAL are missing" + HELP),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_sentence(form, words, told, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as ended:
        parse(form, words.split(), program="sit-rl x")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"sit-rl: {told}") and error.count("\n") == 1
    assert not set(error) & set("╭│─")


def test_a_message_of_another_form_is_told_as_it_is():
    lines = ["Something else  ", "happened.       ", "─" * 16, "For full helptext, see x --help"]
    box = "\n".join(["╭─ News ─╮", *(f"│ {line} │" for line in lines), "╰────────╯"])
    assert sentence_of(box, []) == "Something else happened; see x --help"


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as ended:
        parse(Form, ["--help"], program="sit-rl x")
    assert ended.value.code in (None, 0) and max(map(len, capsys.readouterr().out.splitlines())) <= 62
