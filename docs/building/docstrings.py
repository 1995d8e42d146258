"""Extension of griffe: aligned columns of a docstring become a table.

    count    number of rows
    mean     float64 [d]

A paragraph is one if each of its lines is a name, two spaces or more and a text, or continues the line before it.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

ROW = re.compile(r"^(\S+(?:,? \S+)*?)\s{2,}(\S.*)$")  # name (or names), at least two spaces, text

SHAPES = re.compile(r"\](\s?)\[")  # what Markdown takes for a link by reference


class AlignedTables(griffe.Extension):
    """Rewrites each docstring before it is rendered."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that is not an alias of another."""
        if obj.docstring:
            obj.docstring.value = with_tables(obj.docstring.value)


def with_tables(docstring: str) -> str:
    """The docstring with aligned paragraphs as Markdown tables; all others stay."""
    return "\n\n".join(_table(part) or _without_links(part) for part in docstring.split("\n\n"))


def _without_links(paragraph: str) -> str:
    """Shapes such as [n, d] [d] are no links; indented code stays as it is."""
    return paragraph if paragraph.startswith("    ") else SHAPES.sub(r"]\1\[", paragraph)


def _table(paragraph: str) -> str | None:
    """The paragraph as a table, or None if it is none."""
    lines = paragraph.splitlines()
    if not lines or not ROW.match(lines[0]) or lines[0].startswith(" "):
        return None
    rows: list[list[str]] = []
    for line in lines:
        if found := ROW.match(line):
            rows.append([found[1], *re.split(r"\s{2,}", found[2], maxsplit=1)])
        elif line.startswith(" "):
            rows[-1][-1] += f" {line.strip()}"
        else:
            return None
    width = max(map(len, rows))
    cells = [[f"`{row[0]}`", *row[1:-1], *[""] * (width - len(row)), row[-1]] for row in rows]
    escaped = [" | ".join(_without_links(cell).replace("|", "\\|") for cell in row) for row in cells]
    head = " | ".join(["name", "default", "meaning"][:1] + ["default"] * (width - 2) + ["meaning"])
    return textwrap.dedent("\n".join([f"| {head} |", "|---" * width + "|", *(f"| {row} |" for row in escaped)]))
