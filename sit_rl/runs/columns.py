"""Tables on the terminal: aligned columns, and the words for the two groups of networks."""

from __future__ import annotations

# By whether the reward uses a network.
GROUPS = {True: "rewarded", False: "never seen"}


def columns(rows: list[list[str]], words: int) -> list[str]:
    """Lines of aligned columns: the first so many are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
