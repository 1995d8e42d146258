"""Text files that appear whole or not at all, and folders that a failure leaves only with something in them.

A temporary file that a killed run leaves is overwritten by the next.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """`content` as indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """`path` and its parents exist within this block; those made here that are empty after a failure are removed."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty, or another rank removed it
            for made in missing:
                made.rmdir()
        raise
