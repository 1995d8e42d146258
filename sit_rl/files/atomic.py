"""Text files that appear whole or not at all, and folders that a failure leaves only with something in them.

A temporary file that a killed run leaves is overwritten by the next.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`content` as indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def writing(flag: str, path: Path) -> Iterator[None]:
    """A failure of the file system within names the flag that `path` came by."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # one of ours, which says all
            raise
        raise OSError(f"{flag} {path} cannot be written ({error.strerror}); choose another place") from None


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """`path` of --out and its parents exist within this block; those made here that a failure leaves empty are removed.

    OSError naming --out where it cannot be made or written.
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
