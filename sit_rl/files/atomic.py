"""Text files that appear whole or not at all, and output folders that are removed if a failure leaves them empty."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastfid.runtime.atomic_files import write_atomically


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all. Other bytes, of file names, become escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def writing(flag: str, path: Path) -> Iterator[None]:
    """Inside the block, an error of the file system becomes an OSError that names the flag of `path`."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # raised by this project, with a complete sentence
            raise
        raise OSError(f"{flag} {path} cannot be written ({error.strerror}); choose another place") from None


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make the folder `path` of --out and its parents. On failure, remove those of them that are empty.

    OSError that names --out if the folder cannot be made or written to.
    """
    missing = [p for p in (path, *path.parents) if not p.exists()]
    with writing("--out", path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty, or another rank removed it
            for made in missing:
                made.rmdir()
        raise
