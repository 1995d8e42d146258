"""Several files under one name, as WebDataset writes it: shard-{0000..0012}.tar, {train,more}-{0..3}.tar."""

from __future__ import annotations

import os
import re
from pathlib import Path

BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{},]+(?:,[^{},]+)+))\}")  # {0000..0012} or {a,b}
MOST_FILES = 100_000  # of a pattern; the largest public sets have some ten thousand shards


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a path with braces stands for, in its order; the path alone if it has none or exists as it is.

    ValueError for a range that falls, and for more than MOST_FILES files.
    """
    whole = Path(path)
    if not BRACES.search(str(whole)) or whole.exists():
        return [whole]
    texts = [str(whole)]
    while BRACES.search(texts[0]):
        texts = [f"{text[:found.start()]}{word}{text[found.end():]}"
                 for text in texts if (found := BRACES.search(text)) for word in _words(found, whole)]  # fmt: skip
        if len(texts) > MOST_FILES:
            raise ValueError(f"{whole} stands for more than {MOST_FILES:,} files; pass a folder of them")
    return [Path(text) for text in texts]


def _words(found: re.Match[str], path: Path) -> list[str]:
    """What one pair of braces stands for; numbers have the digits of the first one."""
    first, last, words = found.groups()
    if words is not None:
        return str(words).split(",")
    if int(last) < int(first):
        raise ValueError(f"{path} counts down in {found[0]}; write the smaller number first")
    if int(last) - int(first) >= MOST_FILES:
        raise ValueError(f"{path} stands for more than {MOST_FILES:,} files; pass a folder of them")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
