"""Names of classes that images are numbered by, so that labels 0, 1, 2 meet folders named cat, dog, fox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastfid.runtime.errors import shown
from fastfid.runtime.input_files import json_of, read_text, reading

NamesOfClasses = Mapping[str, str] | Sequence[str] | str | Path


def names_of_classes(source: NamesOfClasses | None) -> dict[str, str]:
    """Number of a class as text → its name; empty for None.

    source  names in the order of their numbers, a mapping from number to name, or a file of either: .json, or text with
            one name a line

    FileNotFoundError for a missing file, ValueError for other contents or for one name of two classes.
    """
    if source is None:
        return {}
    origin = f"{source}" if isinstance(source, str | Path) else "class_names"
    found = _read(Path(source)) if isinstance(source, str | Path) else source
    if isinstance(found, Sequence) and not isinstance(found, str):
        found = dict(enumerate(found))
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"{origin} holds no names of classes; give a list of names, or a mapping of numbers to names")
    names = {str(number): name for number, name in found.items()}
    if len(set(names.values())) < len(names):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise ValueError(f"{origin} gives two classes the name {shown(repr(twice))}; give each its own")
    return names


def _read(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; pass a .json or a text file with one name of a class a line")
    with reading(path, "give a list of names, or an object of numbers and names", "as names of classes"):
        text = read_text(path)
        if path.suffix.lower() == ".json":
            return json_of(text)
        return [line.strip() for line in text.splitlines() if line.strip()]
