"""The frame of all commands: exit statuses, one sentence for an expected error, and which rank prints it."""

from dataclasses import dataclass

import pytest

from fastfid.cli.command_line import CHECK_FAILED, CommandError, abbreviations_completed, parse, run
from fastfid.runtime.errors import OtherRankFailed


def raising(error):
    def work():
        raise error

    return work


def outcome(capsys, error):
    status = run("program", raising(error), interrupted="interrupted; go on")
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_statuses(capsys):
    assert run("program", lambda: 5, interrupted="") == 0
    assert outcome(capsys, CommandError("3 of 4 hold", CHECK_FAILED)) == (1, "program: 3 of 4 hold\n")
    for expected in (ValueError, ImportError, FileNotFoundError, OSError, FloatingPointError, CommandError):
        assert outcome(capsys, expected("no such set")) == (2, "program: no such set\n")
    assert outcome(capsys, KeyboardInterrupt()) == (130, "interrupted; go on\n")


def test_other_exceptions_pass():
    for unexpected in (RuntimeError("a defect"), TypeError("a defect"), SystemExit(3)):
        with pytest.raises(type(unexpected)):
            run("program", raising(unexpected), interrupted="")


def test_a_machine_prints_once_what_every_rank_meets(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert outcome(capsys, ValueError("bad flag")) == (2, "")
    assert outcome(capsys, OSError("disk full")) == (2, "program on rank 9: disk full\n")
    assert outcome(capsys, CommandError("lost")) == (2, "program on rank 9: lost\n")
    assert outcome(capsys, KeyboardInterrupt()) == (130, "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert outcome(capsys, ValueError("bad flag")) == (2, "program on rank 9: bad flag\n")
    assert outcome(capsys, OtherRankFailed("rank 0 prints it")) == (2, "")


@dataclass(frozen=True)
class Options:
    """Some options."""

    batch_size: int = 4
    """images at once"""
    fade: bool = True
    """fade"""


def test_parsing(capsys):
    assert parse(Options, ["--batch-size", "8", "--no-fade"]) == Options(8, False)
    assert parse(Options, ["--fade"]) == Options(4, True)
    assert parse(Options, ["--batch=3"], flags=("--batch-size", "--fade")) == Options(3)
    for wrong in (["--batch-size", "x"], ["--nothing"]):
        with pytest.raises(SystemExit, match="2"):
            parse(Options, wrong)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        parse(Options, ["--nothing", "1"], program="program eval", remedy=lambda unknown: f"; {len(unknown)} words")
    assert capsys.readouterr().err == "program: unrecognized arguments: --nothing 1; 2 words\n"


def test_abbreviations_are_completed_where_they_are_unambiguous():
    flags = ("--help", "--same-noise", "--skip-corrupt", "--json")
    words = ["--s", "--sk", "--js", "--same=1", "--json", "-j", "--", "skip"]
    assert abbreviations_completed(words, flags) == [
        "--s", "--skip-corrupt", "--json", "--same-noise=1", "--json", "-j", "--", "skip",
    ]  # fmt: skip
