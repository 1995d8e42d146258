"""Text for a terminal, which obeys some of the characters that names of files may hold."""

from __future__ import annotations

LINES = "\n\t"  # of our own tables


def printable(text: str, kept: str = LINES) -> str:
    """The text with everything but letters, signs, spaces and `kept` written as escapes such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c in kept or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
