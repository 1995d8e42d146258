"""Text for a terminal: control characters, which a file name may contain, are escaped."""

from __future__ import annotations

LINES = "\n\t"  # of our own tables


def printable(text: str, kept: str = LINES) -> str:
    """The text, with all characters that are not printable and not in `kept` written as escapes such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c in kept or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
