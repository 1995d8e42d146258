"""Nothing printed ends a command: encodings without a character, full disks, closed pipes, closed streams."""

import contextlib
import io
import os
import subprocess
import sys
import warnings

import pytest
from tqdm import tqdm

from fastfid.cli.command_line import run
from fastfid.cli.output import unbreakable_output


@contextlib.contextmanager
def streams(monkeypatch, out, err):
    """Other standard streams, inside the block of a command."""
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with unbreakable_output():
        yield
    assert (sys.stdout, sys.stderr) == (out, err)


def speak():
    """Everything that prints."""
    print("a → b", "caf\udce9 0.png", flush=True)
    tqdm.write("FD ↓")
    for _ in tqdm(range(3), desc="images → features", file=sys.stderr):
        pass
    sys.stderr.write("–\n")
    warnings.warn("ü", stacklevel=1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252", "utf-16"])
def test_characters_that_an_encoding_lacks_become_escapes(monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with streams(monkeypatch, out, err):
        speak()
    lines = out.buffer.getvalue().decode(encoding).splitlines()
    arrows = encoding.startswith("utf")
    shown = ["a → b caf\\udce9 0.png", "FD ↓"] if arrows else ["a \\u2192 b caf\\udce9 0.png", "FD \\u2193"]
    assert lines == shown
    assert "3/3" in err.buffer.getvalue().decode(encoding)


def test_a_full_disk_ends_the_output_with_one_note(monkeypatch):
    err = io.StringIO()
    with open("/dev/full", "w") as full:
        with streams(monkeypatch, full, err):
            speak()
            speak()
        full.flush()  # as Python does when it exits
    assert err.getvalue().count("note: stdout cannot be written (No space left on device); the work goes on") == 1
    with open("/dev/full", "w") as full, streams(monkeypatch, full, err := io.StringIO()):
        print("x" * 2 * io.DEFAULT_BUFFER_SIZE)  # more than a buffer holds: not the flush but the write fails
        speak()
    assert err.getvalue().count("note: stdout cannot be written (No space left on device)") == 1
    with open("/dev/full", "w") as one, open("/dev/full", "w") as other, streams(monkeypatch, one, other):
        speak()


def test_a_closed_stream_and_none_take_everything(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for pair in ((closed, closed), (None, None), (None, closed), (closed, None)):
        with streams(monkeypatch, *pair):
            speak()
            assert not sys.stdout.isatty() and not sys.stderr.isatty()


def test_a_closed_pipe_ends_the_output(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    err = io.StringIO()
    with os.fdopen(writer, "w") as pipe:
        with streams(monkeypatch, pipe, err):
            speak()
        pipe.flush()
    assert "note: stdout cannot be written (Broken pipe)" in err.getvalue()


def test_other_errors_of_the_work_are_as_they_were(monkeypatch):
    def fail():
        raise ValueError("bad → input")

    err = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", err)
    assert run("fastfid", fail, interrupted="") == 2
    assert err.buffer.getvalue() == b"fastfid: bad \\u2192 input\n"


COMMAND = """
import os, sys
from fastfid.cli.command_line import run

def work():
    file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
    os.write(file, b"kept")
    for _ in range(9999):
        print("lost")
    os.write(1, b"of a library")

sys.exit(run("x", work, interrupted=""))
"""


@pytest.mark.parametrize("ending", ["> /dev/full", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full 2>&1", "| true"])
def test_the_exit_status_does_not_depend_on_the_output(tmp_path, ending):
    """Also at Python's exit, which flushes; and a closed descriptor's number is never that of a file of the work."""
    (tmp_path / "command.py").write_text(COMMAND)
    line = f"set -o pipefail; {sys.executable} {tmp_path}/command.py {tmp_path}/file {ending}"
    assert subprocess.run(["bash", "-c", line], capture_output=True).returncode == 0
    assert (tmp_path / "file").read_text() == "kept"
