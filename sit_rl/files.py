"""Text files that appear whole or not at all; a temporary file that a killed run leaves is overwritten by the next."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """`content` as indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")
