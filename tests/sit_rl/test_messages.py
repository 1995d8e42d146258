"""What the trainer prints commands no terminal: names of files may hold the escape character."""

import ast
from pathlib import Path

import pytest
import torch

from sit_rl import sample
from sit_rl.components.own_images import open_source, prepare
from sit_rl.components.real_side import validate_real
from sit_rl.models.convert import main as convert
from sit_rl.ranks.messages import say
from tests.support.own_pictures import class_folders

ROOT = Path(__file__).parents[2]
# Texts without names of files: help, and the end of a rank; the embedded assets are made by developers.
PLAIN = {"cli.py", "command_line.py", "ranks/process_group.py", "ranks/preemption.py", "pretraining/embedded.py"}
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202e"


@pytest.fixture
def told(capsys):
    """What was printed since the last call, in which nothing but a progress bar's return commands a terminal."""

    def read():
        out, err = capsys.readouterr()
        assert all(c.isprintable() or c in "\n\t\r" for c in out + err)
        assert "\\x1b]0;owned\\x07\\x9b31m\\u202e" in out + err
        return out + err

    return read


def test_names_of_images(tmp_path, told):
    folder = class_folders(tmp_path / f"images{HOSTILE}", 4)
    (folder / f"notes.{HOSTILE}").write_bytes(b"")
    prepare(open_source("--images", folder), 16, "centre")
    assert "note: passed over 1 in " in told()
    validate_real(folder, [])
    assert "note: passed over 1 in " in told()


def test_names_of_weights_and_samples(colour, tmp_path, told):
    from sit_rl.models.loading import load_model

    path, target = tmp_path / f"x{HOSTILE}.pt", tmp_path / f"y{HOSTILE}.safetensors"
    torch.save({f"module.{key}": value for key, value in load_model(colour).state_dict().items()}, path)
    convert([str(path), str(target)])
    assert "sit_rl stripped module. from the names" in told()
    sample.main(["--checkpoint", str(target), "--images", "2", "--steps", "2", "--out", str(tmp_path / f"z{HOSTILE}")])
    assert "z\\x1b" in told()


def test_lines_and_columns_stay(capsys):
    say("one\ttwo\nthree")
    assert capsys.readouterr().out == "one\ttwo\nthree\n"


def test_nothing_is_printed_in_another_way():
    """A name of a file in a plain print would reach the terminal as it is."""
    for path in sorted((ROOT / "sit_rl").rglob("*.py")):
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        printing = [ast.unparse(call) for call in calls if ast.unparse(call) in ("print", "tqdm.write")]
        name = path.relative_to(ROOT / "sit_rl").as_posix()
        assert not printing or name in PLAIN | {"ranks/messages.py"}, name
