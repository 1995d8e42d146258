"""SHA256SUMS of a folder: one line of 64 digits, two spaces and a name for each file, as `sha256sum` writes them.

It is the last file that is written, so `sha256sum --check SHA256SUMS` in a complete folder finds every file unchanged.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastfid.runtime.hashes import file_sha256, sha256

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def content_hash(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file, or of the names and hashes of the files in a folder."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256(f"{p.relative_to(path).as_posix()} {file_sha256(p)}\n" for p in files)


def sums_of(folder: Path) -> str:
    """The text of SHA256SUMS for the files that are in a folder now."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)


def check_sums(folder: Path, required: re.Pattern[str]) -> None:
    """ValueError if a file of the folder's SHA256SUMS is missing or changed, or a `required` name is not listed there.

    Other files, such as those that a file browser adds, are ignored.
    """
    listed = _read(folder)
    for path in sorted(folder.iterdir()):
        if required.fullmatch(path.name) and path.name not in listed:
            raise ValueError(f"{path.name} is not listed in {SUMS}")
    for name, digest in listed.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{name} is damaged: its SHA-256 is not the one in {SUMS}")


def _read(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of every line of SHA256SUMS; ValueError without it and for other lines."""
    if not (folder / SUMS).is_file():
        raise ValueError(f"it has no {SUMS}")
    lines = (folder / SUMS).read_bytes().decode("ascii", errors="replace").removesuffix("\n").split("\n")
    entries = [LINE.fullmatch(line) for line in lines]
    if not all(entries):
        raise ValueError(f"{SUMS} is damaged")
    return {entry[2]: entry[1] for entry in entries if entry}
