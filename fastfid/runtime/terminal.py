"""Text for a terminal, which obeys some of the characters that names of files may hold."""

from __future__ import annotations

LINES = "\n\t"  # of our own tables


def printable(text: str) -> str:
    """The text with everything but letters, signs, spaces and line ends written as escapes such as \\x1b."""
    return text if _is_plain(text) else "".join(c if _is_plain(c) else _escaped(c) for c in text)


def _is_plain(text: str) -> bool:
    return text.translate(dict.fromkeys(map(ord, LINES))).isprintable()


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
