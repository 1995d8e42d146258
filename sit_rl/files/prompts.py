"""A file of prompts: JSON lines {"prompt": TEXT, "group": NAME}, one prompt a line; other keys are ignored.

The number of a prompt is that of its line, without blank lines, from 0.  A group is optional, but all lines have one
or none has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fastfid.runtime.errors import first_line, shown
from fastfid.runtime.hashes import sha256
from fastfid.runtime.input_files import json_of, read_text

# Bytes of a file: a million prompts of 250 bytes.
MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, and their groups, if they have any."""

    path: Path
    texts: tuple[str, ...]
    groups: tuple[str, ...] | None

    @property
    def sha256(self) -> str:
        """Of the prompts and their groups, and not of the file's spelling."""
        return sha256([json.dumps([self.texts, self.groups])])


def read_prompts(path: Path) -> Prompts:
    """The prompts of a file; ValueError or OSError that names the file and the line, for any other file."""
    try:
        lines = read_text(path, MOST_BYTES).split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} is not UTF-8 text ({first_line(error)}); save it again") from None
    except (ValueError, OSError) as error:
        raise type(error)(f"--prompts {error}") from None
    texts: dict[str, int] = {}
    groups: list[str | None] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--prompts {path}, line {number}"
        prompt, group = _line(where, line)
        if prompt in texts:
            raise ValueError(f"{where} repeats the prompt of line {texts[prompt]}; delete one of them")
        texts[prompt] = number
        groups.append(group)
        if (group is None) != (groups[0] is None):
            raise ValueError(f"{where} has {'no' if group is None else 'a'} group, unlike the lines before; give all "
                             "lines a group, or none")  # fmt: skip
    if not texts:
        raise ValueError(f'--prompts {path} has no prompts; write one a line: {{"prompt": "a red cube"}}')
    named = tuple(group for group in groups if group is not None)
    return Prompts(path, tuple(texts), named or None)


def _table(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON table; ValueError for a key that stands twice, of which a dict drops the first value."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice in one table")
    return table


def _line(where: str, line: str) -> tuple[str, str | None]:
    """Prompt and group of a line."""
    try:
        entry = json_of(line, _table)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({first_line(error)}); correct it") from None
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{where} is {shown(line.strip())}; it must be a table with text: {{"prompt": "a red cube"}}')
    group = entry.get("group")
    if not isinstance(group, (str, int, type(None))) or isinstance(group, bool) or group == "":
        raise ValueError(f"{where} has group {shown(repr(group))}; it must be a name or a number")
    try:
        f"{prompt}{group}".encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} has half a surrogate pair, which no text has; correct it") from None
    return prompt, None if group is None else str(group)
