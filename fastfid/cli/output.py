"""Standard output and error that never end a command: what cannot be printed is escaped, or dropped with one note."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

DESCRIPTORS = (0, 1, 2)  # of standard input, output and error


@contextmanager
def unbreakable_output() -> Iterator[None]:
    """Inside the block, printing and progress bars never raise.

    A character that the encoding lacks is written as its escape (\\u2192). A full disk, a closed pipe or a closed
    stream ends the output but not the work; stderr gets one note. Everything is flushed at the end, so Python does
    not fail at exit.
    """
    open_closed_descriptors()
    before = sys.stdout, sys.stderr
    errors = Unbreakable(sys.stderr, "stderr", None)
    output = Unbreakable(sys.stdout, "stdout", errors)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    try:
        yield
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before


def open_closed_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if they are closed: the next file would get one of them, and printed text."""
    for descriptor in DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


class Unbreakable:
    """A text stream whose `write` and `flush` never raise; everything else is passed to the stream.

    stream  None, Python's value for a closed descriptor, discards everything
    name    name of the stream in the note
    notes   where the note is written, None for nowhere
    """

    def __init__(self, stream: TextIO | None, name: str, notes: Unbreakable | None):
        self._stream, self._name, self._notes = stream, name, notes

    def write(self, text: str) -> int:
        """Write text, with escapes for what the encoding lacks."""
        try:
            if self._stream is not None:
                self._put(self._stream, text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._end(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._end(error)

    @staticmethod
    def _put(stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _end(self, error: OSError | ValueError) -> None:
        """Discard further output and the buffers: the null device replaces the stream."""
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError):  # a stream without a descriptor
            descriptor = cast(TextIO, stream).fileno()
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), descriptor)
        if self._notes is not None:
            reason = getattr(error, "strerror", None) or error
            self._notes.write(f"note: {self._name} cannot be written ({reason}); the work goes on without it\n")
            self._notes.flush()

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as `encoding` and `isatty`; an empty file stands for a missing stream."""
        return getattr(self.__dict__["_stream"] or io.StringIO(), name)
